"""GPTQ: int4 weights that keep the outputs of a layer (Frantar et al., arXiv:2210.17323)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from lamina.ops.dequantize import by_group
from lamina.quant.checks import checked_group, checked_scale_dtype, checked_weight, require_finite
from lamina.quant.grid import Grid, fit_grid, nearest_codes, rows_at_a_time
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
    search: bool = True,
) -> QuantizedInt4:
    """Rounds a float weight to int4 column by column; later columns compensate the errors of earlier ones.

    w            [n, k]  f32 | f16 | bf16, finite, any device
    hessian      [k, k]  f32 | f64: lamina.quant.hessian of the layer's inputs, or a positive multiple of it.
                 It must be symmetric and positive semidefinite, within rounding errors of 2^-20 of its trace
    group, symmetric, scale_dtype, search   as in quantize_weight_int4
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
    if not 0 < damp < math.inf:
        raise ValueError(f"{op}: damp = {damp}; must be above 0 and finite")
    if block < 1:
        raise ValueError(f"{op}: block = {block}; must be at least 1")
    hessian = _checked_hessian(op, hessian, w)
    order, g_idx, refit = torch.arange(k, device=w.device), None, None
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
    factor = _inverse_factor(op, hessian, damp, order)

    options = _Options(op, group, symmetric, dtype, search, order, groups.tolist(), refit, block)
    parts = [_round(part, factor, options) for part in torch.split(w, rows_at_a_time(w, block))]
    codes, scale, zero = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return as_quantized(codes, scale, None if symmetric else zero, group, g_idx)


class _Options(NamedTuple):
    op: str
    group: int
    symmetric: bool
    dtype: torch.dtype
    search: bool
    order: Tensor
    groups: list[int]  # the group of each column, in that order
    refit: int | None  # grids are fitted anew after this number of columns
    block: int

    def fit(self, w: Tensor, group: int) -> Grid:
        return fit_grid(self.op, by_group(w, group), self.symmetric, self.dtype, self.search)


def _round(w: Tensor, factor: Tensor, options: _Options) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales and zero points of some rows of the weight; rows do not depend on each other."""
    group, order = options.group, options.order
    if options.refit:  # the loop fits a group's grid where the group begins
        zero = torch.empty(len(w), -(-w.shape[1] // group), dtype=torch.float32, device=w.device)
        scale = torch.empty_like(zero, dtype=options.dtype)
    else:
        scale, zero, _ = options.fit(w.float(), group)
    left = w.float().T[order]  # [k, rows], a copy: the columns that are left to round
    k = len(left)
    codes = torch.empty_like(left)
    # Grids that are fitted on the way need up-to-date weights: parts then end where groups end.
    cuts = {*range(0, k, options.block), *range(0, k, options.refit or k or 1), k}
    for begin, end in pairwise(sorted(cuts)):
        if options.refit and begin % group == 0:
            fresh = options.fit(left[begin : begin + group].T, group)
            scale[:, begin // group], zero[:, begin // group] = fresh.scale[:, 0], fresh.zero[:, 0]
        part = left[begin:end]
        errors = torch.empty_like(part)
        for i in range(end - begin):
            row = factor[begin + i, begin + i : end]
            g = options.groups[begin + i]
            steps, origin = scale[:, g].float(), zero[:, g]
            codes[begin + i] = nearest_codes(part[i], steps, origin)
            errors[i] = (part[i] - (codes[begin + i] - origin) * steps) / row[0]
            part[i:].addr_(row, errors[i], alpha=-1)
        left[end:].addmm_(factor[begin:end, end:].T, errors, alpha=-1)
    q = torch.empty_like(codes)
    q[order] = codes
    return q.T.to(torch.uint8), scale, zero


def hessian(inputs: Tensor | Iterable[Tensor]) -> Tensor:
    """x.T @ x / rows for the inputs x of a layer, for gptq.

    inputs   [..., k] floats of any dtype, or an iterable of such tensors, all on the device of the result
    returns  [k, k]  f32
    """
    total = Hessian()
    for x in [inputs] if isinstance(inputs, Tensor) else inputs:
        total.add(x)
    return total.mean()


class Hessian:
    """Sums x.T @ x of a layer's inputs, in f32."""

    def __init__(self) -> None:
        self.rows = 0
        self._sum: Tensor | None = None

    def add(self, x: Tensor) -> None:
        """Adds the rows of x [..., k], nested or not."""
        if x.is_nested:
            for part in x.unbind():
                self.add(part)
            return
        # An input may come from torch.inference_mode, whose tensors are read-only outside of that mode.
        with torch.inference_mode(False), torch.no_grad():
            rows = x.detach().reshape(-1, x.shape[-1]).float()
            if self._sum is None:
                self._sum = rows.new_zeros(rows.shape[1], rows.shape[1])
            self._sum.addmm_(rows.T, rows)
            self.rows += rows.shape[0]

    def mean(self) -> Tensor:
        """The sum divided by the number of rows, [k, k] f32."""
        if self._sum is None or not self.rows:
            raise ValueError("hessian: inputs must hold at least one row, got none")
        return self._sum / self.rows


def _checked_hessian(op: str, hessian: Tensor, w: Tensor) -> Tensor:
    k = w.shape[1]
    if hessian.shape != (k, k):
        raise ValueError(f"{op}: hessian must be [k, k] with k = {k} of w, got {list(hessian.shape)}")
    if hessian.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{op}: hessian must be float32 or float64, got {hessian.dtype}")
    if hessian.device != w.device:
        raise ValueError(f"{op}: hessian must be on {w.device} like w, got {hessian.device}")
    require_finite(f"{op}: hessian", hessian)
    _require_semidefinite(op, hessian.double())
    return hessian


def _require_semidefinite(op: str, h: Tensor) -> None:
    """Raises a ValueError if h [k, k] is no Hessian of any inputs; errors of f32 sums are allowed."""
    if not len(h):
        return
    rounding = float(h.diagonal().abs().sum()) * 2.0**-20 or torch.finfo(h.dtype).tiny
    skew = (h - h.T).abs()
    if float(skew.max()) > rounding:
        i, j = divmod(int(skew.argmax()), len(h))
        raise ValueError(
            f"{op}: hessian must be symmetric and positive semidefinite; "
            f"[{i}, {j}] is {h[i, j]:.6g} and [{j}, {i}] is {h[j, i]:.6g}"
        )
    shifted = h.clone()
    shifted.diagonal().add_(rounding)
    if bool(torch.linalg.cholesky_ex(shifted).info):
        raise _indefinite(op, h)


def _indefinite(op: str, h: Tensor) -> ValueError:
    smallest, largest = torch.linalg.eigvalsh(h)[[0, -1]].tolist()
    return ValueError(
        f"{op}: hessian must be symmetric and positive semidefinite; "
        f"its smallest eigenvalue is {smallest:.6g}, its largest {largest:.6g}"
    )


def _inverse_factor(op: str, hessian: Tensor, damp: float, order: Tensor) -> Tensor:
    """The upper triangular u of inverse(hessian) = u.T @ u, rows and columns in `order`; made in f64."""
    h = hessian.double()[order][:, order]
    live = h.diagonal() > 0
    h /= h.diagonal()[live].mean() if bool(live.any()) else 1.0  # a factor does not change the rounding
    diagonal = h.diagonal()
    diagonal[~live] = 1.0  # a column that no input reaches depends on no other
    diagonal += damp
    # The lower factor of the reversed matrix, reversed again, is the upper factor r of h = r @ r.T.
    lower, info = torch.linalg.cholesky_ex(h.flip(0, 1))
    if bool(info):  # damp adds less to the diagonal than an allowed rounding error takes
        raise _indefinite(op, hessian.double())
    one = torch.eye(len(h), dtype=h.dtype, device=h.device)
    upper: Tensor = torch.linalg.solve_triangular(lower.flip(0, 1), one, upper=True)
    return upper.float()
