"""Matrix products with a 2:4 weight, and what follows them in the same pass."""

from __future__ import annotations

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
from lamina.ops.pack_sparse24 import PackedSparse24, require_packed_sparse24, sparse24_layout_for
from lamina.ops.registration import Arguments, fake


def matmul_sparse24_int8(
    a: Tensor,
    w: PackedSparse24,
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
    """gemm_int8 with a 2:4 weight: the weight has 5 bits in memory where gemm_int8 reads 8.

    a ... max_sms  as in gemm_int8, but w: PackedSparse24 of an int8 weight [n, k], from lamina.pack_sparse24
    returns  [m, n]  out_dtype: the bits of gemm_int8 of the weight with zeros in place
    Error    as gemm_int8
    Raises   ValueError that names the argument, its value and the allowed values; TypeError for an argument
             of a wrong Python type
    Devices  CPU (generic, avx2, avx512_vnni, amx_int8), CUDA sm_80+, sm_90a; on CUDA without scales along k.
             A row has the same bits in every batch; on a CPU also on every instruction set and with every
             thread count
    Source   csrc/ops/matmul_sparse24/matmul_sparse24.h
    """
    op = "matmul_sparse24_int8"
    require_tensors(op, a=a, a_scale=a_scale, w_scale=w_scale)
    require_optional_tensors(op, a_zero_point=a_zero_point, bias=bias, gate=gate, residual=residual)
    _check(op, a, w, (torch.int8,), activation, max_sms)
    require_dtype(op, "out_dtype", out_dtype)
    out: Tensor = call(
        torch.ops.lamina.matmul_sparse24_int8, a, w.data, w.column_sums, a_scale, w_scale, a_zero_point, bias,
        out_dtype, activation, gate, residual, max_sms, w.dense, w.dense_rows,
    )  # fmt: skip
    return out


def matmul_sparse24_int4(
    a: Tensor,
    w: PackedSparse24,
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
    """gemm_int4 with a 2:4 weight: the weight has 3 bits in memory where gemm_int4 reads 4.

    a ... max_sms  as in gemm_int4, but w: PackedSparse24 of the codes q [n, k] uint8, from
             lamina.pack_sparse24
    returns  [m, n]  out_dtype: as gemm_int4, with sums over the kept weights alone. A code that is
             kept is a weight (q - w_zero_point) * w_scale; one that is not kept is the weight 0
    Error    as gemm_int4, with sums over p of kept weights; on a CPU that of f32 for every dtype of a
    Raises   ValueError that names the argument, its value and the allowed values; TypeError for an argument
             of a wrong Python type
    NaN, Inf propagate from activations of kept weights only
    Devices  CPU (generic, avx2, avx512_vnni), CUDA sm_80+, sm_90a. A row has the same bits in every batch;
             on a CPU also on every instruction set and with every thread count
    Source   csrc/ops/matmul_sparse24/matmul_sparse24.h
    """
    op = "matmul_sparse24_int4"
    require_tensors(op, a=a, w_scale=w_scale)
    optional = {"w_zero_point": w_zero_point, "bias": bias, "gate": gate, "residual": residual}
    require_optional_tensors(op, **optional, perm=perm)
    require_int(op, "group", group)
    _check(op, a, w, (torch.uint8,), activation, max_sms, perm)
    _check_w_scale(op, w, w_scale)
    if out_dtype is not None:
        require_dtype(op, "out_dtype", out_dtype)
    out: Tensor = call(
        torch.ops.lamina.matmul_sparse24_int4, a, w.data, w_scale, group, w_zero_point, bias, out_dtype,
        activation, gate, residual, perm, max_sms, w.dense, w.dense_rows,
    )  # fmt: skip
    return out


def matmul_sparse24_int4_int8(
    a: Tensor,
    w: PackedSparse24,
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
    """gemm_int4_int8 with a 2:4 weight: the weight has 3 bits in memory where gemm_int4_int8 reads 4.

    a ... max_sms  as in gemm_int4_int8, but w: PackedSparse24 of the codes q [n, k] uint8, from
             lamina.pack_sparse24
    returns  [m, n]  out_dtype: as gemm_int4_int8, with sums over the kept weights alone, those of activations
             too. Without w_zero_point these are the bits of gemm_int4_int8 with code 8 in place of codes that
             are not kept
    Error    as gemm_int4_int8, with sums over kept weights
    Raises   ValueError that names the argument, its value and the allowed values; TypeError for an argument
             of a wrong Python type
    Devices  CPU (generic, avx2, avx512_vnni), CUDA sm_80+, sm_90a. A row has the same bits in every batch;
             on a CPU also on every instruction set and with every thread count
    Source   csrc/ops/matmul_sparse24/matmul_sparse24.h
    """
    op = "matmul_sparse24_int4_int8"
    require_tensors(op, a=a, w_scale=w_scale)
    optional = {"a_scale": a_scale, "w_zero_point": w_zero_point, "a_zero_point": a_zero_point, "bias": bias}
    require_optional_tensors(op, **optional, gate=gate, residual=residual, perm=perm)
    require_int(op, "group", group)
    _check(op, a, w, (torch.uint8,), activation, max_sms, perm)
    _check_w_scale(op, w, w_scale)
    require_dtype(op, "out_dtype", out_dtype)
    out: Tensor = call(
        torch.ops.lamina.matmul_sparse24_int4_int8, a, w.data, w_scale, group, a_scale, w_zero_point,
        a_zero_point, bias, out_dtype, activation, gate, residual, perm, max_sms, w.dense, w.dense_rows,
    )  # fmt: skip
    return out


def matmul_sparse24(
    a: Tensor,
    w: PackedSparse24,
    *,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    activation: str | None = None,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    max_sms: int | None = None,
) -> Tensor:
    """activation(a @ w.T + bias) * gate + residual with a float 2:4 weight.

    a          [m, k]  f32 | f16 | bf16, any row stride, m >= 0
    w          PackedSparse24 of a weight [n, k] of the dtype of a, from lamina.pack_sparse24
    bias       [n]  f32 | f16 | bf16
    out_dtype  f32 | f16 | bf16. None means the dtype of a
    activation ... max_sms  as in gemm_int8
    returns    [m, n]  out_dtype: sum_p a w + bias, activation, * gate, + residual, step by step in f32, then
               one rounding. Arguments that are None are left out
    Sums     over the kept weights alone: fused multiply-adds sum the products of a k chunk, which is 1024
             input features, in f32; then the chunks are added. Both run in order on a CPU; tensor cores add
             the products of a k chunk in an order of their own
    Error    Per element and before bias, as long as no step overflows, with u = 2^-24, T = ceil(k / 1024):
             |y - exact| <= u (1 + min(k, 1024) / 2 + T) sum_p |a| |w| + 2^-149 k, sums over kept weights. On
             CUDA it is twice min(k, 1024) / 2, because tensor cores may truncate sums. Later steps as in
             gemm_int8, whose h u p is this bound. The tests use the expression of the CPU
    NaN, Inf propagate from activations of kept weights only
    Raises   ValueError that names the argument, its value and the allowed values; TypeError for an argument
             of a wrong Python type
    Devices  CPU (generic, avx2, avx512_vnni), CUDA sm_80+, sm_90a. A row has the same bits in every batch;
             on a CPU also on every instruction set and with every thread count
    Source   csrc/ops/matmul_sparse24/matmul_sparse24.h
    """
    op = "matmul_sparse24"
    require_tensors(op, a=a)
    require_optional_tensors(op, bias=bias, gate=gate, residual=residual)
    floats = (torch.float32, torch.float16, torch.bfloat16)
    _check(op, a, w, floats, activation, max_sms)
    if a.dtype in floats and w.dtype != a.dtype:  # the op refuses other dtypes of a
        dtype, got = (str(t.dtype).removeprefix("torch.") for t in (a, w))
        raise ValueError(f"lamina::{op}: w holds {got} values; allowed: {dtype}, the dtype of a")
    if out_dtype is not None:
        require_dtype(op, "out_dtype", out_dtype)
    out: Tensor = call(
        torch.ops.lamina.matmul_sparse24, a, w.data, w.n, bias, out_dtype, activation, gate, residual, max_sms
    )
    return out


def _check(
    op: str,
    a: Tensor,
    w: PackedSparse24,
    dtypes: tuple[torch.dtype, ...],
    activation: str | None,
    max_sms: int | None,
    perm: Tensor | None = None,
) -> None:
    """Finds the errors that torch would report without naming the argument, or could not find at all."""
    require_packed_sparse24(op, w, dtypes)
    layout = sparse24_layout_for(a.device)
    if w.layout != layout:
        raise ValueError(f'lamina::{op}: w has layout "{w.layout}"; allowed on {a.device.type}: "{layout}"')
    require_optional_str(op, "activation", activation)
    require_optional_int(op, "max_sms", max_sms)
    if perm is not None and perm.shape != (w.k,):
        raise ValueError(f"lamina::{op}: perm must be 1-D [k] with k = {w.k} of w, got {list(perm.shape)}")
    if perm is None and a.dim() == 2 and a.shape[1] != w.k:
        raise ValueError(f"lamina::{op}: a must be 2-D [m, k] with k = {w.k} of w, got {list(a.shape)}")


def _check_w_scale(op: str, w: PackedSparse24, w_scale: Tensor) -> None:
    if w_scale.dim() == 2 and w_scale.shape[1] != w.n:
        raise ValueError(
            f"lamina::{op}: w_scale must be 2-D [ceil(k / group), n] with n = {w.n} of w, "
            f"got {list(w_scale.shape)}"
        )


@fake("matmul_sparse24_int8")
def _fake_matmul_sparse24_int8(given: Arguments) -> Tensor:
    op = "matmul_sparse24_int8"
    if given.w_sums.dim() not in (1, 2):
        raise ValueError(
            f"lamina::{op}: w_sums must be 1-D [n] or 2-D [ceil(k / 128), n], got {given.w_sums.dim()}-D"
        )
    return _fake_product(op, given, given.w_sums.size(-1), given.out_dtype)


@fake("matmul_sparse24_int4")
def _fake_matmul_sparse24_int4(given: Arguments) -> Tensor:
    require_2d("matmul_sparse24_int4", "w_scale", given.w_scale, "[ceil(k / group), n]")
    return _fake_product(
        "matmul_sparse24_int4", given, given.w_scale.size(1), given.out_dtype or given.a.dtype
    )


@fake("matmul_sparse24_int4_int8")
def _fake_matmul_sparse24_int4_int8(given: Arguments) -> Tensor:
    require_2d("matmul_sparse24_int4_int8", "w_scale", given.w_scale, "[ceil(k / group), n]")
    return _fake_product("matmul_sparse24_int4_int8", given, given.w_scale.size(1), given.out_dtype)


@fake("matmul_sparse24")
def _fake_matmul_sparse24(given: Arguments) -> Tensor:
    return _fake_product("matmul_sparse24", given, given.n, given.out_dtype or given.a.dtype)


def _fake_product(op: str, given: Arguments, n: int, out_dtype: torch.dtype) -> Tensor:
    require_2d(op, "a", given.a, "[m, k]")
    require_one_device(op, vars(given))
    out: Tensor = given.a.new_empty((given.a.size(0), n), dtype=out_dtype)
    return out
