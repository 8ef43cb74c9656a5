"""The inputs that gemm_int4 refuses and gemm_int4_int8 does not refuse in the same words: see
bad_inputs.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

import lamina
from tests.support.bad_gemm_int4_int8 import CODES, GROUP, GROUPS, PACKED, SCALES
from tests.support.bad_input import RAW, BadInput, K, M, N, bytes_

OP = "gemm_int4"
ROWS = torch.ones(M, K)


def gemm(**changed: Any) -> Callable[[], Any]:
    """A good call with some arguments replaced."""
    arguments: dict[str, Any] = {"a": ROWS, "w": PACKED, "w_scale": SCALES, "group": GROUP} | changed
    return lambda: lamina.gemm_int4(**arguments)


def bad_inputs() -> Iterator[BadInput]:
    def bad(what: str, call: Callable[[], Any], argument: str, got: str, allowed: str) -> BadInput:
        return BadInput(OP, what, call, argument, got, allowed)

    yield bad("a None", gemm(a=None), "a ", "None", "torch.Tensor")
    yield bad("a int8", gemm(a=bytes_(M, K)), "a ", "int8", "bfloat16")
    yield bad("a f64", gemm(a=ROWS.double()), "a ", "float64", "bfloat16")
    yield bad("a 3-D", gemm(a=ROWS[None]), "a ", "3-D [1, 3, 70]", "2-D [m, k]")
    yield bad("a transposed", gemm(a=torch.ones(K, M).T), "a ", "column stride", "1")
    yield bad("k another than the weight's", gemm(a=ROWS[:, 1:]), "a ", "69", "70")
    yield bad("w a plain tensor", gemm(w=PACKED.data), "w ", "Tensor", "PackedInt4")
    tile = lamina.pack_int4(CODES, "int4_tile")
    yield bad("max_sms 0", gemm(max_sms=0), "max_sms", "max_sms = 0", "at least 1")
    yield bad("max_sms a bool", gemm(max_sms=True), "max_sms", "bool True", "int or None")
    yield bad("w in the layout for CUDA", gemm(w=tile), "w ", '"int4_tile"', 'allowed on cpu: "int4_rows"')
    yield bad("group 8", gemm(group=8), "group", "group = 8;", "positive multiple of 16")
    yield bad("group a float", gemm(group=32.0), "group", "float 32.0", "int")
    yield bad("group another than the scales'", gemm(group=64), "w_scale", "2-D [3, 5]", "[2, 5]")
    yield bad("w_scale as [n, groups]", gemm(w_scale=SCALES.T), "w_scale", "[5, 3]", "n = 5 of w")
    more = torch.ones(GROUPS + 1, N)
    yield bad("w_zero_point of more groups", gemm(w_zero_point=more), "w_zero_point", "[4, 5]", "[3, 5]")
    yield bad("w_zero_point int8", gemm(w_zero_point=bytes_(GROUPS, N)), "w_zero_point", "int8", "uint8")
    yield bad("bias of one", gemm(bias=torch.ones(1)), "bias", "1-D [1]", "n = 5")
    yield bad("out_dtype int32", gemm(out_dtype=torch.int32), "out_dtype", "int32", "bfloat16")
    yield bad("out_dtype a name", gemm(out_dtype="float16"), "out_dtype", "str 'float16'", "torch.dtype")
    yield bad("activation unknown", gemm(activation="relu"), "activation", '"relu"', '"gelu_tanh"')
    yield bad("gate of one row", gemm(gate=torch.ones(1, N)), "gate", "2-D [1, 5]", "[m, n] = [3, 5]")
    yield bad("residual a number", gemm(residual=2.0), "residual", "float 2.0", "torch.Tensor or None")
    perm = torch.arange(K).int()
    yield bad("perm of k another than the weight's", gemm(perm=perm[1:]), "perm", "69", "70")
    yield bad("perm int64", gemm(perm=perm.long()), "perm", "int64", "int32")
    yield bad("perm a list", gemm(perm=[0]), "perm", "list [0]", "torch.Tensor or None")
    strided = perm.repeat_interleave(2)[::2]
    yield bad("perm strided", gemm(perm=strided), "perm", "contiguous", ".contiguous()")
    for value in (-2, K, 2**31 - 1, -(2**31)):
        wrong = perm.index_fill(0, torch.tensor([5]), value)
        yield bad(f"perm of {value}", gemm(perm=wrong), "perm[5]", f"= {value};", "-1 to 69")
    yield bad("w on another device", gemm(w=PACKED.to("meta")), "w ", "meta", "cpu")
    yield BadInput(
        f"explain_{OP}", "group 7", lambda: RAW.explain_gemm_int4(1, 2, 30, 7), "group", "group = 7", "16"
    )
