"""The inputs that gemm_int4_int8 refuses: see bad_inputs.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

import lamina
from tests.support.bad_input import RAW, BadInput, K, M, N, bytes_

OP = "gemm_int4_int8"
GROUP, GROUPS = 32, 3
CODES = torch.zeros(N, K, dtype=torch.uint8)
PACKED = lamina.pack_int4(CODES, "int4_rows")
SCALES = torch.ones(GROUPS, N)


def gemm(**changed: Any) -> Callable[[], Any]:
    """A good call with some arguments replaced."""
    arguments: dict[str, Any] = {
        "a": bytes_(M, K),
        "w": PACKED,
        "w_scale": SCALES,
        "group": GROUP,
        "a_scale": torch.ones(M, 1),
        "w_zero_point": SCALES,
        "a_zero_point": bytes_(M, 1),
        "bias": torch.ones(N),
    } | changed
    return lambda: lamina.gemm_int4_int8(**arguments)


def raw(
    w: torch.Tensor = PACKED.data, a: torch.Tensor | None = None, w_scale: torch.Tensor = SCALES
) -> Callable[[], Any]:
    """A call of torch.ops.lamina.gemm_int4_int8 with arguments that the Python op refuses itself."""
    return lambda: RAW.gemm_int4_int8(bytes_(M, K) if a is None else a, w, w_scale, GROUP, torch.ones(1))


def bad(what: str, call: Callable[[], Any], argument: str, got: str, allowed: str) -> BadInput:
    return BadInput(OP, what, call, argument, got, allowed)


def bad_inputs() -> Iterator[BadInput]:
    yield from _bad_activations()
    yield from _bad_weights()
    yield from _bad_groups()
    yield from _bad_epilogues()
    yield from _bad_perms()
    meta: dict[str, Any] = {
        "a_scale": torch.ones(1),
        "w_scale": SCALES,
        "w_zero_point": SCALES,
        "a_zero_point": bytes_(1),
        "bias": torch.ones(N),
        "gate": torch.ones(M, N),
        "residual": torch.ones(M, N),
        "perm": torch.zeros(K).int(),
    }
    for name, value in meta.items():
        yield bad(f"{name} on another device", gemm(**{name: value.to("meta")}), name, "meta", "cpu")
    yield bad("w on another device", gemm(w=PACKED.to("meta")), "w ", "meta", "cpu")
    yield from _bad_plans()


def _bad_activations() -> Iterator[BadInput]:
    floats = torch.ones(M, K)
    without: dict[str, Any] = {"a_scale": None, "a_zero_point": None}
    yield bad("a None", gemm(a=None), "a ", "None", "torch.Tensor")
    yield bad("a of floats with a scale", gemm(a=floats), "a ", "float32", "int8")
    yield bad("a of int8 without a scale", gemm(**without), "a_scale", "missing", "needs one")
    yield bad("a f64", gemm(a=floats.double(), **without), "a ", "float64", "bfloat16")
    yield bad("a of unsigned bytes", gemm(a=bytes_(M, K).byte(), **without), "a ", "uint8", "bfloat16")
    yield bad(
        "a zero point of floats", gemm(a=floats, a_scale=None), "a_zero_point", "given", "only with a_scale"
    )
    yield bad("a 3-D", gemm(a=bytes_(1, M, K)), "a ", "3-D [1, 3, 70]", "2-D [m, k]")
    yield bad("a 1-D", gemm(a=bytes_(K)), "a ", "1-D [70]", "2-D [m, k]")
    yield bad("a transposed", gemm(a=bytes_(K, M).T), "a ", "column stride", "1")
    yield bad("a transposed, of floats", gemm(a=torch.ones(K, M).T, **without), "a ", "column stride", "1")
    yield bad("k another than the weight's", gemm(a=bytes_(M, K - 1)), "a ", "69", "70")
    yield bad("a_scale a number", gemm(a_scale=0.5), "a_scale", "float 0.5", "torch.Tensor or None")
    yield bad("a_scale f64", gemm(a_scale=torch.ones(1).double()), "a_scale", "float64", "float32")
    yield bad("a_scale too short", gemm(a_scale=torch.ones(2)), "a_scale", "1-D [2]", "[m, 1] with m = 3")
    yield bad("a_scale a row", gemm(a_scale=torch.ones(1, M)), "a_scale", "2-D [1, 3]", "[m, 1]")
    yield bad(
        "a_scale of groups", gemm(a_scale=torch.ones(M, GROUPS)), "a_scale", "2-D [3, 3]", "[m, 1] with m = 3"
    )
    zero = torch.zeros(1).int()
    yield bad("a_zero_point int32", gemm(a_zero_point=zero), "a_zero_point", "int32", "int8")
    yield bad("a_zero_point of n", gemm(a_zero_point=bytes_(N)), "a_zero_point", "1-D [5]", "m = 3")
    yield bad("a_zero_point a number", gemm(a_zero_point=3), "a_zero_point", "int 3", "torch.Tensor or None")


def _bad_weights() -> Iterator[BadInput]:
    data, tile = PACKED.data, lamina.pack_int4(CODES, "int4_tile")
    yield bad("w a plain tensor", gemm(w=data), "w ", "Tensor", "PackedInt4")
    yield bad("w of int8", gemm(w=lamina.pack_int8(bytes_(N, K))), "w ", "PackedInt8", "PackedInt4")
    yield bad("max_sms 0", gemm(max_sms=0), "max_sms", "max_sms = 0", "at least 1")
    yield bad("w in the layout for CUDA", gemm(w=tile), "w ", '"int4_tile"', 'allowed on cpu: "int4_rows"')
    yield bad("w not packed", raw(CODES), "w ", "2-D [5, 70]", "3-D [1, 2, 512]")
    yield bad("w of signed bytes", raw(data.to(torch.int8)), "w ", "int8", "uint8")
    yield bad("w a tile short", raw(data[:, :1]), "w ", "[1, 1, 512]", "[1, 2, 512]")
    yield bad("w of more columns", raw(w_scale=torch.ones(GROUPS, 17)), "w ", "[1, 2, 512]", "[2, 2, 512]")
    yield bad("w permuted", raw(data.mT.contiguous().mT), "w ", "contiguous", ".contiguous()")
    deep = bytes_(1, 2**19 + 1)
    yield bad(
        "k beyond exact sums", raw(a=deep, w_scale=torch.ones(2**14 + 1, 1)), "k = ", "524289", "most 524288"
    )


def _bad_groups() -> Iterator[BadInput]:
    for group in (0, 8, 24, -16, -2, 2**62 + 1, -(2**63)):
        yield bad(
            f"group {group}", gemm(group=group), "group", f"group = {group};", "positive multiple of 16"
        )
    yield bad("group a float", gemm(group=32.0), "group", "float 32.0", "int")
    yield bad("group None", gemm(group=None), "group", "None", "int")
    yield bad("group a bool", gemm(group=True), "group", "bool True", "int")
    yield bad("group of 65 bits", gemm(group=2**63), "group", "9223372036854775808", "64 bits")
    yield bad("group another than the scales'", gemm(group=64), "w_scale", "2-D [3, 5]", "[2, 5]")
    yield bad("w_scale None", gemm(w_scale=None), "w_scale", "None", "torch.Tensor")
    yield bad("w_scale 1-D", gemm(w_scale=SCALES[0]), "w_scale", "1-D [5]", "2-D [ceil(k / group), n]")
    yield bad("w_scale as [n, groups]", gemm(w_scale=SCALES.T), "w_scale", "[5, 3]", "n = 5 of w")
    yield bad("w_scale of bytes", gemm(w_scale=SCALES.byte()), "w_scale", "uint8", "float32, float16 or")
    yield bad("w_scale f64", gemm(w_scale=SCALES.double()), "w_scale", "float64", "float32, float16 or")
    name, more = "w_zero_point", torch.ones(GROUPS + 1, N)
    yield bad(f"{name} a number", gemm(w_zero_point=8), name, "int 8", "torch.Tensor or None")
    yield bad(f"{name} 1-D", gemm(w_zero_point=SCALES[0]), name, "1-D [5]", "[ceil(k / group), n] = [3, 5]")
    yield bad(f"{name} as [n, groups]", gemm(w_zero_point=SCALES.T), name, "2-D [5, 3]", "[3, 5]")
    yield bad(f"{name} of more groups", gemm(w_zero_point=more), name, "2-D [4, 5]", "[3, 5]")
    yield bad(f"{name} int8", gemm(w_zero_point=bytes_(GROUPS, N)), name, "int8", "uint8, float32, float16")
    yield bad(f"{name} f64", gemm(w_zero_point=SCALES.double()), name, "float64", "uint8, float32, float16")


def _bad_epilogues() -> Iterator[BadInput]:
    yield bad("bias int32", gemm(bias=torch.ones(N).int()), "bias", "int32", "float16")
    yield bad("bias of one", gemm(bias=torch.ones(1)), "bias", "1-D [1]", "n = 5")
    yield bad("bias strided", gemm(bias=torch.ones(2 * N)[::2]), "bias", "contiguous", ".contiguous()")
    yield bad("bias a list", gemm(bias=[1.0]), "bias", "list [1.0]", "torch.Tensor or None")
    yield bad("out_dtype int32", gemm(out_dtype=torch.int32), "out_dtype", "int32", "bfloat16")
    yield bad("out_dtype a name", gemm(out_dtype="float16"), "out_dtype", "str 'float16'", "torch.dtype")
    yield bad("activation unknown", gemm(activation="relu"), "activation", '"relu"', '"gelu_tanh"')
    yield bad("activation a function", gemm(activation=abs), "activation", "built-in", "str or None")
    for name in ("gate", "residual"):
        good = torch.ones(M, N)
        yield bad(f"{name} a number", gemm(**{name: 2.0}), name, "float 2.0", "torch.Tensor or None")
        yield bad(f"{name} int8", gemm(**{name: bytes_(M, N)}), name, "int8", "bfloat16")
        yield bad(f"{name} of one row", gemm(**{name: good[:1]}), name, "2-D [1, 5]", "[m, n] = [3, 5]")
        yield bad(f"{name} transposed", gemm(**{name: torch.ones(N, M).T}), name, "3", "column stride 1")


def _bad_perms() -> Iterator[BadInput]:
    perm = torch.arange(K).int()
    yield bad("perm 2-D", gemm(perm=perm[None]), "perm", "[1, 70]", "k = 70 of w")
    yield bad("perm of k another than the weight's", gemm(perm=perm[1:]), "perm", "69", "70")
    yield bad("perm of floats", gemm(perm=perm.float()), "perm", "float32", "int32")
    few = bytes_(M, 3)
    yield bad("perm beyond a", gemm(a=few, perm=perm), "perm[3]", "= 3;", "-1 to 2")
    yield bad("perm of -2", gemm(perm=perm - 2), "perm[0]", "= -2;", "-1 to 69")


def _bad_plans() -> Iterator[BadInput]:
    for what, m, n, k, group, got, allowed in (
        ("negative m", -1, 2, 3, 16, "m = -1", "negative"),
        ("deep k", 1, 2, 2**20, 32, "k = 1048576", "at most 524288"),
        ("group 7", 1, 2, 30, 7, "group = 7", "positive multiple of 16"),
        ("huge", 2**40, 2**40, 64, 32, "m = 1099511627776", "2^63 bytes"),
    ):
        call = _explain(m, n, k, group)
        yield BadInput(f"explain_{OP}", what, call, got.split()[0], got, allowed)


def _explain(m: int, n: int, k: int, group: int) -> Callable[[], Any]:
    return lambda: RAW.explain_gemm_int4_int8(m, n, k, group)
