"""The inputs that gemm_int8, gemm_int8_quantized, pack_int8 and unpack_int8 refuse."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

import lamina
from tests.support.bad_input import RAW, BadInput, K, M, N, bytes_

PACKED = lamina.pack_int8(bytes_(N, K))


def gemm(op: Callable[..., Any] = lamina.gemm_int8, **changed: Any) -> Callable[[], Any]:
    """A call of lamina.gemm_int8 for a valid problem with some arguments replaced."""
    arguments: dict[str, Any] = {
        "a": bytes_(M, K),
        "w": PACKED,
        "a_scale": torch.ones(M, 1),
        "w_scale": torch.ones(N),
        "a_zero_point": bytes_(M, 1),
        "bias": torch.ones(N),
    } | changed
    return lambda: op(**arguments)


def raw_gemm(data: torch.Tensor, sums: torch.Tensor) -> Callable[[], Any]:
    """torch.ops.lamina.gemm_int8 with a packed weight that pack_int8 did not make."""
    return lambda: RAW.gemm_int8(bytes_(M, K), data, sums, torch.ones(1), torch.ones(1))


def bad_inputs() -> Iterator[BadInput]:
    yield from _bad_product()
    yield from _bad_groups()
    yield from _bad_quantized()
    yield from _bad_packs()


def _bad_product() -> Iterator[BadInput]:
    def bad(what: str, call: Callable[[], Any], argument: str, got: str, allowed: str) -> BadInput:
        return BadInput("gemm_int8", what, call, argument, got, allowed)

    yield bad("a of floats", gemm(a=torch.ones(M, K)), "a ", "float32", "int8")
    yield bad("a of unsigned bytes", gemm(a=bytes_(M, K).to(torch.uint8)), "a ", "uint8", "int8")
    yield bad("a 3-D", gemm(a=bytes_(1, M, K)), "a ", "3-D [1, 3, 70]", "2-D [m, k]")
    yield bad("a 1-D", gemm(a=bytes_(K)), "a ", "1-D [70]", "2-D [m, k]")
    yield bad("a transposed", gemm(a=bytes_(K, M).T), "a ", "column stride", "1")
    yield bad("k another than the weight's", gemm(a=bytes_(M, K - 1)), "a ", "69", "70")
    yield bad("k of more tiles", gemm(a=bytes_(M, 200)), "a ", "200", "70")
    yield bad("a_scale f64", gemm(a_scale=torch.ones(1).double()), "a_scale", "float64", "float32")
    yield bad("a_scale too short", gemm(a_scale=torch.ones(2)), "a_scale", "1-D [2]", "[m, 1] with m = 3")
    yield bad("a_scale a row", gemm(a_scale=torch.ones(1, M)), "a_scale", "2-D [1, 3]", "[m, 1]")
    yield bad("a_scale empty", gemm(a_scale=torch.ones(0)), "a_scale", "1-D [0]", "[m, 1]")
    yield bad("w_scale f16", gemm(w_scale=torch.ones(N).half()), "w_scale", "float16", "float32")
    yield bad("w_scale of m", gemm(w_scale=torch.ones(M)), "w_scale", "1-D [3]", "n = 5")
    yield bad("zero point int32", gemm(a_zero_point=torch.zeros(1).int()), "a_zero_point", "int32", "int8")
    yield bad("zero point of n", gemm(a_zero_point=bytes_(N)), "a_zero_point", "1-D [5]", "m = 3")
    yield bad("bias int32", gemm(bias=torch.ones(N).int()), "bias", "int32", "float16")
    yield bad("bias of one", gemm(bias=torch.ones(1)), "bias", "1-D [1]", "n = 5")
    yield bad("bias strided", gemm(bias=torch.ones(2 * N)[::2]), "bias", "contiguous", ".contiguous()")
    yield bad("out_dtype int32", gemm(out_dtype=torch.int32), "out_dtype", "int32", "bfloat16")
    yield bad("a_scale None", gemm(a_scale=None), "a_scale", "None", "torch.Tensor")
    yield bad("w_scale a number", gemm(w_scale=0.5), "w_scale", "float 0.5", "torch.Tensor")
    yield bad("bias a list", gemm(bias=[1.0]), "bias", "list [1.0]", "torch.Tensor or None")
    yield bad("w a plain tensor", gemm(w=bytes_(N, K)), "w ", "Tensor", "PackedInt8")
    yield bad("out_dtype a name", gemm(out_dtype="float16"), "out_dtype", "str 'float16'", "torch.dtype")
    yield bad("out_dtype f64", gemm(out_dtype=torch.float64), "out_dtype", "float64", "bfloat16")
    yield bad("activation unknown", gemm(activation="relu"), "activation", '"relu"', '"gelu_tanh"')
    yield bad("max_sms 0", gemm(max_sms=0), "max_sms", "max_sms = 0", "at least 1")
    yield bad("max_sms of 65 bits", gemm(max_sms=2**63), "max_sms", "9223372036854775808", "64 bits")
    yield bad("max_sms a bool", gemm(max_sms=True), "max_sms", "bool True", "int or None")
    yield bad("activation a function", gemm(activation=abs), "activation", "built-in", "str or None")
    for name in ("gate", "residual"):
        good = torch.ones(M, N)
        yield bad(f"{name} a number", gemm(**{name: 2.0}), name, "float 2.0", "torch.Tensor or None")
        yield bad(f"{name} int8", gemm(**{name: bytes_(M, N)}), name, "int8", "bfloat16")
        yield bad(f"{name} 1-D", gemm(**{name: good[0]}), name, "1-D [5]", "2-D [m, n]")
        yield bad(f"{name} of one row", gemm(**{name: good[:1]}), name, "2-D [1, 5]", "[m, n] = [3, 5]")
        yield bad(f"{name} transposed", gemm(**{name: torch.ones(N, M).T}), name, "3", "column stride 1")
        yield bad(f"{name} on another device", gemm(**{name: good.to("meta")}), name, "meta", "cpu")
    data, sums = PACKED.data, PACKED.column_sums
    yield bad("w not packed", raw_gemm(bytes_(N, K), sums), "w ", "2-D [5, 70]", "5-D [1, 2, 16, 16, 4]")
    yield bad("w of floats", raw_gemm(data.float(), sums), "w ", "float32", "int8")
    yield bad("w a tile short", raw_gemm(data[:, :1], sums), "w ", "[1, 1, 16, 16, 4]", "[1, 2, 16, 16, 4]")
    strided = data.transpose(3, 2)
    yield bad("w permuted", raw_gemm(strided, sums), "w ", "contiguous", ".contiguous()")
    yield bad("sums of floats", raw_gemm(data, sums.float()), "w_sums", "float32", "int32")
    yield bad(
        "sums of more columns", raw_gemm(data, torch.zeros(17).int()), "w ", "[1, 2,", "[2, 2, 16, 16, 4]"
    )
    yield bad(
        "sums strided", raw_gemm(data, torch.zeros(10).int()[::2]), "w_sums", "contiguous", ".contiguous()"
    )
    three = torch.zeros(3, N).int()
    yield bad(
        "sums of more groups", raw_gemm(data, three), "w_sums", "2-D [3, 5]", "[ceil(k / 128), n] = [1, 5]"
    )
    yield bad("sums 3-D", raw_gemm(data, three[None]), "w_sums", "3-D [1, 3, 5]", "1-D [n] with n = 15")
    yield bad(
        "group sums strided",
        raw_gemm(data, torch.zeros(1, 10).int()[:, ::2]),
        "w_sums",
        "contiguous",
        ".contiguous()",
    )
    deep = bytes_(1, 2**24)
    yield bad(
        "k beyond exact column sums",
        lambda: RAW.pack_int8(deep),
        "k = ",
        "16777216",
        "at most 16777215",
    )
    for name, value in (("a_scale", torch.ones(1)), ("w_scale", torch.ones(N)), ("bias", torch.ones(N))):
        yield bad(f"{name} on another device", gemm(**{name: value.to("meta")}), name, "meta", "cpu")


def _bad_groups() -> Iterator[BadInput]:
    """Scales along k: five columns, three groups."""
    k = 300
    good: dict[str, Any] = {
        "a": bytes_(M, k),
        "w": lamina.pack_int8(bytes_(N, k), group=128),
        "a_scale": torch.ones(M, 3),
        "w_scale": torch.ones(3, N),
    }

    def bad(what: str, argument: str, got: str, allowed: str, **changed: Any) -> BadInput:
        return BadInput("gemm_int8", what, gemm(**(good | changed)), argument, got, allowed)

    transposed = torch.ones(N, 3)
    yield bad(
        "w_scale as [n, groups]", "w_scale", "2-D [5, 3]", "[ceil(k / 128), n] = [3, 5]", w_scale=transposed
    )
    yield bad(
        "a_scale of two groups", "a_scale", "[3, 2]", "[m, ceil(k / 128)] = [3, 3]", a_scale=torch.ones(M, 2)
    )
    half = torch.ones(3, N).half()
    yield bad("w_scale of groups in f16", "w_scale", "float16", "float32", w_scale=half)
    plain = lamina.pack_int8(bytes_(N, k))
    yield bad(
        "w_scale of groups, w without",
        "w_scale",
        "2-D [3, 5]",
        "[n, 1] with n = 5",
        w=plain,
        a_scale=torch.ones(1),
    )


def _bad_quantized() -> Iterator[BadInput]:
    """The arguments that gemm_int8 does not have; the code for the others is the same."""

    def bad(what: str, argument: str, got: str, allowed: str, **changed: Any) -> BadInput:
        call = gemm(lamina.gemm_int8_quantized, **changed)
        return BadInput("gemm_int8_quantized", what, call, argument, got, allowed)

    one = torch.ones(1)
    yield bad("a of floats", "a ", "float32", "int8", a=torch.ones(M, K))
    yield bad("gate of m", "gate", "2-D [3, 1]", "[m, n] = [3, 5]", gate=torch.ones(M, 1))
    yield bad("out_scale a number", "out_scale", "float 0.1", "torch.Tensor or None", out_scale=0.1)
    yield bad("out_scale f64", "out_scale", "float64", "float32", out_scale=one.double())
    yield bad("out_scale of n", "out_scale", "1-D [5]", "m = 3", out_scale=torch.ones(N))
    yield bad("out_scale 0", "out_scale[0]", "0", "finite", out_scale=torch.zeros(1))
    late = torch.tensor([[1.0], [2.0], [torch.inf]])
    yield bad("out_scale of the last row Inf", "out_scale[2]", "inf", "finite", out_scale=late)
    yield bad("out_scale on another device", "out_scale", "meta", "cpu", out_scale=one.to("meta"))
    asymmetric: dict[str, Any] = {"out_scale": one, "symmetric": False}
    yield bad("out_scale when asymmetric", "out_scale", "given", "symmetric = True", **asymmetric)
    yield bad("symmetric a number", "symmetric", "int 1", "bool", symmetric=1)
    yield bad("max_sms -1", "max_sms", "max_sms = -1", "at least 1", max_sms=-1)


def _bad_packs() -> Iterator[BadInput]:
    def bad(op: str, what: str, call: Callable[[], Any], argument: str, got: str, allowed: str) -> BadInput:
        return BadInput(op, what, call, argument, got, allowed)

    w, data = bytes_(N, K), PACKED.data
    yield bad("pack_int8", "w of floats", lambda: lamina.pack_int8(w.float()), "w ", "float32", "int8")
    rows: Any = [[1]]
    yield bad("pack_int8", "w a list", lambda: lamina.pack_int8(rows), "w ", "list [[1]]", "torch.Tensor")
    for group in (0, 64, -1):
        call = functools.partial(lamina.pack_int8, w, group=group)
        yield bad("pack_int8", f"group {group}", call, "group", f"group = {group}", "None, 128")
    number: Any = 128.0
    call = functools.partial(lamina.pack_int8, w, group=number)
    yield bad("pack_int8", "group a float", call, "group", "float 128.0", "int or None")
    yield bad("pack_int8", "w 3-D", lambda: lamina.pack_int8(w[None]), "w ", "3-D [1, 5, 70]", "2-D [n, k]")
    yield bad("pack_int8", "w transposed", lambda: lamina.pack_int8(w.T), "w ", "70", "column stride 1")
    yield bad("unpack_int8", "negative n", lambda: RAW.unpack_int8(data, -5, K), "n = ", "-5", "negative")
    yield bad(
        "unpack_int8",
        "n of another weight",
        lambda: RAW.unpack_int8(data, 17, K),
        "data",
        "5-D [1, 2, 16, 16, 4]",
        "5-D [2, 2, 16, 16, 4]",
    )
    yield bad("unpack_int8", "data int32", lambda: RAW.unpack_int8(data.int(), N, K), "data", "int32", "int8")
    yield bad(
        "unpack_int8",
        "data permuted",
        lambda: RAW.unpack_int8(data.transpose(3, 2), N, K),
        "data",
        "contiguous",
        ".contiguous()",
    )
