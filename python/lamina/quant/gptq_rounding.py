"""GPTQ: int4 weights that keep the outputs of a layer (Frantar et al., arXiv:2210.17323)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lamina.quant.checks import checked_group, checked_scale_dtype, checked_weight, checked_zero_dtype
from lamina.quant.compensation import cuts, replace_columns, require_options
from lamina.quant.grid import Grid, GridOptions, fit_grid, nearest_codes, rows_at_a_time
from lamina.quant.hessians import checked_hessian, inverse_factor
from lamina.quant.int4 import QuantizedInt4, as_quantized


def gptq(
    w: Tensor,
    hessian: Tensor,
    group: int = 128,
    *,
    symmetric: bool = True,
    act_order: bool = False,
    static_groups: bool = True,
    damp: float = 0.01,
    block: int = 64,
    scale_dtype: torch.dtype | None = None,
    zero_point_dtype: torch.dtype | None = None,
    search: bool = True,
) -> QuantizedInt4:
    """Rounds a float weight to int4 column by column; later columns compensate the errors of earlier ones.

    w            [n, k]  f32 | f16 | bf16, finite, any device
    hessian      [k, k]  f32 | f64: lamina.quant.hessian of the layer's inputs, or a positive multiple of it.
                 It must be symmetric and positive semidefinite, within rounding errors of 2^-20 of its trace
    group, symmetric, scale_dtype, zero_point_dtype, search   as in quantize_weight_int4
    act_order    False: rounds columns in order. The grid of a group is fitted when its first column is
                 reached, to the weights of that moment. True: rounds columns with a large diagonal first
    static_groups  with act_order. True: the grid of each group is fitted to `w` beforehand; the result has
                 ordinary groups and no g_idx. False: columns that are rounded one after the other form a
                 group, so that columns with a large diagonal share a grid, fitted as without act_order; the
                 result has a g_idx
    damp         > 0: this times the mean of the diagonal is added to the diagonal, so that `hessian` may have
                 any rank
    block        columns whose updates of later columns are applied together, for speed. The result is the
                 same except for the rounding of sums
    returns      QuantizedInt4. A column whose diagonal is 0, for an input that was always 0, is rounded to
                 nearest
    Raises   ValueError naming argument, value and allowed values; for a NaN or Inf its position
    Memory   2 n k bytes of codes and 24 k^2 of factors besides w, on the CPU
    """
    op = "gptq"
    w = checked_weight(op, w)
    dtype = checked_scale_dtype(op, scale_dtype, w)
    k = w.shape[1]
    group = checked_group(op, group, k)
    require_options(op, damp, block)
    hessian = checked_hessian(op, hessian, w)
    order, g_idx, refit = torch.arange(k, device=w.device), None, 0
    groups = order // group  # the group of each column, in rounding order
    if act_order:
        order = hessian.diagonal().argsort(descending=True, stable=True).to(w.device)
    if act_order and static_groups:
        groups = order // group
    else:
        refit = group
    if act_order and not static_groups:
        g_idx = torch.empty_like(groups, dtype=torch.int32)
        g_idx[order] = groups.int()
    factor = inverse_factor(op, hessian, damp, order)

    zero_dtype = checked_zero_dtype(op, zero_point_dtype, symmetric)
    grid = GridOptions(op, group, dtype, zero_dtype, search)
    options = Int4Options(grid, groups.tolist(), refit)
    parts = [_round(part, factor, order, options, block) for part in torch.split(w, rows_at_a_time(w, block))]
    made = Grid(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
    return as_quantized(made, grid, g_idx)


def _round(w: Tensor, factor: Tensor, order: Tensor, options: Int4Options, block: int) -> Grid:
    """Codes, scales and zero points of some rows of the weight; rows do not depend on each other."""
    rule = Int4Rounding(w, options)
    left = w.float().T[order]  # [k, rows], a copy: the columns that are left to round
    k = len(left)
    replace_columns(left, factor, cuts(k, block, rule.span), rule)
    q = torch.empty_like(rule.codes)
    q[order] = rule.codes
    return Grid(rule.scale, rule.zero, q.T.to(torch.uint8))


class Int4Options(NamedTuple):
    """How columns become int4."""

    grid: GridOptions
    groups: list[int]  # the group of each column, in the order of rounding
    refit: int  # grids are fitted anew after this number of columns; 0: all of them beforehand


class Int4Rounding:
    """The rule of replace_columns that rounds to int4. Holds the codes and the grids of some rows."""

    def __init__(self, w: Tensor, options: Int4Options) -> None:
        self.options = options
        rows, k = w.shape
        if options.refit:  # the loop fits a group's grid where the group begins
            groups = -(-k // options.grid.group)
            self.zero = torch.empty(rows, groups, dtype=torch.float32, device=w.device)
            self.scale = torch.empty_like(self.zero, dtype=options.grid.dtype)
        else:
            self.scale, self.zero, _ = fit_grid(w.float(), options.grid)
        self.codes = torch.empty(k, rows, dtype=torch.float32, device=w.device)

    @property
    def span(self) -> int:
        """The number of columns that share a grid that is fitted on the way, or 0."""
        return self.options.refit

    def reach(self, begin: int, left: Tensor) -> None:
        """Fits the grid of the group that begins here, if one does."""
        group = self.options.grid.group
        if self.span and begin % group == 0:
            fresh = fit_grid(left[:group].T, self.options.grid)
            self.scale[:, begin // group] = fresh.scale[:, 0]
            self.zero[:, begin // group] = fresh.zero[:, 0]

    def value(self, at: int, part: Tensor) -> Tensor:
        """The values of the codes nearest to a column."""
        g = self.options.groups[at]
        steps, origin = self.scale[:, g].float(), self.zero[:, g]
        self.codes[at] = nearest_codes(part[0], steps, origin)
        return (self.codes[at] - origin) * steps
