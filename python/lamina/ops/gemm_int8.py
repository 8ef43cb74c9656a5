"""W8A8 matrix product: int8 activations times packed int8 weights."""

from __future__ import annotations

import torch
from torch import Tensor

from lamina._checks import (
    call,
    require_2d,
    require_device,
    require_dtype,
    require_optional_tensors,
    require_tensors,
)
from lamina.pack import PackedInt8


def gemm_int8(
    a: Tensor,
    w: PackedInt8,
    a_scale: Tensor,
    w_scale: Tensor,
    *,
    a_zero_point: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """((a - a_zero_point) @ w.T) * a_scale * w_scale + bias: int8 matrix product, exact up to the scaling.

    a             [m, k]  int8, any row stride, m >= 0
    w             PackedInt8 of an int8 [n, k] weight (lamina.pack_int8)
    a_scale       f32, 1 element (per tensor) or [m, 1] (per token)
    w_scale       f32, 1 element (per tensor) or [n] (per output channel)
    a_zero_point  int8, 1 element or [m, 1]; None is 0
    bias          [n]  f32 | f16 | bf16
    out_dtype     f32 | f16 | bf16
    returns       [m, n]  out_dtype: ((float(acc) * a_scale) * w_scale) + bias in f32, then one rounding
    Error    acc is the exact integer. Per element, with u = 2^-24, u_out = 0 | 2^-11 | 2^-8 for
             f32 | f16 | bf16, tiny the smallest subnormal of out_dtype, p = |acc * a_scale * w_scale| and
             y the exact result: |out - y| <= 4 u p + u |y| + u_out |y| + tiny where no f32 step overflows;
             the tests use this expression
    Raises   ValueError or, for what is not a tensor, TypeError, naming argument, value and allowed values
             (docs/errors.md)
    Devices  CPU (generic, avx2, avx512_vnni, amx_int8), CUDA sm_80 and newer with m <= 2^31 - 1 and
             n <= 65535 * 64; all tensors on one; bitwise equal on all.  Row-invariant, independent of the
             thread count
    Source   csrc/ops/gemm_int8/gemm_int8.h
    """
    require_tensors("gemm_int8", a=a, a_scale=a_scale, w_scale=w_scale)
    require_optional_tensors("gemm_int8", a_zero_point=a_zero_point, bias=bias)
    require_dtype("gemm_int8", "out_dtype", out_dtype)
    if not isinstance(w, PackedInt8):
        raise TypeError(f"lamina::gemm_int8: w must be PackedInt8 (lamina.pack_int8), got {type(w).__name__}")
    if a.dim() == 2 and a.shape[1] != w.k:
        raise ValueError(f"lamina::gemm_int8: a must be 2-D [m, k] with k = {w.k} of w, got {list(a.shape)}")
    out: Tensor = call(
        torch.ops.lamina.gemm_int8, a, w.data, w.column_sums, a_scale, w_scale, a_zero_point, bias, out_dtype
    )
    return out


def _fake_gemm_int8(
    a: Tensor,
    w: Tensor,
    w_sums: Tensor,
    a_scale: Tensor,
    w_scale: Tensor,
    a_zero_point: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype = torch.float32,
) -> Tensor:
    require_2d("gemm_int8", "a", a, "[m, k]")
    if w_sums.dim() != 1:
        raise ValueError(f"lamina::gemm_int8: w_sums must be 1-D [n], got {w_sums.dim()}-D")
    scales = {"a_scale": a_scale, "w_scale": w_scale, "a_zero_point": a_zero_point}
    require_device("gemm_int8", a, w=w, w_sums=w_sums, bias=bias, **scales)
    return a.new_empty((a.size(0), w_sums.size(0)), dtype=out_dtype)
