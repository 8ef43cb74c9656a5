"""Grids of int4 codes: the scale and the zero point of a group, found by rounding or by a search."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Factors of a group's widest scale that the search tries.
SHRINKS = tuple(1 - step / 80 for step in range(41))


class Grid(NamedTuple):
    """The scales and zero points of groups [n, groups, group], and the codes nearest to the fitted values."""

    scale: Tensor  # [n, groups] of scale_dtype
    zero: Tensor  # [n, groups] f32
    codes: Tensor  # [n, groups, group] f32


def fit_grid(op: str, grouped: Tensor, symmetric: bool, dtype: torch.dtype, search: bool) -> Grid:
    """Fits a scale and a zero point to each group of f32 values; the options are quantize_weight_int4's."""
    n, groups, group = grouped.shape
    parts = torch.split(grouped.flatten(0, 1), rows_at_a_time(grouped, group))
    fitted = [_fit(op, part, symmetric, dtype, search) for part in parts]
    scale, zero, codes = (torch.cat(tensors) for tensors in zip(*fitted, strict=True))
    return Grid(scale.view(n, groups), zero.view(n, groups), codes.view(n, groups, group))


def rows_at_a_time(x: Tensor, width: int) -> int:
    """How many rows of `width` elements a loop of small operations should take at a time.

    On the CPU so many that they stay in a core's cache, and just fewer than torch would split among threads.
    Where other processes use the cores too, threads wait for each other longer than an operation takes.
    """
    return max(1, 32767 // max(width, 1)) if x.device.type == "cpu" else max(x.numel(), 1)


def _fit(op: str, x: Tensor, symmetric: bool, dtype: torch.dtype, search: bool) -> tuple[Tensor, ...]:
    """Scale, zero point and codes of each row."""
    low, high = x.amin(1, keepdim=True).clamp(max=0), x.amax(1, keepdim=True).clamp(min=0)
    widest = torch.maximum(high, -low) / 7 if symmetric else high / 15 - low / 15
    limit = torch.finfo(dtype)
    if bool((widest > limit.max).any()):
        most = widest.max().item()
        raise ValueError(f"{op}: scale_dtype = {dtype} has no scale of {most:.6g}; float32 has")
    best: list[Tensor] = []
    for shrink in SHRINKS if search else SHRINKS[:1]:
        scale = (widest * shrink).to(dtype).clamp(min=limit.smallest_normal * limit.eps)
        scale = torch.where(widest > 0, scale, 1.0)
        steps = scale.float()
        zero = torch.full_like(low, 8.0) if symmetric else _round(-low * shrink / steps).clamp(0, 15)
        error = ((nearest_codes(x, steps, zero) - zero) * steps - x).square().sum(1, keepdim=True)
        new = [error, scale, zero]
        is_better = error < best[0] if best else torch.ones_like(error, dtype=torch.bool)
        best = [torch.where(is_better, a, b) for a, b in zip(new, best or new, strict=True)]
    _, scale, zero = best
    return scale, zero, nearest_codes(x, scale.float(), zero)


def nearest_codes(x: Tensor, steps: Tensor, zero: Tensor) -> Tensor:
    """The codes 0..15, in f32, whose values are nearest to x."""
    return (_round((x / steps).clamp(-16, 16)) + zero).clamp(0, 15)


def _round(x: Tensor) -> Tensor:
    """x to an integer, ties to even, |x| <= 2^22: near 1.5 * 2^23 the last place of an f32 is 1.

    torch.round uses MKL's threads for any size (torch 2.13, CPU), and the threads wait for each other: on 2
    cores with other work the search took 30 s with torch.round, and 3 s without (2026-11-23).
    """
    return (x + 1.5 * 2.0**23) - 1.5 * 2.0**23
