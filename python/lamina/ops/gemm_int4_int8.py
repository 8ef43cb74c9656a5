"""W4A8 matrix product: int8 activations times packed int4 weights, and what follows it in the same pass."""

from __future__ import annotations

import torch
from torch import Tensor

from lamina._checks import call, require_dtype, require_optional_int
from lamina.ops.gemm_int4 import check, fake_product
from lamina.ops.pack_int4 import PackedInt4
from lamina.ops.registration import Arguments, fake


def gemm_int4_int8(
    a: Tensor,
    w: PackedInt4,
    w_scale: Tensor,
    *,
    group: int,
    a_scale: Tensor | None = None,
    w_zero_point: Tensor | None = None,
    a_zero_point: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype = torch.float32,
    activation: str | None = None,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    perm: Tensor | None = None,
    max_sms: int | None = None,
) -> Tensor:
    """activation((a - a_zero_point) * a_scale @ w.T + bias) * gate + residual with w as in gemm_int4: W4A8.

    a             [m, k], any row stride, m >= 0: int8 with its a_scale, or f32 | f16 | bf16, which the call
                  quantises as quantize_int8 does, per token and symmetric
    w             PackedInt4 of the codes q [n, k], from lamina.pack_int4. Its layout is "int4_rows" on the
                  CPU and "int4_tile" on CUDA
    w_scale       [G, n]  f32 | f16 | bf16, any strides, G = ceil(k / group)
    group         number of input features that share a scale: a positive multiple of 16, or -1 or k for all
                  features. The last group may be smaller
    a_scale       f32, 1 element (per tensor) or [m, 1] (per token)
    w_zero_point  [G, n]  uint8 | f32 | f16 | bf16, any strides. None means 8
    a_zero_point  int8, 1 element or [m, 1], only with a_scale. None means 0
    bias          [n]  f32 | f16 | bf16
    out_dtype     f32 | f16 | bf16
    activation    None | "gelu" (with erf) | "gelu_tanh" | "silu"
    gate          [m, n]  f32 | f16 | bf16, any row stride, such as the up projection of a gated MLP
    residual      [m, n]  f32 | f16 | bf16, any row stride
    perm          [k]  int32, for act-order, from lamina.quant.act_order. Packed input feature p multiplies
                  a[:, perm[p]] - a_zero_point, or 0 where perm[p] is -1. Groups count packed features, and a
                  is [m, any], quantised before it is gathered. An index out of range raises an error on the
                  CPU and gives NaN on CUDA
    max_sms       as in gemm_int8
    returns       [m, n]  out_dtype: (sum_g x_g * w_scale[g]) * a_scale + bias, activation, * gate,
                  + residual, step by step in f32, then one rounding. Arguments that are None are left out
    Groups   acc_g = sum (a - a_zero_point) * q and a_sum_g = sum (a - a_zero_point) over group g are exact
             integers. Without w_zero_point x_g is the integer acc_g - 8 a_sum_g; with w_zero_point x_g is
             the fused multiply-add acc_g - w_zero_point * a_sum_g. Fused multiply-adds sum x_g * w_scale[g]
             over a k chunk; then the chunks are added. Both run in order and start from -0, so a result of
             zeros alone has the sign that these steps give. A k chunk has whole groups and whole multiples
             of 64 input features: as many as fit 1024 features, at least one such unit
    Error    as in gemm_int8 with h = 4 + min(S, G) + T, where S is the number of groups in a k chunk and T
             the number of chunks, and p = sum_g |x_g * w_scale[g]| * |a_scale|, x_g exact. With w_zero_point
             and a group of more than 4096 input features an f32 may not hold acc_g exactly; then h u p is
             h u p + 2 u sum_g (|acc_g| + |w_zero_point[g] * a_sum_g|) |w_scale[g] * a_scale|. The tests use
             this expression
    NaN, Inf propagate from scales, zero points, bias, gate and residual. A row of float activations that
             holds a NaN or an Inf gives a row of NaN
    Raises   ValueError that names the argument, its value and the allowed values; TypeError for an argument
             of a wrong Python type (docs/errors.md lists both). k is at most 2^19. On CUDA the values of
             a_scale are not checked
    Devices  CPU (generic, avx2, avx512_vnni, amx_int8), CUDA sm_80 and newer (mma.sync; wgmma on sm_90). A
             row has the same bits in every batch, on the CPU and on CUDA, on every instruction set, and with
             every thread count, tile and number of SMs
    Source   csrc/ops/gemm_int4_int8/gemm_int4_int8.h
    """
    optional = {"w_zero_point": w_zero_point, "bias": bias, "gate": gate, "residual": residual}
    optional |= {"a_scale": a_scale, "a_zero_point": a_zero_point}
    check("gemm_int4_int8", a, w, w_scale, group, activation, perm, **optional)
    require_dtype("gemm_int4_int8", "out_dtype", out_dtype)
    require_optional_int("gemm_int4_int8", "max_sms", max_sms)
    out: Tensor = call(
        torch.ops.lamina.gemm_int4_int8, a, w.data, w_scale, group, a_scale, w_zero_point, a_zero_point, bias,
        out_dtype, activation, gate, residual, perm, max_sms,
    )  # fmt: skip
    return out


@fake("gemm_int4_int8")
def _fake_gemm_int4_int8(given: Arguments) -> Tensor:
    return fake_product("gemm_int4_int8", given, given.out_dtype)
