"""Quantisation of weights, built on the ops."""

from __future__ import annotations

import torch
from torch import Tensor

from lamina._int4 import QuantizedInt4, by_group
from lamina.ops import quantize_int8

__all__ = ["QuantizedInt4", "quantize_weight_int4", "quantize_weight_int8"]

WEIGHT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# What a search multiplies a group's widest scale with.
SHRINKS = tuple(1 - step / 80 for step in range(41))


def quantize_weight_int8(w: Tensor) -> tuple[Tensor, Tensor]:
    """A float weight as int8 with one scale per output channel: w ~ q * scale[:, None].

    w        [n, k]  f32 | f16 | bf16, finite
    returns  q [n, k] int8 in [-127, 127], scale [n] f32 > 0
    Error    |q * scale - w| <= scale * (0.5 + 2^-14) per element, scale = max|w| / 127 of the row
    Raises   ValueError for another shape or dtype, and for a NaN or Inf, with its position
    """
    w = _checked("quantize_weight_int8", w)
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
    w = _checked(op, w)
    dtype = w.dtype if scale_dtype is None else scale_dtype
    if dtype not in WEIGHT_DTYPES:
        raise ValueError(f"{op}: scale_dtype must be float32, float16 or bfloat16, got {dtype}")
    if group != -1 and (group <= 0 or group % 16):
        raise ValueError(f"{op}: group = {group}; must be a positive multiple of 16, or -1 for all of k")
    k = w.shape[1]
    group = max(k, 1) if group == -1 else group
    grouped = by_group(w.float(), group)
    low, high = grouped.amin(2).clamp(max=0), grouped.amax(2).clamp(min=0)  # [n, groups]
    widest = torch.maximum(high, -low) / 7 if symmetric else high / 15 - low / 15
    limit = torch.finfo(dtype)
    if bool((widest > limit.max).any()):
        most = widest.max().item()
        raise ValueError(f"{op}: scale_dtype = {dtype} has no scale of {most:.6g}; float32 has")
    best: list[Tensor] = []
    for shrink in SHRINKS if search else SHRINKS[:1]:
        scale = (widest * shrink).to(dtype).clamp(min=limit.smallest_normal * limit.eps)
        scale = torch.where(widest > 0, scale, 1.0)
        steps = scale.float()[:, :, None]
        zero = (
            torch.full_like(low, 8.0) if symmetric else (-low * shrink / steps[:, :, 0]).round().clamp(0, 15)
        )
        codes = ((grouped / steps).round() + zero[:, :, None]).clamp(0, 15)
        error = ((codes - zero[:, :, None]) * steps - grouped).square().sum(2)
        new = [error, scale, zero, codes]
        is_better = error < best[0] if best else torch.ones_like(error, dtype=torch.bool)
        best = [
            torch.where(is_better if a.dim() == 2 else is_better[:, :, None], a, b)
            for a, b in zip(new, best or new, strict=True)
        ]
    _, scale, zero, codes = best
    q = codes.flatten(1)[:, :k].to(torch.uint8)
    zero_point = None if symmetric else zero.T.to(torch.uint8).contiguous()
    return QuantizedInt4(q.contiguous(), scale.T.contiguous(), zero_point, group)


def _checked(op: str, w: Tensor) -> Tensor:
    if w.dim() != 2:
        raise ValueError(f"{op}: w must be 2-D [n, k], got {w.dim()}-D {list(w.shape)}")
    if w.dtype not in WEIGHT_DTYPES:
        raise ValueError(f"{op}: w must be float32, float16 or bfloat16, got {w.dtype}")
    require_finite(f"{op}: w", w.detach())
    return w.detach()


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
