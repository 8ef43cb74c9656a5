"""Quantisation of weights, built on the ops."""

from __future__ import annotations

import torch
from torch import Tensor

from lamina.ops import quantize_int8

WEIGHT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def quantize_weight_int8(w: Tensor) -> tuple[Tensor, Tensor]:
    """A float weight as int8 with one scale per output channel: w ~ q * scale[:, None].

    w        [n, k]  f32 | f16 | bf16, finite
    returns  q [n, k] int8 in [-127, 127], scale [n] f32 > 0
    Error    |q * scale - w| <= scale * (0.5 + 2^-14) per element, scale = max|w| / 127 of the row
    Raises   ValueError for another shape or dtype, and for a NaN or Inf, with its position
    """
    if w.dim() != 2:
        raise ValueError(f"quantize_weight_int8: w must be 2-D [n, k], got {w.dim()}-D {list(w.shape)}")
    if w.dtype not in WEIGHT_DTYPES:
        raise ValueError(f"quantize_weight_int8: w must be float32, float16 or bfloat16, got {w.dtype}")
    w = w.detach()
    require_finite("quantize_weight_int8: w", w)
    quantized = quantize_int8(w if w.stride(1) == 1 else w.contiguous())
    return quantized.q, quantized.scale.squeeze(1)


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
