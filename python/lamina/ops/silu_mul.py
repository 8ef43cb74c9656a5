"""The activation of a gated MLP, silu(gate) * up, with the result in floats or in int8."""

from __future__ import annotations

import torch
from torch import Tensor

from lamina._checks import (
    call,
    require_2d,
    require_bool,
    require_one_device,
    require_optional_tensors,
    require_tensors,
)
from lamina.ops.quantize_int8 import QuantizedInt8, fake_quantized
from lamina.ops.registration import Arguments, fake


def silu_mul(x: Tensor, up: Tensor | None = None) -> Tensor:
    """silu(gate) * up, of one tensor that holds both or of two tensors.

    x        [m, 2 n]  f32 | f16 | bf16, any row stride, m >= 0: the gate is in the first n columns, up in
             the others. With `up`: the gate [m, n]
    up       [m, n]  of the dtype of x, any row stride
    returns  [m, n] of the dtype of x: silu(gate) * up in f32, rounded once. torch rounds silu(gate) as well
    Error    |out - exact| <= ((7 u + t) |exact| + 2^-148 |up| + s) (1 + 2^-7) per element for a finite up,
             with u = 2^-24 and t = 0, 2^-11, 2^-8, s = 2^-149, 2^-24, 2^-133 for f32, f16, bf16. The tests
             use this expression
    NaN, Inf propagate as in f32 steps. The silu of -Inf is -0
    Raises   ValueError that names the argument, its value and the allowed values; TypeError for an argument
             of a wrong Python type (docs/errors.md lists both)
    Devices  CPU (generic, avx2, avx512_vnni), CUDA sm_80 and newer. All tensors are on one device. All
             devices and instruction sets give the same bits, and a row has the same bits in every batch.
             There is no gradient
    Source   csrc/ops/silu_mul/silu_mul.h
    """
    _require("silu_mul", x, up)
    out: Tensor = call(torch.ops.lamina.silu_mul, x, up)
    return out


def silu_mul_int8(x: Tensor, up: Tensor | None = None, *, symmetric: bool = True) -> QuantizedInt8:
    """quantize_int8(silu_mul(x, up), symmetric=symmetric) as one op: the input of an int8 down projection.

    x, up            as in silu_mul
    symmetric        as in quantize_int8
    returns          QuantizedInt8 of [m, n], with the bits that the two ops in sequence give: silu(gate) * up
                     is rounded to the dtype of x before it is quantised. A row with a NaN or an Inf gets
                     q = 0, zero_point = 0 and scale = NaN
    Error            that of silu_mul, and on top that of quantize_int8
    Raises           as silu_mul
    Devices          as silu_mul
    Source           csrc/ops/silu_mul/silu_mul.h
    """
    _require("silu_mul_int8", x, up)
    require_bool("silu_mul_int8", "symmetric", symmetric)
    q, scale, zero_point = call(torch.ops.lamina.silu_mul_int8, x, up, symmetric)
    return QuantizedInt8(q, scale, None if symmetric else zero_point)


def _require(op: str, x: Tensor, up: Tensor | None) -> None:
    require_tensors(op, x=x)
    require_optional_tensors(op, up=up)


@fake("silu_mul")
def _fake_silu_mul(given: Arguments) -> Tensor:
    result: Tensor = given.x.new_empty(_extents("silu_mul", given))
    return result


@fake("silu_mul_int8")
def _fake_silu_mul_int8(given: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    return fake_quantized(given.x, *_extents("silu_mul_int8", given), given.symmetric)


def _extents(op: str, given: Arguments) -> tuple[int, int]:
    """m and n of a fake kernel."""
    require_2d(op, "x", given.x, "[m, 2 n]" if given.up is None else "[m, n]")
    require_one_device(op, vars(given))
    m, columns = given.x.shape
    return m, columns // 2 if given.up is None else columns
