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
    """activation((a - a_zero_point) * a_scale @ w.T + bias) * gate + residual; w is dequantised q.

    a             [m, k], any row stride, m >= 0: int8 with its a_scale, or f32 | f16 | bf16, which the call
                  quantises as quantize_int8 does, per token and symmetric
    w             PackedInt4 of codes q [n, k] (lamina.pack_int4), in the layout "int4_rows" on the CPU,
                  "int4_tile" on CUDA
    w_scale       [G, n]  f32 | f16 | bf16, G = ceil(k / group), any strides
    group         input features that share a scale: a positive multiple of 16, or -1 or k for all; the last
                  may be ragged
    a_scale       f32, 1 element (per tensor) or [m, 1] (per token)
    w_zero_point  [G, n]  uint8 | f32 | f16 | bf16, any strides; None is 8
    a_zero_point  int8, 1 element or [m, 1], only with a_scale; None is 0
    bias          [n]  f32 | f16 | bf16
    out_dtype     f32 | f16 | bf16
    activation    None | "gelu" (with erf) | "gelu_tanh" | "silu"
    gate          [m, n]  f32 | f16 | bf16, any row stride: the up projection of a gated MLP
    residual      [m, n]  f32 | f16 | bf16, any row stride
    perm          [k]  int32, act-order: packed input feature p multiplies a[:, perm[p]] - a_zero_point, or 0
                  where perm[p] is -1, and groups are of packed features. a is [m, any], quantised as it is, k
                  that of w. lamina.quant.act_order makes it
    max_sms       as in gemm_int8
    returns       [m, n]  out_dtype: (sum_g x_g * w_scale[g]) * a_scale + bias, activation, * gate,
                  + residual, in f32, then one rounding; what is not given is left out
    Groups   acc_g = sum (a - a_zero_point) * q and a_sum_g = sum (a - a_zero_point) over group g are exact
             integers; x_g = acc_g - 8 a_sum_g, one integer, or with w_zero_point the fused multiply-add
             acc_g - w_zero_point * a_sum_g. A fused multiply-add adds x_g * w_scale[g] to the f32 sum of its
             segment, then segments are added, both in order, from -0 on: a result of zeros alone has the sign
             that these steps give. A segment is as many whole groups and whole multiples of 64 as fit 1024
             input features, at least the fewest
    Error    as in gemm_int8 with h = 4 + min(S, G) + T, S groups a segment, T segments, and
             p = sum_g |x_g * w_scale[g]| * |a_scale|, x_g exact; with w_zero_point and a group of more than
             4096 input features, where acc_g may not be an f32, h u p is
             h u p + 2 u sum_g (|acc_g| + |w_zero_point[g] * a_sum_g|) |w_scale[g] * a_scale|. The tests use
             this expression
    NaN, Inf propagate from scales, zero points, bias, gate and residual; a float row of a that holds one is
             NaN throughout
    Raises   ValueError or, for what is of a wrong Python type, TypeError, naming argument, value and allowed
             values (docs/errors.md); k is at most 2^19
    CUDA     the values of a_scale and of perm cannot be looked at: where perm names a feature that there is
             not, the result is NaN
    Devices  CPU (generic, avx2, avx512_vnni, amx_int8), CUDA (sm80).  Row-invariant, independent of the
             instruction set, of the thread count and, on a GPU, of the tile and of the number of SMs; on CPU
             and CUDA the same, bit for bit
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
