"""int8 weights, one scale per output channel."""

from __future__ import annotations

from torch import Tensor

from lamina.ops import quantize_int8
from lamina.quant.checks import checked_weight


def quantize_weight_int8(w: Tensor) -> tuple[Tensor, Tensor]:
    """Quantises a float weight to int8 with one scale per output channel: w ~ q * scale[:, None].

    w        [n, k]  f32 | f16 | bf16, finite
    returns  q [n, k] int8 in [-127, 127], scale [n] f32 > 0
    Error    |q * scale - w| <= scale * (0.5 + 2^-14) per element, scale = max|w| / 127 of the row
    Raises   ValueError for another shape or dtype, and for a NaN or Inf, with its position
    """
    w = checked_weight("quantize_weight_int8", w)
    quantized = quantize_int8(w if w.stride(1) == 1 else w.contiguous())
    return quantized.q, quantized.scale.squeeze(1)
