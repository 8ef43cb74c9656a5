"""W4A16 matrix product: float activations times packed int4 weights, and what follows it in the same pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lamina._checks import (
    call,
    require_2d,
    require_dtype,
    require_int,
    require_one_device,
    require_optional_int,
    require_optional_str,
    require_optional_tensors,
    require_tensors,
)
from lamina._library import build_info
from lamina.ops.dequantize import add_to_features, dequantize_int4
from lamina.ops.pack_int4 import TILE_N, PackedInt4, layout_for
from lamina.ops.registration import Arguments, fake, register_gradients

GROUP_STEP: int = build_info()["limits"]["gemm_int4"]["group_step"]  # every group is a multiple


def gemm_int4(
    a: Tensor,
    w: PackedInt4,
    w_scale: Tensor,
    *,
    group: int,
    w_zero_point: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    activation: str | None = None,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    perm: Tensor | None = None,
    max_sms: int | None = None,
) -> Tensor:
    """activation(a @ w.T + bias) * gate + residual with w = (q - w_zero_point) * w_scale: W4A16.

    a             [m, k]  f32 | f16 | bf16 (CUDA: f16 | bf16), any row stride, m >= 0
    w             PackedInt4 of the codes q [n, k], from lamina.pack_int4. Its layout is "int4_rows" on the
                  CPU and "int4_tile" on CUDA
    w_scale       [G, n]  f32 | f16 | bf16 (CUDA: the dtype of a), any strides, G = ceil(k / group)
    group         number of input features that share a scale: a positive multiple of 16, or -1 or k for all
                  features. The last group may be smaller
    w_zero_point  [G, n]  uint8 | f32 | f16 | bf16 (CUDA: uint8 or the dtype of a), any strides. None means 8
    bias          [n]  f32 | f16 | bf16
    out_dtype     f32 | f16 | bf16. None means the dtype of a
    activation    None | "gelu" (with erf) | "gelu_tanh" | "silu"
    gate          [m, n]  f32 | f16 | bf16, any row stride, such as the up projection of a gated MLP
    residual      [m, n]  f32 | f16 | bf16, any row stride
    perm          [k]  int32, for act-order, from lamina.quant.act_order. Packed input feature p multiplies
                  a[:, perm[p]], or 0 where perm[p] is -1. Groups count packed features, and a is [m, any].
                  An index out of range raises an error on the CPU and gives NaN on CUDA
    max_sms       as in gemm_int8
    returns       [m, n]  out_dtype: sum_p a w + bias, activation, * gate, + residual, step by step in f32,
                  then one rounding. Arguments that are None are left out
    Sums     CPU, f32: w = fma(q, w_scale, -(w_zero_point * w_scale)) in f32; without w_zero_point this is
             (q - 8) * w_scale, rounded once. Fused multiply-adds sum the products of a k chunk, which is
             1024 input features; then the chunks are added. Both run in order.
             CPU, bf16: where a is bf16, w_zero_point is uint8 or None, and the CPU has AVX512_BF16 (cpu_isa()
             is avx512_bf16 or amx_int8), for every m. A group and the ends of k chunks cut k into pieces.
             vdpbf16ps adds a (q - w_zero_point), which is exact in bf16, in f32 to the sum of a piece. fma
             adds the piece times w_scale to its k chunk, in order; then the chunks are added. A piece above
             the largest f32 overflows before w_scale makes it smaller
             CUDA: w = fma(q - z, w_scale, d) in the dtype of a, where z is the integer from 0 to 15 nearest
             to w_zero_point, and d is (z - w_zero_point) * w_scale, rounded. Tensor cores add the products
             of a k chunk in an order of their own
    Error    Per element and before bias, as long as no step overflows, with u = 2^-24, T = ceil(k / 1024):
             CPU, f32   |y - exact| <= u (3 + min(k, 1024) + T) P + t, where t = 2^-149 (k + sum_p |a|) and
                   P = sum_p |a| |w_scale| (|q - w_zero_point| + |w_zero_point|); the last |w_zero_point|
                   counts only if w_zero_point is given
             CPU, bf16  |y - exact| <= u (2 + min(g, c) + ceil(c / g) + T) sum_p |a| |w| + t, where g is the
                   group, c = min(k, 1024) and t = 2^-149 k + 2^-126 sum_p |w_scale| (|q - w_zero_point| + 1),
                   because vdpbf16ps takes subnormal numbers for 0, in a as in sums
             CUDA  |y - exact| <= R + u (3 + 2 min(k, 1024) + T) (sum_p |a| |w| + R) + t, where t = 2^-149 k
                   and R = sum_p |a| (U (|w| + 2 |d|) + s), w and d exact; U is the unit roundoff of the
                   dtype of a (f16: 2^-11, bf16: 2^-8), s its smallest subnormal (f16: 2^-24, bf16: 2^-133)
             t and s are the effect of underflow. A product below 2^-126 is rounded to a multiple of 2^-149;
             f16 products are never that small. A weight below the normal numbers (f16: 2^-14) is rounded
             to a multiple of s, but only if w_zero_point has a fraction; otherwise the weight is such a
             multiple. The CUDA bound assumes that tensor cores keep subnormal operands, which PTX leaves
             open. Later steps as in gemm_int8, whose h u p is this bound. The tests use these expressions
    NaN, Inf propagate
    Gradients  of a, bias and residual, without activation and gate, from f32 weights that are unpacked a few
             rows at a time. The weight has no gradient
    Raises   ValueError that names the argument, its value and the allowed values; TypeError for an argument
             of a wrong Python type (docs/errors.md lists both)
    Devices  CPU (generic, avx2, avx512_vnni, avx512_bf16), CUDA sm_80 and newer (mma.sync; wgmma on sm_90).
             A row has the same bits in every batch, and with every thread count, tile and number of SMs. On
             CPUs, each of the two ways to compute gives the same bits on every instruction set
    Source   csrc/ops/gemm_int4/gemm_int4.h
    """
    optional = {"w_zero_point": w_zero_point, "bias": bias, "gate": gate, "residual": residual}
    check("gemm_int4", a, w, w_scale, group, activation, perm, **optional)
    require_optional_int("gemm_int4", "max_sms", max_sms)
    if out_dtype is not None:
        require_dtype("gemm_int4", "out_dtype", out_dtype)
    out: Tensor = call(
        torch.ops.lamina.gemm_int4, a, w.data, w_scale, group, w_zero_point, bias, out_dtype, activation,
        gate, residual, perm, max_sms,
    )  # fmt: skip
    return out


def check(
    op: str,
    a: Tensor,
    w: PackedInt4,
    w_scale: Tensor,
    group: int,
    activation: str | None,
    perm: Tensor | None,
    **optional: Tensor | None,
) -> None:
    """Finds the errors that torch would report without naming the argument, or could not find at all."""
    require_tensors(op, a=a, w_scale=w_scale)
    require_optional_tensors(op, **optional, perm=perm)
    require_int(op, "group", group)
    require_optional_str(op, "activation", activation)
    if not isinstance(w, PackedInt4):
        raise TypeError(f"lamina::{op}: w must be PackedInt4 (lamina.pack_int4), got {type(w).__name__}")
    layout = layout_for(a.device)
    if w.layout != layout:
        raise ValueError(f'lamina::{op}: w has layout "{w.layout}"; allowed on {a.device.type}: "{layout}"')
    if perm is not None and perm.shape != (w.k,):
        raise ValueError(f"lamina::{op}: perm must be 1-D [k] with k = {w.k} of w, got {list(perm.shape)}")
    if perm is None and a.dim() == 2 and a.shape[1] != w.k:
        raise ValueError(f"lamina::{op}: a must be 2-D [m, k] with k = {w.k} of w, got {list(a.shape)}")
    if w_scale.dim() == 2 and w_scale.shape[1] != w.n:
        raise ValueError(
            f"lamina::{op}: w_scale must be 2-D [ceil(k / group), n] with n = {w.n} of w, "
            f"got {list(w_scale.shape)}"
        )


def fake_product(op: str, given: Arguments, out_dtype: torch.dtype) -> Tensor:
    """The fake kernel of a product of packed int4 weights."""
    require_2d(op, "a", given.a, "[m, k]")
    require_2d(op, "w_scale", given.w_scale, "[ceil(k / group), n]")
    require_one_device(op, vars(given))
    out: Tensor = given.a.new_empty((given.a.size(0), given.w_scale.size(1)), dtype=out_dtype)
    return out


@fake("gemm_int4")
def _fake_gemm_int4(given: Arguments) -> Tensor:
    return fake_product("gemm_int4", given, given.out_dtype or given.a.dtype)


GRADIENT_ROWS = 1024  # rows of the weight that are in f32 at a time


def _save(ctx: Any, given: Arguments) -> None:
    ctx.save_for_backward(given.w, given.w_scale, given.w_zero_point, given.perm)
    ctx.group, ctx.features = given.group, given.a.shape[1]
    ctx.unsupported = [name for name in ("activation", "gate") if getattr(given, name) is not None]
    ctx.dtypes = {name: t.dtype for name, t in vars(given).items() if isinstance(t, Tensor)}


def _gradients(ctx: Any, grad: Tensor, needed: set[str]) -> dict[str, Tensor]:
    """The gradients of a, bias and residual, where `needed` names them."""
    if ctx.unsupported:
        raise NotImplementedError(
            f"lamina::gemm_int4: no gradient with {ctx.unsupported[0]}; "
            "apply it to the result of the op instead"
        )
    found: dict[str, Tensor] = {}
    if "a" in needed:
        with torch.autocast(grad.device.type, enabled=False):  # backward() may be called under autocast
            w, w_scale, w_zero_point, perm = ctx.saved_tensors
            found["a"] = gradient_of_a(grad, w, w_scale, ctx.group, w_zero_point, perm, ctx.features)
    if "bias" in needed:
        found["bias"] = grad.sum(0, dtype=torch.float32)
    if "residual" in needed:
        found["residual"] = grad
    return {name: gradient.to(ctx.dtypes[name]) for name, gradient in found.items()}


def gradient_of_a(
    grad: Tensor,
    w: Tensor,
    w_scale: Tensor,
    group: int,
    w_zero_point: Tensor | None,
    perm: Tensor | None,
    features: int,
) -> Tensor:
    """The gradient [m, features] of a in f32: grad [m, n] times the weight, which is unpacked where it is."""
    (m, n), k = grad.shape, features if perm is None else len(perm)
    group = max(k, 1) if group == -1 else group
    total = torch.zeros(m, k, dtype=torch.float32, device=grad.device)
    for first in range(0, n, GRADIENT_ROWS):
        rows = slice(first, min(first + GRADIENT_ROWS, n))
        tiles = w[first // TILE_N : -(-rows.stop // TILE_N)].contiguous()
        codes = torch.ops.lamina.unpack_int4(tiles, rows.stop - first, k, layout_for(w.device))
        zero_point = None if w_zero_point is None else w_zero_point[:, rows]
        total += grad[:, rows].float() @ dequantize_int4(codes, w_scale[:, rows], zero_point, group)
    return total if perm is None else add_to_features(total, perm, features)


register_gradients("gemm_int4", _save, _gradients)
