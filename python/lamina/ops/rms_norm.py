"""RMS normalisation of activations, with the residual added first and the result in floats or in int8."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor

from lamina._checks import (
    call,
    require_2d,
    require_bool,
    require_float,
    require_one_device,
    require_optional_tensors,
    require_tensors,
)
from lamina.ops.quantize_int8 import QuantizedInt8, fake_quantized
from lamina.ops.registration import Arguments, fake


@overload
def rms_norm(x: Tensor, weight: Tensor, *, eps: float = ..., residual: None = ...) -> Tensor: ...
@overload
def rms_norm(x: Tensor, weight: Tensor, *, eps: float = ..., residual: Tensor) -> tuple[Tensor, Tensor]: ...


def rms_norm(
    x: Tensor, weight: Tensor, *, eps: float = 1e-6, residual: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """Divides each row by its root mean square and multiplies by weight; a residual is added first.

    x         [m, n]  f32 | f16 | bf16, any row stride, m >= 0
    weight    [n]  of the dtype of x
    eps       finite and >= 2^-126, rounded to f32
    residual  [m, n]  of the dtype of x, any row stride
    returns   out [m, n] of the dtype T of x; with residual the tuple (out, new residual [m, n]). Nothing is
              written in place. The steps are those of the Llama layer in transformers, in f32 but for the
              roundings to T that are shown:
              z = T(x + residual), the new residual; z = x without residual
              inverse = 1 / sqrt(sum z^2 / n + eps)
              out = T(T(z * inverse) * weight)
    Error     |out - exact| <= (|exact| ((h/2 + 5) u + 2 t) + s (1 + |weight|)) (1 + 2^-6) per element, if the
              sum of the squares of the row is below 2^127. exact is out without roundings, of z as it is
              returned and of the f32 eps; u = 2^-24; h = 14 + ceil(n/c) with c = 2048, for f32 1024; t = 0,
              2^-11, 2^-8 and s = 2^-149, 2^-25, 2^-134 for f32, f16, bf16. The tests use this expression
    NaN, Inf  A row that holds a NaN is NaN. If the sum of the squares overflows, finite values give 0 and
              infinite values give NaN, as in f32 steps of torch
    Raises    ValueError that names the argument, its value and the allowed values; TypeError for an argument
              of a wrong Python type (docs/errors.md lists both). n is at most 2^24
    Devices   CPU (generic, avx2, avx512_vnni), CUDA sm_80 and newer. All tensors are on one device. All
              devices and instruction sets give the same bits, and a row has the same bits in every batch.
              There is no gradient
    Source    csrc/ops/rms_norm/rms_norm.h
    """
    _require("rms_norm", x, weight, eps, residual)
    out, new_residual = call(torch.ops.lamina.rms_norm, x, weight, eps, residual)
    return out if residual is None else (out, new_residual)


@overload
def rms_norm_int8(
    x: Tensor, weight: Tensor, *, eps: float = ..., residual: None = ..., symmetric: bool = ...
) -> QuantizedInt8: ...
@overload
def rms_norm_int8(
    x: Tensor, weight: Tensor, *, eps: float = ..., residual: Tensor, symmetric: bool = ...
) -> tuple[QuantizedInt8, Tensor]: ...


def rms_norm_int8(
    x: Tensor, weight: Tensor, *, eps: float = 1e-6, residual: Tensor | None = None, symmetric: bool = True
) -> QuantizedInt8 | tuple[QuantizedInt8, Tensor]:
    """quantize_int8(rms_norm(...), symmetric=symmetric) as one op: the input of int8 linear layers.

    x, weight, eps, residual  as in rms_norm
    symmetric                 as in quantize_int8
    returns                   QuantizedInt8 of [m, n]; with residual the tuple (QuantizedInt8, new residual).
                              They have the bits that the two ops in sequence give: the normalised row is
                              rounded to the dtype of x before it is quantised. A row with a NaN or an Inf
                              gets q = 0, zero_point = 0 and scale = NaN
    Error                     that of rms_norm, and on top that of quantize_int8
    Raises                    as rms_norm
    Devices                   as rms_norm
    Source                    csrc/ops/rms_norm/rms_norm.h
    """
    _require("rms_norm_int8", x, weight, eps, residual)
    require_bool("rms_norm_int8", "symmetric", symmetric)
    q, scale, zero_point, new_residual = call(
        torch.ops.lamina.rms_norm_int8, x, weight, eps, residual, symmetric
    )
    quantized = QuantizedInt8(q, scale, None if symmetric else zero_point)
    return quantized if residual is None else (quantized, new_residual)


def _require(op: str, x: Tensor, weight: Tensor, eps: float, residual: Tensor | None) -> None:
    require_tensors(op, x=x, weight=weight)
    require_float(op, "eps", eps)
    require_optional_tensors(op, residual=residual)


@fake("rms_norm")
def _fake_rms_norm(given: Arguments) -> tuple[Tensor, Tensor]:
    m, n, new_residual = _checked("rms_norm", given)
    return given.x.new_empty((m, n)), new_residual


@fake("rms_norm_int8")
def _fake_rms_norm_int8(given: Arguments) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    m, n, new_residual = _checked("rms_norm_int8", given)
    return (*fake_quantized(given.x, m, n, given.symmetric), new_residual)


def _checked(op: str, given: Arguments) -> tuple[int, int, Tensor]:
    """m, n and the new residual of a fake kernel."""
    require_2d(op, "x", given.x, "[m, n]")
    require_one_device(op, vars(given))
    m, n = given.x.shape
    return m, n, given.x.new_empty((0 if given.residual is None else m, n))
