"""The ops by their definitions in float64, with the error bounds of their docstrings.

No kernel of lamina takes part. Everything is computed on the device of the arguments: a GPU can check large
products there. tests/reference is a second, independent set of definitions, and the tests compare the two.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lamina.ops.pack_int4 import MOST_CODE, TILE_K

U = 2.0**-24  # unit roundoff of f32
FLT_MIN, UNDERFLOW = 2.0**-126, 2.0**-149
U_OUT = {torch.float32: 0.0, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
TINY = {torch.float32: UNDERFLOW, torch.float16: 2.0**-24, torch.bfloat16: 2.0**-133}
K_CHUNK = 1024  # input features whose sum is complete before it is added to the sums of other chunks
EXACT_GROUP = 4096  # f32 holds the sums of so many codes times int8 exactly
# |x / scale - (q - zero_point)| of a value that did not saturate: rounding to an integer, and three f32
# roundings (scale, its reciprocal, the product) of a number below 256.
GRID_ERROR = 0.5 + 256 * 4 * 2.0**-24


class Expected(NamedTuple):
    """Results in float64, and the bound of |out - exact| of each element."""

    exact: Tensor
    bound: Tensor


def gemm_int8(
    a: Tensor,
    w: Tensor,
    a_scale: Tensor,
    w_scale: Tensor,
    out_dtype: torch.dtype,
    *,
    group: int | None = None,
    a_zero_point: Tensor | None = None,
    bias: Tensor | None = None,
) -> Expected:
    """a [m, k] and w [n, k] int8; a_scale [m, groups] and w_scale [groups, n], of all k without `group`."""
    k = a.shape[1]
    centred = a.double() if a_zero_point is None else a.double() - a_zero_point.double()
    exact = torch.zeros(len(a), len(w), dtype=torch.float64, device=a.device)
    sizes = torch.zeros_like(exact)
    cuts = _cuts(k, group or k)
    for g, cut in enumerate(cuts):
        outer = a_scale[:, g : g + 1].double() * w_scale[g].double()
        product = (centred[:, cut] @ w[:, cut].double().T) * outer
        exact += product
        sizes += product.abs()
    chunk = K_CHUNK // (group or K_CHUNK)  # groups
    steps = 4 if group is None else 4 + min(chunk, len(cuts)) + -(-len(cuts) // chunk)
    return _finished(exact, steps * U * sizes, bias, out_dtype)


def gemm_int4_int8(
    a: Tensor,
    q: Tensor,
    w_scale: Tensor,
    group: int,
    a_scale: Tensor,
    out_dtype: torch.dtype,
    *,
    w_zero_point: Tensor | None = None,
    a_zero_point: Tensor | None = None,
    bias: Tensor | None = None,
) -> Expected:
    """a [m, k] int8 and codes q [n, k]; a_scale [m, 1], w_scale and w_zero_point [groups, n]."""
    k = a.shape[1]
    group = max(k, 1) if group == -1 else group
    centred = a.double() if a_zero_point is None else a.double() - a_zero_point.double()
    exact = torch.zeros(len(a), len(q), dtype=torch.float64, device=a.device)
    sizes, lost = torch.zeros_like(exact), torch.zeros_like(exact)
    cuts = _cuts(k, group)
    for g, cut in enumerate(cuts):
        outer = a_scale.double() * w_scale[g].double()
        acc, a_sum = centred[:, cut] @ q[:, cut].double().T, centred[:, cut].sum(1, keepdim=True)
        shift = a_sum * (8.0 if w_zero_point is None else w_zero_point[g].double())
        product = (acc - shift) * outer
        exact += product
        sizes += product.abs()
        if w_zero_point is not None and group > EXACT_GROUP:
            lost += (acc.abs() + shift.abs()) * outer.abs()
    unit = math.lcm(group, TILE_K)
    chunk = max(K_CHUNK // unit, 1) * unit // group  # groups
    steps = 4 + min(chunk, len(cuts)) + -(-len(cuts) // chunk)
    return _finished(exact, steps * U * sizes + 2 * U * lost, bias, out_dtype)


def gemm_int4(
    a: Tensor,
    q: Tensor,
    w_scale: Tensor,
    group: int,
    out_dtype: torch.dtype,
    *,
    w_zero_point: Tensor | None = None,
    bias: Tensor | None = None,
    on_cuda: bool = False,
) -> Expected:
    """a [m, k] floats and codes q [n, k]; w_scale and w_zero_point [groups, n].

    CUDA has its own bound. On a CPU, bf16 activations with integer zero points have the larger of two bounds,
    because the instruction set chooses between two ways to compute.
    """
    k = a.shape[1]
    chunks, group = -(-k // K_CHUNK), max(k, 1) if group == -1 else group
    zero_point = torch.full_like(w_scale, 8.0) if w_zero_point is None else w_zero_point
    scale, zero = (t.double().repeat_interleave(group, 0)[:k].T for t in (w_scale, zero_point))
    x, w, sizes = a.double(), (q.double() - zero) * scale, a.double().abs()
    if on_cuda:
        limits = torch.finfo(a.dtype)
        beyond = (zero - zero.round().clamp(0, MOST_CODE)) * scale  # a zero point may lie between codes
        rounded = limits.eps / 2 * (w.abs() + 2 * beyond.abs()) + limits.smallest_normal * limits.eps
        steps = 3 + 2 * min(k, K_CHUNK) + chunks
        bound = sizes @ rounded.T + steps * U * (sizes @ (w.abs() + rounded).T) + UNDERFLOW * k
    else:
        spread = w.abs() if w_zero_point is None else w.abs() + (zero * scale).abs()
        steps = 3 + min(k, K_CHUNK) + chunks
        bound = steps * U * (sizes @ spread.T) + UNDERFLOW * (k + sizes.sum(1, keepdim=True))
        if a.dtype == torch.bfloat16 and (w_zero_point is None or w_zero_point.dtype == torch.uint8):
            chunk = min(k, K_CHUNK)
            steps = 2 + min(group, chunk) + -(-chunk // group) + chunks
            flushed = FLT_MIN * (w.abs() + scale.abs()).sum(1)
            bound = torch.maximum(bound, steps * U * (sizes @ w.abs().T) + UNDERFLOW * k + flushed)
    return _finished(x @ w.T, bound, bias, out_dtype)


def quantize_int8(
    x: Tensor, scale: Tensor | None = None, zero_point: Tensor | None = None, symmetric: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """q, scale and zero point, with the very bits of the op: every step is rounded to f32."""
    x = x.double()
    bad = torch.isnan(x).any(1, keepdim=True)
    low = x.amin(1, keepdim=True).clamp(max=0)
    high = x.amax(1, keepdim=True).clamp(min=0)
    zero = torch.zeros_like(low)
    if scale is not None:
        step = scale.double()
        zero = zero if zero_point is None else zero_point.double()
        inverse = _f32(1 / step)
    else:
        bad |= torch.isinf(x).any(1, keepdim=True)
        widest = torch.maximum(high, -low)
        step = _f32(widest / 127) if symmetric else _f32(_f32(high / 255) - _f32(low / 255))
        step = step.clamp(min=FLT_MIN)
        inverse = _f32(1 / step)
        if not symmetric:
            zero = torch.round(_f32(-128 - _f32(low * inverse))).clamp(-128, 127)
    least = -127 if symmetric else -128
    q = (torch.round(_f32(x * inverse)) + zero).clamp(least, 127)
    q, zero = torch.where(bad, 0.0, q), torch.where(bad, 0.0, zero)
    return q, torch.where(bad, math.nan, step), zero


def _cuts(k: int, group: int) -> list[slice]:
    return [slice(first, first + group) for first in range(0, k, max(group, 1))]


def _finished(y: Tensor, bound: Tensor, bias: Tensor | None, out_dtype: torch.dtype) -> Expected:
    """The bias, and rounding to out_dtype, after sums y that are known within `bound`."""
    y = y if bias is None else y + bias.double()
    return Expected(y, bound + (U + U_OUT[out_dtype]) * y.abs() + TINY[out_dtype])


def _f32(x: Tensor) -> Tensor:
    return x.float().double()


def rms_norm(z: Tensor, weight: Tensor, eps: float) -> Expected:
    """z [m, n], the new residual if there is one; weight [n]. Sums of squares must not overflow f32."""
    values, scales = z.double(), weight.double()
    mean = values.square().mean(1, keepdim=True) + torch.tensor(eps).double()
    exact = values / mean.sqrt() * scales
    columns = 4096 // z.dtype.itemsize  # that a block of a GPU takes at once
    steps = 14 + -(-z.shape[1] // columns)
    relative = (steps / 2 + 5) * U + 2 * U_OUT[z.dtype]
    smallest = max(TINY[z.dtype] / 2, UNDERFLOW)
    return Expected(exact, (exact.abs() * relative + smallest * (1 + scales.abs())) * (1 + 2.0**-6))


def silu_mul(gate: Tensor, up: Tensor) -> Expected:
    """gate and up [m, n]."""
    factor = up.double()
    exact = torch.nn.functional.silu(gate.double()) * factor
    bound = exact.abs() * (7 * U + U_OUT[gate.dtype]) + 2.0**-148 * factor.abs() + TINY[gate.dtype]
    return Expected(exact, bound * (1 + 2.0**-7))
