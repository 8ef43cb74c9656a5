"""W4A16 matrix product: float activations times packed int4 weights, and what follows it in the same pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lamina._checks import (
    call,
    require_2d,
    require_device,
    require_dtype,
    require_int,
    require_optional_int,
    require_optional_str,
    require_optional_tensors,
    require_tensors,
)
from lamina._int4 import QuantizedInt4, add_to_features
from lamina.pack import TILE_N, PackedInt4

LAYOUT = "int4_rows"  # that CPU kernels read
CUDA_LAYOUT = "int4_tile"


def layout_for(device: torch.device) -> str:
    """The layout of packed weights that the kernels of a device read."""
    return CUDA_LAYOUT if device.type == "cuda" else LAYOUT


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
    Sums     CPU: w = fma(q, w_scale, -(w_zero_point * w_scale)) in f32; without w_zero_point this is
             (q - 8) * w_scale, rounded once. Fused multiply-adds sum the products of a k chunk, which is
             1024 input features; then the chunks are added. Both run in order.
             CUDA: w = fma(q - z, w_scale, d) in the dtype of a, where z is the integer from 0 to 15 nearest
             to w_zero_point, and d is (z - w_zero_point) * w_scale, rounded. Tensor cores add the products
             of a k chunk in an order of their own
    Error    Per element and before bias, as long as no step overflows, with u = 2^-24, T = ceil(k / 1024):
             CPU   |y - exact| <= u (3 + min(k, 1024) + T) P + t, where t = 2^-149 (k + sum_p |a|) and
                   P = sum_p |a| |w_scale| (|q - w_zero_point| + |w_zero_point|); the last |w_zero_point|
                   counts only if w_zero_point is given
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
    Devices  CPU (generic, avx2, avx512_vnni), CUDA sm_80 and newer (mma.sync; wgmma on sm_90). A row has the
             same bits in every batch, on every CPU instruction set, and with every thread count, tile and
             number of SMs
    Source   csrc/ops/gemm_int4/gemm_int4.h
    """
    optional = dict(zip(_OPTIONAL, (w_zero_point, bias, gate, residual, perm), strict=True))
    check("gemm_int4", a, w, w_scale, group, activation, optional)
    require_optional_int("gemm_int4", "max_sms", max_sms)
    if out_dtype is not None:
        require_dtype("gemm_int4", "out_dtype", out_dtype)
    out: Tensor = call(
        torch.ops.lamina.gemm_int4, a, w.data, w_scale, group, w_zero_point, bias, out_dtype, activation,
        gate, residual, perm, max_sms,
    )  # fmt: skip
    return out


_OPTIONAL = ("w_zero_point", "bias", "gate", "residual", "perm")


def check(
    op: str,
    a: Tensor,
    w: PackedInt4,
    w_scale: Tensor,
    group: int,
    activation: str | None,
    optional: dict[str, Tensor | None],
) -> None:
    """What torch would refuse without naming the argument, and what only the packed weight knows."""
    require_tensors(op, a=a, w_scale=w_scale)
    require_optional_tensors(op, **optional)
    require_int(op, "group", group)
    require_optional_str(op, "activation", activation)
    if not isinstance(w, PackedInt4):
        raise TypeError(f"lamina::{op}: w must be PackedInt4 (lamina.pack_int4), got {type(w).__name__}")
    layout = layout_for(a.device)
    if w.layout != layout:
        raise ValueError(f'lamina::{op}: w has layout "{w.layout}"; allowed on {a.device.type}: "{layout}"')
    perm = optional["perm"]
    if perm is not None and perm.shape != (w.k,):
        raise ValueError(f"lamina::{op}: perm must be 1-D [k] with k = {w.k} of w, got {list(perm.shape)}")
    if perm is None and a.dim() == 2 and a.shape[1] != w.k:
        raise ValueError(f"lamina::{op}: a must be 2-D [m, k] with k = {w.k} of w, got {list(a.shape)}")
    if w_scale.dim() == 2 and w_scale.shape[1] != w.n:
        raise ValueError(
            f"lamina::{op}: w_scale must be 2-D [ceil(k / group), n] with n = {w.n} of w, "
            f"got {list(w_scale.shape)}"
        )


def fake_product(
    op: str, a: Tensor, w: Tensor, w_scale: Tensor, out_dtype: torch.dtype, optional: dict[str, Tensor | None]
) -> Tensor:
    """The fake kernel of a product of packed int4 weights."""
    require_2d(op, "a", a, "[m, k]")
    require_2d(op, "w_scale", w_scale, "[ceil(k / group), n]")
    require_device(op, a, w=w, w_scale=w_scale, **optional)
    return a.new_empty((a.size(0), w_scale.size(1)), dtype=out_dtype)


def _fake_gemm_int4(
    a: Tensor,
    w: Tensor,
    w_scale: Tensor,
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
    optional = dict(zip(_OPTIONAL, (w_zero_point, bias, gate, residual, perm), strict=True))
    return fake_product("gemm_int4", a, w, w_scale, out_dtype or a.dtype, optional)


GRADIENT_ROWS = 1024  # of the weight, in f32 at once


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    a, w, w_scale, group, w_zero_point, bias, _, activation, gate, residual, perm, _ = inputs
    ctx.save_for_backward(w, w_scale, w_zero_point, perm)
    ctx.k = a.shape[1] if perm is None else perm.shape[0]
    ctx.group = max(ctx.k, 1) if group == -1 else group
    ctx.unsupported = "activation" if activation is not None else "gate" if gate is not None else None
    ctx.a_shape = a.shape
    ctx.dtypes = tuple(None if t is None else t.dtype for t in (a, bias, residual))


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    if ctx.unsupported:
        raise NotImplementedError(
            f"lamina::gemm_int4: no gradient with {ctx.unsupported}; apply it to the result of the op instead"
        )
    given = len(ctx.needs_input_grad)  # arguments; those at the end may be left out
    needed = {at for at, is_needed in enumerate(ctx.needs_input_grad) if is_needed}
    a_dtype, bias_dtype, residual_dtype = ctx.dtypes
    gradients: list[Tensor | None] = [None] * 12
    if 0 in needed:
        with torch.autocast(grad.device.type, enabled=False):  # backward() may be called under autocast
            gradients[0] = _gradient_of_a(ctx, grad).to(a_dtype)
    if 5 in needed:
        gradients[5] = grad.sum(0, dtype=torch.float32).to(bias_dtype)
    if 9 in needed:
        gradients[9] = grad.to(residual_dtype)
    return tuple(gradients[:given])


def _gradient_of_a(ctx: Any, grad: Tensor) -> Tensor:
    """grad [m, n] times the weight [n, k], in f32, of the features of a."""
    w, w_scale, w_zero_point, perm = ctx.saved_tensors
    m, n, k = *grad.shape, ctx.k
    total = torch.zeros(m, k, dtype=torch.float32, device=grad.device)
    for first in range(0, n, GRADIENT_ROWS):
        last = min(first + GRADIENT_ROWS, n)
        tiles = w[first // TILE_N : -(-last // TILE_N)].contiguous().cpu()
        codes = torch.ops.lamina.unpack_int4(tiles, last - first, k, layout_for(w.device)).to(w.device)
        zero_point = None if w_zero_point is None else w_zero_point[:, first:last]
        part = QuantizedInt4(codes, w_scale[:, first:last], zero_point, ctx.group)
        total += grad[:, first:last].float() @ part.dequantize()
    return total if perm is None else add_to_features(total, perm, ctx.a_shape[1])


def register_gradients(namespace: str) -> None:
    """Registers the backward pass of the op in torch.ops.<namespace>."""
    torch.library.register_autograd(f"{namespace}::gemm_int4", _backward, setup_context=_setup_context)
