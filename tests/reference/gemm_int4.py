"""The products of int4 weights: their f32 steps, and float64 with the documented bounds."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from tests.reference import gemm
from tests.reference.gemm import F32, F64, Expected, Int8, Int64, Steps, U

SYMMETRIC = 8
UNDERFLOW = gemm.TINY[torch.float32]  # twice the rounding error of an f32 that is below the normal numbers
CHUNK_K, TILE_K = 1024, 64
FLUSHED = 2.0**-126  # bf16 products take smaller numbers for 0
# The input features of a line in the order in which bf16 products add them.
LINE_ORDER = (2, 0, 3, 1, 6, 4, 7, 5)
# The sums of a group of this size, at most 255 * 15 * 4096, are exact in f32.
EXACT_GROUP = 4096

UInt8 = NDArray[np.uint8]


class Sums(NamedTuple):
    """The sums of a [m, k], minus its zero points, and codes [n, k]."""

    acc: Int64  # [groups, m, n] sums of products
    a_sum: Int64  # [groups, m, 1] sums of activations
    group: int  # input features


class Scales(NamedTuple):
    """Scales and zero points in f32, exact from f16, bf16 and uint8."""

    a: F32  # [1] or one a row
    w: F32  # [groups, n]
    zero: F32 | None  # [groups, n]; None is 8


def accumulate(a: Int8, q: UInt8, group: int, a_zero_point: Int8 | None = None) -> Sums:
    """The exact sums. group: input features of each group but the last; -1 for all of k."""
    (m, k), n = a.shape, len(q)
    group = max(k, 1) if group == -1 else group
    cuts = [slice(first, first + group) for first in range(0, k, group)]
    ones = np.ones((1, k), np.uint8)
    acc, a_sum = (
        [gemm.accumulate(a[:, cut], w[:, cut].astype(np.int8), a_zero_point) for cut in cuts]
        for w in (q, ones)
    )
    if not cuts:
        return Sums(np.zeros((0, m, n), np.int64), np.zeros((0, m, 1), np.int64), group)
    return Sums(np.stack(acc), np.stack(a_sum), group)


def gathered(a: torch.Tensor, perm: torch.Tensor, nothing: torch.Tensor) -> torch.Tensor:
    """a [m, any] in the order of perm; where perm is -1, `nothing` [m]."""
    columns = [nothing if feature < 0 else a[:, feature] for feature in perm.tolist()]
    return torch.stack(columns, 1) if columns else a[:, :0]


def k_chunk_groups(group: int) -> int:
    """The groups of a k chunk, a multiple of the group and of a tile: the largest up to CHUNK_K, or else
    the smallest."""
    least = math.lcm(group, TILE_K)
    return max(CHUNK_K // least, 1) * least // group


def roundings(sums: Sums) -> int:
    """The number of roundings in the f32 steps up to the bias: h of the documented bound."""
    groups, each = len(sums.acc), k_chunk_groups(sums.group)
    return 4 + min(each, groups) + -(-groups // each)


def gemm_int4_int8(
    sums: Sums, scales: Scales, bias: F32 | None, out_dtype: torch.dtype, then: Steps = Steps()  # noqa: B008
) -> Expected:  # fmt: skip
    """The op in float64, and the bound of its docstring."""
    zero: F32 | float = SYMMETRIC if scales.zero is None else scales.zero[:, None]
    outer = scales.w[:, None].astype(np.float64) * scales.a.reshape(-1, 1)  # [groups, m | 1, n]
    shifts = sums.a_sum * np.asarray(zero, np.float64)
    products: F64 = (sums.acc - shifts) * outer
    bound = roundings(sums) * U * np.abs(products).sum(0)
    if scales.zero is not None and sums.group > EXACT_GROUP:
        bound = bound + 2 * U * ((np.abs(sums.acc) + np.abs(shifts)) * np.abs(outer)).sum(0)
    return gemm.epilogue(products.sum(0), bound, bias, out_dtype, then)


def gemm_int4_int8_steps(
    sums: Sums, scales: Scales, bias: F32 | None, out_dtype: torch.dtype, then: Steps = Steps()  # noqa: B008
) -> torch.Tensor:  # fmt: skip
    """The documented f32 steps, each rounded once: the exact bits."""
    groups, m, n = sums.acc.shape
    each = k_chunk_groups(sums.group)
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        total = np.full((m, n), -0.0 if groups else 0.0, np.float32)
        for first in range(0, groups, each):
            chunk = np.full((m, n), -0.0, np.float32)
            for g in range(first, min(first + each, groups)):
                chunk = gemm.fused_multiply_add(_less_zero(sums, scales, g), scales.w[g], chunk)
            total = total + chunk
        total = total * scales.a.reshape(-1, 1)
    return gemm.epilogue_steps(total, bias, out_dtype, then)


def _less_zero(sums: Sums, scales: Scales, g: int) -> F32:
    """x of group g."""
    acc, a_sum = sums.acc[g], sums.a_sum[g]
    if scales.zero is None:
        x: F32 = (acc - SYMMETRIC * a_sum).astype(np.float32)
        return x
    return gemm.fused_multiply_add(-scales.zero[g], a_sum.astype(np.float32), acc.astype(np.float32))


def _of_columns(of_groups: F32, group: int, k: int) -> F32:
    """[groups, n] as [n, k]."""
    rows: F32 = np.repeat(of_groups, max(k, 1) if group == -1 else group, axis=0)[:k]
    columns: F32 = rows.T
    return columns


def gemm_int4(
    a: F32, q: UInt8, group: int, scales: Scales, bias: F32 | None, out_dtype: torch.dtype, then: Steps
) -> Expected:
    """gemm_int4 in float64, and the bound of its docstring; scales.a is not used."""
    k = a.shape[1]
    scale = _of_columns(scales.w, group, k).astype(np.float64)
    zero = SYMMETRIC if scales.zero is None else _of_columns(scales.zero, group, k).astype(np.float64)
    w = (q.astype(np.float64) - zero) * scale
    spread = np.abs(w) if scales.zero is None else np.abs(w) + np.abs(zero * scale)
    steps, magnitude = 3 + min(k, CHUNK_K) + -(-k // CHUNK_K), np.abs(a).astype(np.float64)
    bound = steps * U * (magnitude @ spread.T) + UNDERFLOW * (k + magnitude.sum(1, keepdims=True))
    return gemm.epilogue(a.astype(np.float64) @ w.T, bound, bias, out_dtype, then)


def gemm_int4_half(
    a: F32, q: UInt8, group: int, scales: Scales, bias: F32 | None, out_dtype: torch.dtype, then: Steps,
    dtype: torch.dtype,
) -> Expected:  # fmt: skip
    """The same where weights are rounded to the dtype of a, f16 or bf16, and tensor cores add in f32."""
    k = a.shape[1]
    scale = _of_columns(scales.w, group, k).astype(np.float64)
    zero = float(SYMMETRIC) if scales.zero is None else _of_columns(scales.zero, group, k).astype(np.float64)
    w, magnitude = (q.astype(np.float64) - zero) * scale, np.abs(a).astype(np.float64)
    beyond = np.abs((zero - np.clip(np.rint(zero), 0, 15)) * scale)  # the part past the nearest code
    limits = torch.finfo(dtype)
    rounded = limits.eps / 2 * (np.abs(w) + 2 * beyond) + limits.smallest_normal * limits.eps
    steps = 3 + 2 * min(k, CHUNK_K) + -(-k // CHUNK_K)
    bound = magnitude @ rounded.T + steps * U * (magnitude @ (np.abs(w) + rounded).T) + UNDERFLOW * k
    return gemm.epilogue(a.astype(np.float64) @ w.T, bound, bias, out_dtype, then)


def gemm_int4_steps(
    a: F32, q: UInt8, group: int, scales: Scales, bias: F32 | None, out_dtype: torch.dtype, then: Steps
) -> torch.Tensor:
    """The same by its documented f32 steps: the exact bits."""
    (m, k), n = a.shape, len(q)
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        scale = _of_columns(scales.w, group, k)
        zero = np.float32(SYMMETRIC) if scales.zero is None else _of_columns(scales.zero, group, k)
        w = gemm.fused_multiply_add(q.astype(np.float32), scale, -(zero * scale))
        total = np.full((m, n), -0.0 if k else 0.0, np.float32)
        for first in range(0, k, CHUNK_K):
            chunk = np.full((m, n), -0.0, np.float32)
            for p in range(first, min(first + CHUNK_K, k)):
                chunk = gemm.fused_multiply_add(a[:, p : p + 1], w[:, p], chunk)
            total = total + chunk
    return gemm.epilogue_steps(total, bias, out_dtype, then)


def gemm_int4_bf16(
    a: F32, q: UInt8, group: int, scales: Scales, bias: F32 | None, out_dtype: torch.dtype, then: Steps
) -> Expected:
    """gemm_int4 in float64, and the bound of its docstring for bf16 products on a CPU."""
    k = a.shape[1]
    group = max(k, 1) if group == -1 else group
    scale = _of_columns(scales.w, group, k).astype(np.float64)
    zero = SYMMETRIC if scales.zero is None else _of_columns(scales.zero, group, k).astype(np.float64)
    integers, magnitude = q.astype(np.float64) - zero, np.abs(a).astype(np.float64)
    chunk = min(k, CHUNK_K)
    steps = 2 + min(group, chunk) + -(-chunk // group) + -(-k // CHUNK_K)
    with np.errstate(invalid="ignore"):
        flushed = FLUSHED * (np.abs(scale) * (np.abs(integers) + 1)).sum(1)
        bound = steps * U * (magnitude @ np.abs(integers * scale).T) + UNDERFLOW * k + flushed
        exact = a.astype(np.float64) @ (integers * scale).T
    return gemm.epilogue(exact, bound, bias, out_dtype, then)


def gemm_int4_bf16_steps(
    a: F32, q: UInt8, group: int, scales: Scales, bias: F32 | None, out_dtype: torch.dtype, then: Steps
) -> torch.Tensor:
    """The same by its documented steps: the exact bits."""
    (m, k), n = a.shape, len(q)
    group = max(k, 1) if group == -1 else group
    beyond = -k % len(LINE_ORDER)
    a, q = np.pad(a, ((0, 0), (0, beyond))), np.pad(q, ((0, 0), (0, beyond)))
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        total = np.full((m, n), -0.0 if k else 0.0, np.float32)
        for first in range(0, k, CHUNK_K):
            chunk, at, end = np.full((m, n), -0.0, np.float32), first, min(first + CHUNK_K, k)
            while at < end:
                g = at // group
                stop = min((g + 1) * group, end)
                zero = np.float32(SYMMETRIC) if scales.zero is None else scales.zero[g]
                piece = np.full((m, n), -0.0, np.float32)
                for p in (line + i for line in range(at, stop, len(LINE_ORDER)) for i in LINE_ORDER):
                    w = q[:, p].astype(np.float32) - zero
                    piece = _flushed(gemm.fused_multiply_add(_flushed(a[:, p : p + 1]), w, piece))
                chunk = gemm.fused_multiply_add(piece, scales.w[g], chunk)
                at = stop
            total = total + chunk
    return gemm.epilogue_steps(total, bias, out_dtype, then)


def _flushed(x: F32) -> F32:
    flushed: F32 = np.where(np.abs(x) < FLUSHED, np.copysign(np.float32(0), x), x)
    return flushed
