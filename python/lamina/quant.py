"""Quantisation of weights."""

from __future__ import annotations

import torch
from torch import Tensor

from lamina._int4 import (
    WEIGHT_DTYPES,
    QuantizedInt4,
    as_quantized,
    by_group,
    checked_group,
    checked_scale_dtype,
    checked_weight,
    fit_grid,
    require_finite,
)
from lamina.act_order import ActOrder, act_order
from lamina.gptq import gptq, hessian
from lamina.ops import quantize_int8

__all__ = [
    "WEIGHT_DTYPES",
    "ActOrder",
    "QuantizedInt4",
    "act_order",
    "gptq",
    "hessian",
    "quantize_weight_int4",
    "quantize_weight_int8",
    "require_finite",
]


def quantize_weight_int8(w: Tensor) -> tuple[Tensor, Tensor]:
    """A float weight as int8 with one scale per output channel: w ~ q * scale[:, None].

    w        [n, k]  f32 | f16 | bf16, finite
    returns  q [n, k] int8 in [-127, 127], scale [n] f32 > 0
    Error    |q * scale - w| <= scale * (0.5 + 2^-14) per element, scale = max|w| / 127 of the row
    Raises   ValueError for another shape or dtype, and for a NaN or Inf, with its position
    """
    w = checked_weight("quantize_weight_int8", w)
    quantized = quantize_int8(w if w.stride(1) == 1 else w.contiguous())
    return quantized.q, quantized.scale.squeeze(1)


def quantize_weight_int4(
    w: Tensor,
    group: int = 128,
    *,
    symmetric: bool = True,
    scale_dtype: torch.dtype | None = None,
    search: bool = False,
) -> QuantizedInt4:
    """A float weight as int4, each code rounded to nearest.

    w            [n, k]  f32 | f16 | bf16, finite, any device
    group        input features that share a scale: a multiple of 16, or -1 for all of k; the last may be
                 ragged
    symmetric    zero point 8 everywhere, scale = max|w| / 7; else scale = range / 15, of the group and 0
    scale_dtype  f32 | f16 | bf16; None is the dtype of w. Codes are made with the rounded scale
    search       of 1 to 0.5 times that scale, for each group the one of the least squared error
    returns      QuantizedInt4
    Error    without search |dequantize() - w| <= scale (0.5 + 15 u + 2^-14) per element, u = 2^-24 | 2^-11 |
             2^-8 for a scale in f32 | f16 | bf16; with it no group's squared error is larger
    Raises   ValueError naming argument, value and allowed values; for a NaN or Inf its position
    """
    op = "quantize_weight_int4"
    w = checked_weight(op, w)
    dtype = checked_scale_dtype(op, scale_dtype, w)
    k = w.shape[1]
    group = checked_group(op, group, k)
    grid = fit_grid(op, by_group(w.float(), group), symmetric, dtype, search)
    q = grid.codes.flatten(1)[:, :k]
    return as_quantized(q, grid.scale, None if symmetric else grid.zero, group)
