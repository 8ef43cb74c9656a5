"""gemm_int8: exact integers, then float64 with the error bound that the op documents."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

F64 = NDArray[np.float64]
F32 = NDArray[np.float32]
Int8 = NDArray[np.int8]
Int64 = NDArray[np.int64]

U = 2.0**-24  # unit roundoff of f32
U_OUT = {torch.float32: 0.0, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
TINY = {torch.float32: 2.0**-149, torch.float16: 2.0**-24, torch.bfloat16: 2.0**-133}


class Expected(NamedTuple):
    exact: F64
    bound: F64  # of |out - exact|, per element; the f32 steps neither overflow nor underflow


def accumulate(a: Int8, w: Int8, a_zero_point: Int8 | None = None) -> Int64:
    """sum_k (a - zero_point) * w, exact. a [m, k], w [n, k], a_zero_point [1] or [m]."""
    centred = a.astype(np.int64)
    if a_zero_point is not None:
        centred = centred - a_zero_point.reshape(-1, 1).astype(np.int64)
    return centred @ w.astype(np.int64).T


def gemm_int8(acc: Int64, a_scale: F32, w_scale: F32, bias: F32 | None, out_dtype: torch.dtype) -> Expected:
    """acc * a_scale * w_scale + bias in float64. Scales [1] or one a row / column, bias [n] or None."""
    with np.errstate(invalid="ignore", over="ignore"):
        product = acc * a_scale.reshape(-1, 1).astype(np.float64) * w_scale.reshape(1, -1)
        y = product if bias is None else product + bias.astype(np.float64)
        bound = 4 * U * np.abs(product) + U * np.abs(y) + U_OUT[out_dtype] * np.abs(y) + TINY[out_dtype]
    return Expected(y.astype(np.float64), bound)


def gemm_int8_steps(
    acc: Int64, a_scale: F32, w_scale: F32, bias: F32 | None, out_dtype: torch.dtype
) -> torch.Tensor:
    """The documented f32 steps, ((acc * a_scale) * w_scale) + bias, each rounded once: the exact bits."""
    with np.errstate(invalid="ignore", over="ignore"):
        y = acc.astype(np.float32) * a_scale.reshape(-1, 1) * w_scale.reshape(1, -1)
        y = y if bias is None else y + bias.reshape(1, -1)
    return torch.from_numpy(y).to(out_dtype)
