"""int4 weights: the result of every quantiser, and rounding to nearest."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lamina.ops.dequantize import dequantize_int4
from lamina.quant.checks import checked_group, checked_scale_dtype, checked_weight, checked_zero_dtype
from lamina.quant.grid import Grid, GridOptions, fit_grid


class QuantizedInt4(NamedTuple):
    """An int4 weight: w[j, p] ~ (q[j, p] - zero_point[g, j]) * scale[g, j], g = p // group or g_idx[p]."""

    q: Tensor  # [n, k] uint8, codes 0..15, for lamina.pack_int4
    scale: Tensor  # [ceil(k / group), n] f32 | f16 | bf16, > 0
    zero_point: Tensor | None  # [ceil(k / group), n] uint8, 0..15, or f32 | f16 | bf16; None: 8
    group: int  # input features that share a scale
    g_idx: Tensor | None = None  # [k] int32: the group of each input feature; None is p // group

    def to(self, device: torch.device | str | int) -> QuantizedInt4:
        """The same weight on another device."""
        zero_point = None if self.zero_point is None else self.zero_point.to(device)
        g_idx = None if self.g_idx is None else self.g_idx.to(device)
        return QuantizedInt4(self.q.to(device), self.scale.to(device), zero_point, self.group, g_idx)

    def dequantize(self) -> Tensor:
        """The weight [n, k] in f32."""
        if self.g_idx is None:
            return dequantize_int4(self.q, self.scale, self.zero_point, self.group)
        zero = 8.0 if self.zero_point is None else self.zero_point.T.float()[:, self.g_idx]
        return (self.q.float() - zero) * self.scale.T.float()[:, self.g_idx]


def quantize_weight_int4(
    w: Tensor,
    group: int = 128,
    *,
    symmetric: bool = True,
    scale_dtype: torch.dtype | None = None,
    zero_point_dtype: torch.dtype | None = None,
    search: bool = False,
) -> QuantizedInt4:
    """Quantises a float weight to int4; each code is rounded to nearest.

    w            [n, k]  f32 | f16 | bf16, finite, any device
    group        input features that share a scale: a multiple of 16, or -1 for all of k; the last group may
                 be ragged
    symmetric    True: zero point 8 everywhere, scale = max|w| / 7. False: a zero point a group, and scale =
                 range / 15
    scale_dtype  f32 | f16 | bf16; None is the dtype of w. Codes are made with the rounded scale
    zero_point_dtype  only with symmetric = False. uint8, which None means: integers from 0 to 15, and the
                 range of a group is widened to hold 0. f32 | f16 | bf16: -min / scale, rounded to that dtype
                 before codes are made, so that the codes 0 and 15 are the ends of the range. A range below
                 max|w| 15 / 2^15 is widened, so that zero points stay below 2^16. A weight 0 may then become
                 one that is not 0
    search       True: also tries smaller ranges, and keeps for each group the one with the least squared
                 error: 1 to 0.5 times the range; with float zero points without up to a fifth at each end,
                 and then the least-squares fit to the codes
    returns      QuantizedInt4
    Error    without search |dequantize() - w| <= scale (0.5 + 15 u + 2^-14 + z) per element, u = 2^-24 |
             2^-11 | 2^-8 for a scale in f32 | f16 | bf16; z is 0 or, with float zero points, |zero_point|
             (v + 2^-22), v likewise for their dtype. With search no group's squared error is larger
    Raises   ValueError naming argument, value and allowed values; for a NaN or Inf its position
    """
    op = "quantize_weight_int4"
    w = checked_weight(op, w)
    dtype = checked_scale_dtype(op, scale_dtype, w)
    group = checked_group(op, group, w.shape[1])
    options = GridOptions(op, group, dtype, checked_zero_dtype(op, zero_point_dtype, symmetric), search)
    return as_quantized(fit_grid(w.float(), options), options)


def as_quantized(grid: Grid, options: GridOptions, g_idx: Tensor | None = None) -> QuantizedInt4:
    """The codes, scales and zero points of a grid as a QuantizedInt4."""
    dtype = options.zero_dtype
    zero_point = None if dtype is None else grid.zero.T.to(dtype).contiguous()
    q, scale = grid.codes.to(torch.uint8).contiguous(), grid.scale.T.contiguous()
    return QuantizedInt4(q, scale, zero_point, options.group, g_idx)
