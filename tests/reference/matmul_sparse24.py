"""The products with 2:4 weights. No sum has a weight that is not kept, nor a NaN of its activation."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from tests.reference import gemm
from tests.reference.gemm import F32, F64, Expected, Steps, U
from tests.reference.gemm_int4 import CHUNK_K, UNDERFLOW, Sums

Kept = NDArray[np.bool_]


def matmul_sparse24(
    a: F32, w: F32, kept: Kept, bias: F32 | None, out_dtype: torch.dtype, then: Steps = Steps()  # noqa: B008
) -> Expected:  # fmt: skip
    """The op in float64, and the bound of its docstring. a [m, k], w and kept [n, k]."""
    (m, k), n = a.shape, len(w)
    y, magnitude = np.zeros((m, n)), np.zeros((m, n))
    with np.errstate(invalid="ignore", over="ignore"):
        for p in range(k):
            product = np.where(kept[:, p], a[:, p : p + 1].astype(np.float64) * w[:, p], 0.0)
            y, magnitude = y + product, magnitude + np.abs(product)
        bound: F64 = U * (1 + min(k, CHUNK_K) // 2 + -(-k // CHUNK_K)) * magnitude + UNDERFLOW * k
    return gemm.epilogue(y, bound, bias, out_dtype, then)


def steps(
    a: F32, w: F32, kept: Kept, bias: F32 | None, out_dtype: torch.dtype, then: Steps = Steps()  # noqa: B008
) -> torch.Tensor:  # fmt: skip
    """The same by its documented f32 steps: the exact bits."""
    (m, k), n = a.shape, len(w)
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        total = np.full((m, n), -0.0 if k else 0.0, np.float32)
        for first in range(0, k, CHUNK_K):
            chunk = np.full((m, n), -0.0, np.float32)
            for p in range(first, min(first + CHUNK_K, k)):
                chunk = np.where(kept[:, p], gemm.fused_multiply_add(a[:, p : p + 1], w[:, p], chunk), chunk)
            total = total + chunk
    return gemm.epilogue_steps(total, bias, out_dtype, then)


def matmul_sparse24_int8(a: NDArray[np.int8], w: NDArray[np.int8], kept: Kept) -> NDArray[np.int64]:
    """The exact sums; gemm.gemm_int8 goes on from there."""
    return gemm.accumulate(a, np.where(kept, w, np.int8(0)))


def matmul_sparse24_int4(q: NDArray[np.uint8], kept: Kept, zero: F32, scale: F32) -> F32:
    """The f32 weights of codes q [n, k] with zero points and scales [n, k]; `steps` goes on from there."""
    w: F32 = gemm.fused_multiply_add(q.astype(np.float32), scale, -(zero * scale))
    return np.where(kept, w, np.float32(0))


def matmul_sparse24_int4_int8(
    a: NDArray[np.int8], q: NDArray[np.uint8], kept: Kept, group: int, a_zero_point: NDArray[np.int8] | None
) -> Sums:
    """The sums over kept codes, a_sum [groups, m, n] too; gemm_int4.gemm_int4_int8 goes on from there."""
    (m, k), n = a.shape, len(q)
    group = max(k, 1) if group == -1 else group
    cuts = [slice(first, first + group) for first in range(0, k, group)]
    codes, ones = np.where(kept, q, 0).astype(np.int8), kept.astype(np.int8)
    acc, a_sum = (
        [gemm.accumulate(a[:, cut], w[:, cut], a_zero_point) for cut in cuts] for w in (codes, ones)
    )
    empty = np.zeros((0, m, n), np.int64)
    return Sums(np.stack(acc) if cuts else empty, np.stack(a_sum) if cuts else empty, group)
