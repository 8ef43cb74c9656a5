"""gemm_int8: exact integers, then float64 with the error bound that the op documents."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from tests.reference import activation as activations

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


class Steps(NamedTuple):
    """What follows scales and bias: an activation's name, gate and residual [m, n]."""

    activation: str | None = None
    gate: F32 | None = None
    residual: F32 | None = None


def gemm_int8(
    acc: Int64,
    a_scale: F32,
    w_scale: F32,
    bias: F32 | None,
    out_dtype: torch.dtype,
    then: Steps = Steps(),  # noqa: B008  immutable
) -> Expected:
    """activation(acc * a_scale * w_scale + bias) * gate + residual in float64.

    Scales [1] or one a row / column, bias [n]; what is None is left out.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        product = acc * a_scale.reshape(-1, 1).astype(np.float64) * w_scale.reshape(1, -1)
        y: F64 = product.astype(np.float64)
        y = y if bias is None else y + bias.astype(np.float64)
        bound = 4 * U * np.abs(product) + U * np.abs(y)
        if then.activation is not None:
            s = activations.exact(then.activation, y)
            bound = activations.LIPSCHITZ * bound + activations.bound(then.activation, y, s)
            y = s
        if then.gate is not None:
            y = y * then.gate.astype(np.float64)
            bound = np.abs(then.gate) * bound + U * np.abs(y)
        if then.residual is not None:
            y = y + then.residual.astype(np.float64)
            bound = bound + U * np.abs(y)
        bound = bound + U_OUT[out_dtype] * np.abs(y) + TINY[out_dtype]
    return Expected(y, bound)


def gemm_int8_steps(
    acc: Int64,
    a_scale: F32,
    w_scale: F32,
    bias: F32 | None,
    out_dtype: torch.dtype,
    then: Steps = Steps(),  # noqa: B008  immutable
) -> torch.Tensor:
    """The documented f32 steps, each rounded once: the exact bits."""
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        y = acc.astype(np.float32) * a_scale.reshape(-1, 1) * w_scale.reshape(1, -1)
        y = y if bias is None else y + bias.reshape(1, -1)
        y = y if then.activation is None else activations.steps(then.activation, y)
        y = y if then.gate is None else y * then.gate
        y = y if then.residual is None else y + then.residual
    return torch.from_numpy(y).to(out_dtype)
