"""W8A8 matrix product: int8 activations times packed int8 weights, and what follows it in the same pass."""

from __future__ import annotations

import torch
from torch import Tensor

from lamina._checks import (
    call,
    require_2d,
    require_bool,
    require_dtype,
    require_one_device,
    require_optional_int,
    require_optional_str,
    require_optional_tensors,
    require_tensors,
)
from lamina.ops.pack_int8 import GROUP, PackedInt8
from lamina.ops.quantize_int8 import QuantizedInt8, fake_quantized
from lamina.ops.registration import Arguments, fake


def gemm_int8(
    a: Tensor,
    w: PackedInt8,
    a_scale: Tensor,
    w_scale: Tensor,
    *,
    a_zero_point: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype = torch.float32,
    activation: str | None = None,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    max_sms: int | None = None,
) -> Tensor:
    """activation(((a - a_zero_point) @ w.T) * a_scale * w_scale + bias) * gate + residual: W8A8.

    a             [m, k]  int8, any row stride, m >= 0
    w             PackedInt8 of an int8 weight [n, k], from lamina.pack_int8
    a_scale       f32, 1 element (per tensor) or [m, 1] (per token). If w was packed with group=128 also
                  [m, G], any strides, G = ceil(k / 128): scales along k. quantize_int8(x.view(-1, 128))
                  makes them where 128 divides k
    w_scale       f32, 1 element (per tensor) or [n] (per output channel). If w was packed with group=128
                  also [G, n], any strides
    a_zero_point  int8, 1 element or [m, 1]. None means 0
    bias          [n]  f32 | f16 | bf16
    out_dtype     f32 | f16 | bf16
    activation    None | "gelu" (with erf) | "gelu_tanh" | "silu"
    gate          [m, n]  f32 | f16 | bf16, any row stride, such as the up projection of a gated MLP
    residual      [m, n]  f32 | f16 | bf16, any row stride
    max_sms       CUDA: the most SMs that the call occupies, at least 1, so that other work can run beside
                  the call. None means all. The result does not depend on max_sms. torch.compile compiles
                  each value anew. The CPU ignores max_sms; torch.set_num_threads limits its threads
    returns       [m, n]  out_dtype: ((float(acc) * a_scale) * w_scale) + bias, activation, * gate,
                  + residual, step by step in f32, then one rounding. Arguments that are None are left out
    Groups   If w was packed with group=128, the product is sum_g (float(acc_g) * a_scale[:, g]) * w_scale[g],
             where acc_g is the exact integer sum of group g. Fused multiply-adds sum a k chunk of 8 groups
             in f32; then the chunks are added. Both run in order and start from -0
    Error    The integer sum acc is exact. Per element, as long as no f32 step over- or underflows:
             |out - r| <= |gate| (L (h u p + u |y|) + e) + u (|z| + |r|) + u_out |r| + tiny
             where y is the sum with bias, s = activation(y), z = s * gate and r = z + residual, all exact;
             u = 2^-24, u_out = 0 | 2^-11 | 2^-8 for f32 | f16 | bf16, and tiny is the smallest subnormal of
             out_dtype.  h = 4 and p = |acc * a_scale * w_scale|; with groups h = 4 + min(G, 8) + ceil(G / 8)
             and p = sum_g |acc_g * a_scale_g * w_scale_g|.  Without activation L = 1 and e = 0; with one
             L = 1.13 and e = 6 u |s| (1 + c min(y, 0)^2) + 2^-148, c = 0 for silu, 1 for gelu and gelu_tanh.
             Without gate |gate| is 1 and |z| is left out; without residual |r| of the second term is left
             out. The tests use this expression
    NaN, Inf propagate. The activations of -Inf are -0
    Raises   ValueError that names the argument, its value and the allowed values; TypeError for an argument
             of a wrong Python type (docs/errors.md lists both)
    Devices  CPU (generic, avx2, avx512_vnni, amx_int8), CUDA sm_80 and newer (mma.sync; wgmma on sm_90) with
             m and n of at most 2^31 - 65536. All tensors are on one device. A row has the same bits in
             every batch, on every device and instruction set, with every thread count and max_sms
    Source   csrc/ops/gemm_int8/gemm_int8.h
    """
    optional = {"a_zero_point": a_zero_point, "bias": bias, "gate": gate, "residual": residual}
    _check("gemm_int8", a, w, a_scale, w_scale, activation, **optional)
    require_optional_int("gemm_int8", "max_sms", max_sms)
    require_dtype("gemm_int8", "out_dtype", out_dtype)
    out: Tensor = call(
        torch.ops.lamina.gemm_int8, a, w.data, w.column_sums, a_scale, w_scale, a_zero_point, bias, out_dtype,
        activation, gate, residual, max_sms,
    )  # fmt: skip
    return out


def gemm_int8_quantized(
    a: Tensor,
    w: PackedInt8,
    a_scale: Tensor,
    w_scale: Tensor,
    *,
    a_zero_point: Tensor | None = None,
    bias: Tensor | None = None,
    activation: str | None = None,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    out_scale: Tensor | None = None,
    symmetric: bool = True,
    max_sms: int | None = None,
) -> QuantizedInt8:
    """quantize_int8(gemm_int8(...), scale=out_scale, symmetric=symmetric) as one op: the next layer's input.

    a ... residual  as in gemm_int8
    out_scale       f32, 1 element or [m, 1], finite and >= 2^-126, only with symmetric=True: static scales,
                    and the product's epilogue writes int8. None: a scale per token, found from f32 rows in a
                    workspace
    symmetric       as in quantize_int8
    max_sms         as in gemm_int8
    returns         QuantizedInt8: q [m, n] int8, scale [m, 1] f32, zero_point [m, 1] int8 or None
    Error    The result has the bits of the two ops, the product in f32; their bounds hold
    Raises   ValueError that names the argument, its value and the allowed values; TypeError for an argument
             of a wrong Python type (docs/errors.md lists both). On CUDA an out_scale that is not allowed
             raises nothing: its row gets q = 0 and scale = NaN
    Devices  as gemm_int8
    Source   csrc/ops/gemm_int8/quantized.h
    """
    op = "gemm_int8_quantized"
    optional = {"a_zero_point": a_zero_point, "bias": bias, "gate": gate, "residual": residual}
    _check(op, a, w, a_scale, w_scale, activation, **optional, out_scale=out_scale)
    require_bool(op, "symmetric", symmetric)
    require_optional_int(op, "max_sms", max_sms)
    q, scale, zero_point = call(
        torch.ops.lamina.gemm_int8_quantized, a, w.data, w.column_sums, a_scale, w_scale, a_zero_point, bias,
        activation, gate, residual, out_scale, symmetric, max_sms,
    )  # fmt: skip
    return QuantizedInt8(q, scale, None if symmetric else zero_point)


def _check(
    op: str,
    a: Tensor,
    w: PackedInt8,
    a_scale: Tensor,
    w_scale: Tensor,
    activation: str | None,
    **optional: Tensor | None,
) -> None:
    """Finds the errors that torch would report without naming the argument."""
    require_tensors(op, a=a, a_scale=a_scale, w_scale=w_scale)
    require_optional_tensors(op, **optional)
    require_optional_str(op, "activation", activation)
    if not isinstance(w, PackedInt8):
        raise TypeError(f"lamina::{op}: w must be PackedInt8 (lamina.pack_int8), got {type(w).__name__}")
    if a.dim() == 2 and a.shape[1] != w.k:
        raise ValueError(f"lamina::{op}: a must be 2-D [m, k] with k = {w.k} of w, got {list(a.shape)}")


@fake("gemm_int8")
def _fake_gemm_int8(given: Arguments) -> Tensor:
    out: Tensor = given.a.new_empty(_fake_sizes("gemm_int8", given), dtype=given.out_dtype)
    return out


@fake("gemm_int8_quantized")
def _fake_gemm_int8_quantized(given: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    m, n = _fake_sizes("gemm_int8_quantized", given)
    return fake_quantized(given.a, m, n, given.symmetric)


def _fake_sizes(op: str, given: Arguments) -> tuple[int, int]:
    """m and n."""
    require_2d(op, "a", given.a, "[m, k]")
    if given.w_sums.dim() not in (1, 2):
        raise ValueError(
            f"lamina::{op}: w_sums must be 1-D [n] or 2-D [ceil(k / {GROUP}), n], got {given.w_sums.dim()}-D"
        )
    require_one_device(op, vars(given))
    return given.a.size(0), given.w_sums.size(-1)
