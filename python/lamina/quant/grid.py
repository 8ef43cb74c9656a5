"""Grids of int4 codes: the scale and the zero point of a group, found by rounding or by a search."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from lamina.ops.dequantize import by_group

# Factors of a group's widest scale that the search tries, with integer zero points and without any.
SHRINKS = tuple(1 - step / 80 for step in range(41))
# Parts of a group's range by which the search moves each end inwards, with float zero points.
INSETS = (0, 0.015, 0.03, 0.05, 0.08, 0.13, 0.2)
# With float zero points a scale is at least this part of a group's largest value. Zero points are then below
# 2^16, so that f16 holds them.
LEAST_SCALE = 2.0**-15


class GridOptions(NamedTuple):
    """The arguments of quantize_weight_int4 besides the weight, checked."""

    op: str
    group: int
    dtype: torch.dtype  # of the scales
    zero_dtype: torch.dtype | None  # of the zero points; None: every zero point is 8
    search: bool


class Grid(NamedTuple):
    """The scales and zero points of groups, and the codes nearest to the fitted values."""

    scale: Tensor  # [n, groups] of options.dtype
    zero: Tensor  # [n, groups] f32, of values that options.zero_dtype has
    codes: Tensor  # [n, k] f32


def fit_grid(w: Tensor, options: GridOptions) -> Grid:
    """Fits a scale and a zero point to each group of w [n, k] f32."""
    whole = w.shape[1] // options.group * options.group
    # The ragged last group apart: padding would count as weights.
    parts = [part for part in torch.split(w, [whole, w.shape[1] - whole], 1) if part.shape[1]] or [w]
    fitted = [_fit_groups(by_group(part, options.group), options) for part in parts]
    return Grid(*(torch.cat(tensors, 1) for tensors in zip(*fitted, strict=True)))


def _fit_groups(grouped: Tensor, options: GridOptions) -> tuple[Tensor, ...]:
    """Scales and zero points [n, groups], and codes [n, k], of values [n, groups, group]."""
    n, groups, group = grouped.shape
    fit = _fit_integer if options.zero_dtype in (None, torch.uint8) else _fit_float
    rows = torch.split(grouped.flatten(0, 1), rows_at_a_time(grouped, group))
    fitted = zip(*(fit(part, options) for part in rows), strict=True)
    scale, zero, codes = (torch.cat(tensors) for tensors in fitted)
    return scale.view(n, groups), zero.view(n, groups), codes.view(n, groups * group)


def rows_at_a_time(x: Tensor, width: int) -> int:
    """How many rows of `width` elements a loop of small operations should take at a time.

    On the CPU so many that they stay in a core's cache, and just fewer than torch would split among threads.
    Where other processes use the cores too, threads wait for each other longer than an operation takes.
    """
    return max(1, 32767 // max(width, 1)) if x.device.type == "cpu" else max(x.numel(), 1)


def _fit_integer(x: Tensor, options: GridOptions) -> tuple[Tensor, ...]:
    """Scale, zero point and codes of each row. The range holds 0, so that a zero point is 0 to 15."""
    low, high = x.amin(1, keepdim=True).clamp(max=0), x.amax(1, keepdim=True).clamp(min=0)
    is_symmetric = options.zero_dtype is None
    widest = torch.maximum(high, -low) / 7 if is_symmetric else high / 15 - low / 15
    _require_scales(options, widest)
    best = _Best(x)
    for shrink in SHRINKS if options.search else SHRINKS[:1]:
        scale = torch.where(widest > 0, _rounded(widest * shrink, options.dtype), 1.0)
        zero = torch.full_like(low, 8.0)
        if not is_symmetric:
            zero = _round(-low * shrink / scale.float()).clamp(0, 15)
        best.offer(scale, zero)
    return best.scale, best.zero, best.codes


def _fit_float(x: Tensor, options: GridOptions) -> tuple[Tensor, ...]:
    """As _fit_integer. Codes 0 and 15 are the ends of the range, which need not hold 0.

    The search goes on with the straight line of least squares through the values, as a function of their
    codes. In blocks 0 and 3 of all-MiniLM-L6-v2 (2026-11-30), groups of 32, the error |w_int4 - w| / |w| is
    0.0802 without search, 0.0729 with the moved ends, 0.0717 with the line.
    """
    assert options.zero_dtype is not None
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    widest, largest = high / 15 - low / 15, torch.maximum(high, -low)
    least = largest * LEAST_SCALE
    _require_scales(options, torch.maximum(widest, least))
    best = _Best(x)

    def offer(step: Tensor, code: Tensor | float, value: Tensor) -> None:
        """A grid of this step, on which `code` is `value`."""
        scale = _rounded(torch.maximum(step, least), options.dtype)
        scale = torch.where(largest > 0, scale, 1.0)
        best.offer(scale, (code - value / scale.float()).to(options.zero_dtype).float())

    for below, above in product(INSETS if options.search else INSETS[:1], repeat=2):
        offer(widest * (1 - below - above), 0.0, low + widest * (15 * below))
    if options.search:
        codes = best.codes
        code, value = codes.mean(1, keepdim=True), x.mean(1, keepdim=True)
        spread = (codes - code).square().sum(1, keepdim=True)
        slope = ((codes - code) * (x - value)).sum(1, keepdim=True) / spread
        offer(torch.where(spread > 0, slope, widest), code, value)
    return best.scale, best.zero, best.codes


class _Best:
    """The grid of the least squared error for each row of x, of those offered; the first one of equals."""

    def __init__(self, x: Tensor) -> None:
        self._x = x
        self._error: Tensor | None = None

    def offer(self, scale: Tensor, zero: Tensor) -> None:
        """Takes the grid for the rows where it is better."""
        steps = scale.float()
        error = ((nearest_codes(self._x, steps, zero) - zero) * steps - self._x).square().sum(1, keepdim=True)
        if self._error is None:
            self._error, self.scale, self.zero = error, scale, zero
            return
        is_better = error < self._error
        self._error = torch.where(is_better, error, self._error)
        self.scale = torch.where(is_better, scale, self.scale)
        self.zero = torch.where(is_better, zero, self.zero)

    @property
    def codes(self) -> Tensor:
        """The codes on that grid."""
        return nearest_codes(self._x, self.scale.float(), self.zero)


def _require_scales(options: GridOptions, widest: Tensor) -> None:
    """Raises a ValueError unless the dtype of the scales holds them."""
    if bool((widest > torch.finfo(options.dtype).max).any()):
        most = widest.max().item()
        raise ValueError(
            f"{options.op}: scale_dtype = {options.dtype} has no scale of {most:.6g}; float32 has"
        )


def _rounded(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """f32 scales in another dtype, above 0: to nearest, but up where the dtype has fewer digits (subnormal).

    Rounded down there, a range of 15 steps could become one of 20 steps.
    """
    limit = torch.finfo(dtype)
    least = limit.smallest_normal * limit.eps
    rounded = scale.to(dtype)
    is_low = (scale < limit.smallest_normal) & (rounded.float() < scale)
    return torch.where(is_low, rounded + least, rounded).clamp(min=least)


def nearest_codes(x: Tensor, steps: Tensor, zero: Tensor) -> Tensor:
    """The codes 0..15, in f32, whose values are nearest to x."""
    whole = _round(zero)  # for an integer zero point x / steps itself is rounded
    return (_round((x / steps + (zero - whole)).clamp(-(2.0**17), 2.0**17)) + whole).clamp(0, 15)


def _round(x: Tensor) -> Tensor:
    """x to an integer, ties to even, |x| <= 2^22: near 1.5 * 2^23 the last place of an f32 is 1.

    torch.round uses MKL's threads for any size (torch 2.13, CPU), and the threads wait for each other: on 2
    cores with other work the search took 30 s with torch.round, and 3 s without (2026-11-23).
    """
    return (x + 1.5 * 2.0**23) - 1.5 * 2.0**23
