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


GROUP, CHUNK_GROUPS = 128, 8  # input features that share a scale, groups of a k chunk


def accumulate_groups(a: Int8, w: Int8, a_zero_point: Int8 | None = None) -> Int64:
    """accumulate() of every group of k: [groups, m, n]."""
    cuts = [slice(first, first + GROUP) for first in range(0, a.shape[1], GROUP)]
    groups = [accumulate(a[:, cut], w[:, cut], a_zero_point) for cut in cuts]
    return np.stack(groups) if groups else np.zeros((0, a.shape[0], w.shape[0]), np.int64)


def _by_group(acc: Int64, a_scale: F32, w_scale: F32) -> tuple[Int64, F32, F32]:
    """The arguments in shapes that broadcast to [groups, m, n]: a_scale may be [m, groups], w_scale [groups,
    n]. Without groups there is one group."""
    if acc.ndim == 2:
        return acc[None], a_scale.reshape(1, -1, 1), w_scale.reshape(1, 1, -1)
    groups, m, n = acc.shape
    a = a_scale.T[:, :, None] if a_scale.shape == (m, groups) else a_scale.reshape(1, -1, 1)
    w = w_scale[:, None, :] if w_scale.shape == (groups, n) else w_scale.reshape(1, 1, -1)
    return acc, a, w


def fused_multiply_add(x: F32, y: F32, z: F32) -> F32:
    """x * y + z, rounded once: float64 rounds to odd, which keeps the second rounding to f32 correct."""
    product = x.astype(np.float64) * y  # exact
    total = product + z
    back = total - product
    error = (product - (total - back)) + (z - back)
    is_even = total.view(np.int64) % 2 == 0
    neighbour = np.nextafter(total, np.copysign(np.inf, error))
    return np.where(np.isfinite(total) & (error != 0) & is_even, neighbour, total).astype(np.float32)


def _add_groups(acc: Int64, a_scale: F32, w_scale: F32) -> F32:
    """The documented f32 sum over groups; each argument broadcasts to [groups, m, n]."""
    groups, *shape = acc.shape
    a_scale, w_scale = (np.broadcast_to(s, (groups, *s.shape[1:])) for s in (a_scale, w_scale))
    total = np.full(shape, -0.0 if groups else 0.0, np.float32)
    for first in range(0, groups, CHUNK_GROUPS):
        chunk = np.full(shape, -0.0, np.float32)
        for g in range(first, min(first + CHUNK_GROUPS, groups)):
            chunk = fused_multiply_add(acc[g].astype(np.float32) * a_scale[g], w_scale[g], chunk)
        total = total + chunk
    return total


def roundings(groups: int | None) -> int:
    """The number of roundings in the f32 steps up to the bias: h of the documented bound."""
    return 4 if groups is None else 4 + min(groups, CHUNK_GROUPS) + -(-groups // CHUNK_GROUPS)


class Steps(NamedTuple):
    """The steps after scales and bias: the name of an activation, and gate and residual [m, n]."""

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

    acc [m, n], or [groups, m, n] to be added up. Scales [1], one a row / column, or one for each group too;
    bias [n]; a step whose operand is None is left out.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        sums, a, w = _by_group(acc, a_scale, w_scale)
        products = sums * a.astype(np.float64) * w
        y: F64 = products.sum(0)
        bound = roundings(None if acc.ndim == 2 else len(acc)) * U * np.abs(products).sum(0)
    return epilogue(y, bound, bias, out_dtype, then)


def epilogue(y: F64, bound: F64, bias: F32 | None, out_dtype: torch.dtype, then: Steps) -> Expected:
    """The epilogue of scaled sums y [m, n] that are known within `bound`."""
    with np.errstate(invalid="ignore", over="ignore"):
        y = y if bias is None else y + bias.astype(np.float64)
        bound = bound + U * np.abs(y)
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
        sums, a, w = _by_group(acc, a_scale, w_scale)
        y = (sums[0].astype(np.float32) * a[0]) * w[0] if acc.ndim == 2 else _add_groups(sums, a, w)
    return epilogue_steps(y, bias, out_dtype, then)


def epilogue_steps(y: F32, bias: F32 | None, out_dtype: torch.dtype, then: Steps) -> torch.Tensor:
    """The same by its documented f32 steps."""
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        y = y if bias is None else y + bias.reshape(1, -1)
        y = y if then.activation is None else activations.steps(then.activation, y)
        y = y if then.gate is None else y * then.gate
        y = y if then.residual is None else y + then.residual
    return torch.from_numpy(y).to(out_dtype)
