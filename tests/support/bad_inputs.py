"""Every input that an op refuses, with the parts that its message must have.

The tests run this list, and it prints docs/errors.md:
python -m tests.support.bad_inputs > docs/errors.md
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

import lamina
from tests.support.bad_activations import bad_rms_norm_inputs, bad_silu_mul_inputs
from tests.support.bad_gemm_int4 import bad_gemm_int4_inputs
from tests.support.bad_gemm_int4_int8 import bad_gemm_int4_int8_inputs
from tests.support.bad_input import INT8, RAW, BadInput, K, M, N, bytes_
from tests.support.bad_matmul_sparse24 import bad_matmul_sparse24_inputs
from tests.support.bad_paged_attention import bad_paged_attention_inputs
from tests.support.bad_paged_kv import bad_paged_kv_inputs
from tests.support.bad_sample import bad_sample_inputs
from tests.support.bad_sparse24 import bad_sparse24_inputs

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


def quantize(x: Any, **options: Any) -> Callable[[], Any]:
    return lambda: lamina.quantize_int8(x, **options)


def bad_gemm_inputs() -> Iterator[BadInput]:
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


def bad_grouped_inputs() -> Iterator[BadInput]:
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


def bad_quantized_inputs() -> Iterator[BadInput]:
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


def bad_quantize_inputs() -> Iterator[BadInput]:
    def bad(what: str, call: Callable[[], Any], argument: str, got: str, allowed: str) -> BadInput:
        return BadInput("quantize_int8", what, call, argument, got, allowed)

    x, one, zero = torch.ones(M, K), torch.ones(1), bytes_(1)
    yield bad("x f64", quantize(x.double()), "x ", "float64", "bfloat16")
    yield bad("x int8", quantize(bytes_(M, K)), "x ", "int8", "bfloat16")
    yield bad("x None", quantize(None), "x ", "None", "torch.Tensor")
    yield bad("scale a number", quantize(x, scale=0.1), "scale", "float 0.1", "torch.Tensor or None")
    yield bad("symmetric a number", quantize(x, symmetric=1), "symmetric", "int 1", "bool")
    yield bad("x 1-D", quantize(x[0]), "x ", "1-D [70]", "2-D [m, k]")
    yield bad("x transposed", quantize(x.T), "x ", "70", "column stride 1")
    for value, text in ((0.0, "0"), (-1.0, "-1"), (torch.nan, "nan"), (torch.inf, "inf"), (1e-40, "e-41")):
        scale = torch.tensor([value])
        yield bad(f"scale {value}", quantize(x, scale=scale), "scale[0]", text, "finite")
    late = torch.tensor([[1.0], [2.0], [0.0]])
    yield bad("scale of the last row 0", quantize(x, scale=late), "scale[2]", "0", "finite")
    yield bad("scale f64", quantize(x, scale=one.double()), "scale", "float64", "float32")
    yield bad("scale of two", quantize(x, scale=torch.ones(2)), "scale", "1-D [2]", "[m, 1]")
    grid: dict[str, Any] = {"scale": one, "zero_point": zero}
    yield bad("zero point when symmetric", quantize(x, **grid), "zero_point", "given", "symmetric = False")
    yield bad(
        "zero point without scale",
        quantize(x, zero_point=zero, symmetric=False),
        "zero_point",
        "given",
        "only with scale",
    )
    yield bad("no zero point", quantize(x, scale=one, symmetric=False), "zero_point", "missing", "needs")
    grid = {"scale": one, "symmetric": False}
    yield bad("zero point int32", quantize(x, zero_point=zero.int(), **grid), "zero_point", "int32", "int8")
    yield bad("zero point of two", quantize(x, zero_point=bytes_(2), **grid), "zero_point", "[2]", "[m, 1]")
    yield bad("scale on another device", quantize(x, scale=one.to("meta")), "scale", "meta", "cpu")


def bad_pack_inputs() -> Iterator[BadInput]:
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


def bad_int4_inputs() -> Iterator[BadInput]:
    def bad(op: str, what: str, call: Callable[[], Any], argument: str, got: str, allowed: str) -> BadInput:
        return BadInput(op, what, call, argument, got, allowed)

    def pack(value: Any, layout: Any = "int4_tile") -> Callable[[], Any]:
        return lambda: lamina.pack_int4(value, layout)

    q = torch.zeros(N, K, dtype=torch.uint8)
    packed = lamina.pack_int4(q).data
    yield bad("pack_int4", "q of signed bytes", pack(bytes_(N, K)), "q ", "int8", "uint8")
    yield bad("pack_int4", "q a list", pack([[1]]), "q ", "list [[1]]", "torch.Tensor")
    yield bad("pack_int4", "q 1-D", pack(q[0]), "q ", "1-D [70]", "2-D [n, k]")
    yield bad("pack_int4", "q transposed", pack(q.T), "q ", "70", "column stride 1")
    yield bad("pack_int4", "a code of five bits", pack(q + 16), "q[0, 0]", "16", "0 to 15")
    yield bad("pack_int4", "layout unknown", pack(q, "gptq"), "layout", "gptq", '"int4_tile", "int4_rows"')
    yield bad("pack_int4", "layout a number", pack(q, 4), "layout", "int 4", "str")

    perm = torch.arange(K).int()

    def reorder(perm: Any) -> Callable[[], Any]:
        return lambda: lamina.pack_int4(q, perm=perm)

    yield bad("pack_int4", "perm a list", reorder([1]), "perm", "list [1]", "torch.Tensor or None")
    yield bad("pack_int4", "perm int64", reorder(perm.long()), "perm", "int64", "int32")
    yield bad("pack_int4", "perm 2-D", reorder(perm[None]), "perm", "2-D [1, 70]", "1-D [k]")
    yield bad("pack_int4", "perm beyond q", reorder(perm + 1), "perm[69]", "= 70;", "-1 to 69")

    def unpack(data: Any, n: int = N, layout: str = "int4_tile") -> Callable[[], Any]:
        return lambda: RAW.unpack_int4(data, n, K, layout)

    yield bad("unpack_int4", "negative n", unpack(packed, -5), "n = ", "-5", "negative")
    yield bad(
        "unpack_int4", "n of another weight", unpack(packed, 17), "data", "3-D [1, 2, 512]", "[2, 2, 512]"
    )
    yield bad("unpack_int4", "data int8", unpack(packed.to(INT8)), "data", "int8", "uint8")
    strided = packed.transpose(1, 2).contiguous().transpose(1, 2)
    yield bad("unpack_int4", "data permuted", unpack(strided), "data", "contiguous", ".contiguous()")
    yield bad("unpack_int4", "layout unknown", unpack(packed, N, "x"), "layout", '"x"', '"int4_tile"')


def bad_settings() -> Iterator[BadInput]:
    def explain(m: int, n: int, k: int) -> Callable[[], Any]:
        return lambda: RAW.explain_gemm_int8(m, n, k)

    def bad(op: str, what: str, call: Callable[[], Any], argument: str, got: str, allowed: str) -> BadInput:
        return BadInput(op, what, call, argument, got, allowed)

    yield bad("set_cpu_isa", "unknown", lambda: RAW.set_cpu_isa("sse9"), "name", "sse9", "allowed: auto")
    yield bad("explain_gemm_int8", "negative m", explain(-1, 2, 3), "m = ", "-1", "negative")
    yield bad("explain_gemm_int8", "deep k", explain(1, 2, 2**24), "k = ", "16777216", "at most 16777215")
    yield bad("explain_gemm_int8", "group 7", lambda: RAW.explain_gemm_int8(1, 2, 3, 7), "group", "7", "128")
    yield bad("explain_gemm_int8", "huge", explain(2**40, 2**40, 3), "m = ", "1099511627776", "2^63 bytes")
    yield bad(
        "explain_quantize_int8",
        "negative k",
        lambda: RAW.explain_quantize_int8(1, -2),
        "k = ",
        "-2",
        "negative",
    )

    def attention(*extents: int) -> Callable[[], Any]:
        return lambda: RAW.explain_paged_attention(*extents)

    op = "explain_paged_attention"
    yield bad(op, "no requests", attention(0, 1, 8, 4, 2), "batch = ", "0", "at least 1")
    yield bad(op, "few keys", attention(1, 9, 8, 4, 2), "context = ", "8", "q_len = 9")
    yield bad(op, "uneven heads", attention(1, 1, 8, 4, 3), "heads = ", "4", "multiple of kv_heads")


def bad_inputs() -> list[BadInput]:
    gemm_inputs = (*bad_gemm_inputs(), *bad_grouped_inputs(), *bad_quantized_inputs())
    return [
        *bad_quantize_inputs(),
        *bad_rms_norm_inputs(),
        *bad_silu_mul_inputs(),
        *gemm_inputs,
        *bad_pack_inputs(),
        *bad_int4_inputs(),
        *bad_sparse24_inputs(),
        *bad_matmul_sparse24_inputs(),
        *bad_gemm_int4_int8_inputs(),
        *bad_gemm_int4_inputs(),
        *bad_paged_attention_inputs(),
        *bad_paged_kv_inputs(),
        *bad_sample_inputs(),
        *bad_settings(),
    ]


def document() -> str:
    """The text of docs/errors.md."""
    lines = [
        "# Error messages of the ops",
        "",
        "`make docs` runs every bad input and writes this page. A bad input raises `ValueError`, or",
        "`TypeError` if an argument has a wrong Python type. The tests check that each message names the",
        "argument, its value and the allowed values, and that this page is current.",
    ]
    op = ""
    for bad in bad_inputs():
        if bad.op != op:
            op = bad.op
            lines += ["", f"## {op}", "", "| input | message |", "|---|---|"]
        lines.append(f"| {bad.what} | `{bad.message()}` |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(document(), end="")
