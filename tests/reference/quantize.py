"""quantize_int8 by its formula: float32 steps in the documented order, a row at a time."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FLT_MIN = np.float32(2.0**-126)
F32 = NDArray[np.float32]
Int8 = NDArray[np.int8]

# |x / scale - (q - zero_point)| of a value that did not saturate: rounding to a whole number, and three
# f32 roundings (scale, its reciprocal, the product) of a number below 256.
GRID_ERROR = 0.5 + 256 * 4 * 2.0**-24


class Quantized(NamedTuple):
    q: Int8  # [m, k]
    scale: F32  # [m, 1]
    zero_point: Int8  # [m, 1]


def quantize_int8(
    x: F32, scale: F32 | None = None, zero_point: Int8 | None = None, *, symmetric: bool = True
) -> Quantized:
    """x [m, k], already widened to f32 (exact from f16 and bf16); scale and zero_point [1] or [m]."""
    m, k = x.shape
    result = Quantized(np.zeros((m, k), np.int8), np.zeros((m, 1), np.float32), np.zeros((m, 1), np.int8))
    for i in range(m):
        given = None if scale is None else np.broadcast_to(scale.reshape(-1), (m,))[i]
        zero = 0 if zero_point is None else int(np.broadcast_to(zero_point.reshape(-1), (m,))[i])
        result.q[i], result.scale[i], result.zero_point[i] = _row(x[i], given, zero, symmetric)
    return result


def _row(x: F32, scale: np.float32 | None, zero_point: int, symmetric: bool) -> tuple[Int8, np.float32, int]:
    is_lost = np.isnan(x).any() if scale is not None else not np.isfinite(x).all()
    if is_lost:
        return np.zeros(x.shape, np.int8), np.float32(np.nan), 0
    if scale is None:
        scale, zero_point = _dynamic_grid(x, symmetric)
    inverse = np.float32(1) / scale
    with np.errstate(over="ignore"):
        steps = np.rint(x * inverse).astype(np.float64) + zero_point
    return np.clip(steps, -127 if symmetric else -128, 127).astype(np.int8), scale, zero_point


def _dynamic_grid(x: F32, symmetric: bool) -> tuple[np.float32, int]:
    if symmetric:
        largest = np.abs(x).max(initial=np.float32(0))
        return max(np.float32(largest) / np.float32(127), FLT_MIN), 0
    low, high = x.min(initial=np.float32(0)), x.max(initial=np.float32(0))
    scale = max(high / np.float32(255) - low / np.float32(255), FLT_MIN)
    inverse = np.float32(1) / scale
    zero_point = np.clip(np.rint(np.float32(-128) - low * inverse), -128, 127)
    return scale, int(zero_point)
