"""What the ways to make an int4 weight share: the result, and scales of groups."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

GROUP_STEP = 16  # csrc/ops/gemm_int4/problem.h: every group is a multiple
WEIGHT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# What a search multiplies a group's widest scale with.
SHRINKS = tuple(1 - step / 80 for step in range(41))


class QuantizedInt4(NamedTuple):
    """An int4 weight: w[j, p] ~ (q[j, p] - zero_point[g, j]) * scale[g, j], g = p // group or g_idx[p]."""

    q: Tensor  # [n, k] uint8, codes 0..15: what lamina.pack_int4 takes
    scale: Tensor  # [ceil(k / group), n] f32 | f16 | bf16, > 0
    zero_point: Tensor | None  # [ceil(k / group), n] uint8, 0..15; None is 8 everywhere
    group: int  # input features that share a scale
    g_idx: Tensor | None = None  # [k] int32: the group of each input feature; None is p // group

    def dequantize(self) -> Tensor:
        """The weight [n, k] in f32 that the codes stand for."""
        k = self.q.shape[1]
        if self.g_idx is not None:
            of_group = self.scale.T.float()[:, self.g_idx]
            origin = 8.0 if self.zero_point is None else self.zero_point.T.float()[:, self.g_idx]
            return (self.q.float() - origin) * of_group
        codes = by_group(self.q.float(), self.group)
        zero = 8.0 if self.zero_point is None else self.zero_point.T[:, :, None].float()
        return ((codes - zero) * self.scale.T[:, :, None].float()).flatten(1)[:, :k]


class Grid(NamedTuple):
    """The values that groups [n, groups, group] may take, and the nearest codes of what it was fitted to."""

    scale: Tensor  # [n, groups] of scale_dtype
    zero: Tensor  # [n, groups] f32
    codes: Tensor  # [n, groups, group] f32


def fit_grid(op: str, grouped: Tensor, symmetric: bool, dtype: torch.dtype, search: bool) -> Grid:
    """A scale and a zero point of each group of f32 values; the options are quantize_weight_int4's."""
    n, groups, group = grouped.shape
    parts = torch.split(grouped.flatten(0, 1), rows_at_a_time(grouped, group))
    fitted = [_fit(op, part, symmetric, dtype, search) for part in parts]
    scale, zero, codes = (torch.cat(tensors) for tensors in zip(*fitted, strict=True))
    return Grid(scale.view(n, groups), zero.view(n, groups), codes.view(n, groups, group))


def rows_at_a_time(x: Tensor, width: int) -> int:
    """Rows of `width` that a loop of small operations takes at a time.

    On the CPU what stays in a core's cache, and just below what torch splits among threads: they would wait
    for each other in every operation, for longer than it takes where other processes have the cores too.
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
    """x to an integer, ties to even, |x| <= 2^22: where 1.5 * 2^23 is added, a unit is the last place.

    torch.round goes to MKL's threads however little there is to do (torch 2.13, CPU), and they wait for each
    other: on 2 cores that had other work the search took 30 s so, and 3 s like this (2026-11-23).
    """
    return (x + 1.5 * 2.0**23) - 1.5 * 2.0**23


def by_group(x: Tensor, group: int) -> Tensor:
    """[n, k] as [n, groups, group], the last filled up with zeros."""
    n, k = x.shape
    group = min(group, max(k, 1))  # what is more is all of k
    groups = -(-k // group)
    return torch.nn.functional.pad(x, (0, groups * group - k)).reshape(n, groups, group)


def add_to_features(x: Tensor, perm: Tensor, k: int) -> Tensor:
    """[rows, k] where column perm[p] has the sum of columns p of x [rows, K]; -1 is left out."""
    padded = x.new_zeros(len(x), k + 1)
    return padded.index_add_(1, torch.where(perm < 0, k, perm), x)[:, :k]


def as_quantized(
    q: Tensor, scale: Tensor, zero: Tensor | None, group: int, g_idx: Tensor | None = None
) -> QuantizedInt4:
    """Of codes [n, k] and scales and zero points [n, groups]."""
    zero_point = None if zero is None else zero.T.to(torch.uint8).contiguous()
    return QuantizedInt4(q.to(torch.uint8).contiguous(), scale.T.contiguous(), zero_point, group, g_idx)


def checked_weight(op: str, w: Tensor) -> Tensor:
    """w [n, k] without its gradient, if it can be quantised."""
    if w.dim() != 2:
        raise ValueError(f"{op}: w must be 2-D [n, k], got {w.dim()}-D {list(w.shape)}")
    if w.dtype not in WEIGHT_DTYPES:
        raise ValueError(f"{op}: w must be float32, float16 or bfloat16, got {w.dtype}")
    require_finite(f"{op}: w", w.detach())
    return w.detach()


def checked_group(op: str, group: int, k: int) -> int:
    """The input features that share a scale, -1 resolved."""
    require_group(op, group)
    return max(k, 1) if group == -1 else group


def require_group(op: str, group: int) -> None:
    """Raises a ValueError for a group that the kernels do not know."""
    if group != -1 and (group <= 0 or group % 16):
        raise ValueError(f"{op}: group = {group}; must be a positive multiple of 16, or -1 for all of k")


def checked_scale_dtype(op: str, wanted: torch.dtype | None, w: Tensor) -> torch.dtype:
    """The dtype of the scales: that of w by default."""
    dtype = w.dtype if wanted is None else wanted
    if dtype not in WEIGHT_DTYPES:
        raise ValueError(f"{op}: scale_dtype must be float32, float16 or bfloat16, got {dtype}")
    return dtype


def require_finite(name: str, w: Tensor) -> None:
    """Raises a ValueError that names the first NaN or Inf of w."""
    finite = torch.isfinite(w)
    if bool(finite.all()):
        return
    bad = torch.nonzero(~finite)
    at = tuple(bad[0].tolist())
    raise ValueError(
        f"{name} holds {len(bad)} NaN or Inf, the first at {list(at)} ({w[at].item()}); it must be finite"
    )
