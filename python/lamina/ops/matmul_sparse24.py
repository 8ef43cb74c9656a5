"""Matrix products with a 2:4 weight, and what follows them in the same pass."""

from __future__ import annotations

import torch
from torch import Tensor

from lamina._checks import (
    call,
    require_2d,
    require_dtype,
    require_one_device,
    require_optional_int,
    require_optional_str,
    require_optional_tensors,
    require_tensors,
)
from lamina.ops.pack_sparse24 import PackedSparse24, require_packed_sparse24
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
    Devices  CPU (generic, avx2, avx512_vnni). A row has the same bits in every batch, on every instruction set
             and with every thread count
    Source   csrc/ops/matmul_sparse24/matmul_sparse24.h
    """
    op = "matmul_sparse24_int8"
    require_tensors(op, a=a, a_scale=a_scale, w_scale=w_scale)
    require_optional_tensors(op, a_zero_point=a_zero_point, bias=bias, gate=gate, residual=residual)
    _check(op, a, w, (torch.int8,), activation, max_sms)
    require_dtype(op, "out_dtype", out_dtype)
    out: Tensor = call(
        torch.ops.lamina.matmul_sparse24_int8, a, w.data, w.column_sums, a_scale, w_scale, a_zero_point, bias,
        out_dtype, activation, gate, residual, max_sms,
    )  # fmt: skip
    return out


def _check(
    op: str,
    a: Tensor,
    w: PackedSparse24,
    dtypes: tuple[torch.dtype, ...],
    activation: str | None,
    max_sms: int | None,
) -> None:
    """Finds the errors that torch would report without naming the argument, or could not find at all."""
    require_packed_sparse24(op, w, dtypes)
    require_optional_str(op, "activation", activation)
    require_optional_int(op, "max_sms", max_sms)
    if a.dim() == 2 and a.shape[1] != w.k:
        raise ValueError(f"lamina::{op}: a must be 2-D [m, k] with k = {w.k} of w, got {list(a.shape)}")


@fake("matmul_sparse24_int8")
def _fake_matmul_sparse24_int8(given: Arguments) -> Tensor:
    op = "matmul_sparse24_int8"
    require_2d(op, "a", given.a, "[m, k]")
    if given.w_sums.dim() not in (1, 2):
        raise ValueError(f"lamina::{op}: w_sums must be 1-D [n] or 2-D [ceil(k / 128), n]")
    require_one_device(op, vars(given))
    out: Tensor = given.a.new_empty((given.a.size(0), given.w_sums.size(-1)), dtype=given.out_dtype)
    return out
