"""int8 quantisation of activations, per token or with a given scale."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lamina._checks import (
    call,
    require_2d,
    require_bool,
    require_one_device,
    require_optional_tensors,
    require_tensors,
)
from lamina.ops.registration import Arguments, fake


class QuantizedInt8(NamedTuple):
    """An int8 tensor with its scales: x ~ (q - zero_point) * scale, row by row.

    q           [m, k]  int8
    scale       [m, 1]  f32
    zero_point  [m, 1]  int8, or None if symmetric
    """

    q: Tensor
    scale: Tensor
    zero_point: Tensor | None


def quantize_int8(
    x: Tensor, *, scale: Tensor | None = None, zero_point: Tensor | None = None, symmetric: bool = True
) -> QuantizedInt8:
    """Quantises x to int8 with one scale, and if asymmetric one zero point, per row.

    x           [m, k]  f32 | f16 | bf16, any row stride, m >= 0
    scale       f32, 1 element or [m, 1], finite and >= 2^-126: static quantisation. None: dynamic, per row
    zero_point  int8, 1 element or [m, 1]: given if and only if scale is given and symmetric is False
    symmetric   True: q is in [-127, 127], and there is no zero point. False: q is in [-128, 127]
    returns     QuantizedInt8: q [m, k] int8, scale [m, 1] f32, zero_point [m, 1] int8 or None.  In f32:
                dynamic symmetric   scale = max(max|x| / 127, 2^-126)
                dynamic asymmetric  scale = max(hi/255 - lo/255, 2^-126),
                                    zero_point = clamp(rint(-128 - lo * (1/scale)), -128, 127)
                                    with lo = min(0, min x), hi = max(0, max x)
                q = clamp(rint(x * (1/scale)) + zero_point, -127 or -128, 127), rint to even
    NaN, Inf    A row with a NaN (if dynamic also with an Inf) gets q = 0, zero_point = 0 and scale = NaN, so
                that every product of the row is NaN. With a static scale +-Inf saturates. A row of zeros
                gets scale = 2^-126
    Error       |(q - zero_point) * scale - x| <= scale * (0.5 + 2^-14) inside the representable range
    Raises      ValueError that names the argument, its value and the allowed values; TypeError for an
                argument that is not a tensor (docs/errors.md lists both). On CUDA a static scale that is not
                allowed raises nothing, because the check would wait for the GPU: its row gets q = 0 and
                scale = NaN
    Devices     CPU (generic, avx2, avx512_vnni), CUDA sm_80 and newer. All tensors are on one device. All
                devices and instruction sets give the same bits
    Source      csrc/ops/quantize_int8/quantize_int8.h
    """
    require_tensors("quantize_int8", x=x)
    require_optional_tensors("quantize_int8", scale=scale, zero_point=zero_point)
    require_bool("quantize_int8", "symmetric", symmetric)
    q, row_scale, row_zero_point = call(torch.ops.lamina.quantize_int8, x, scale, zero_point, symmetric)
    return QuantizedInt8(q, row_scale, None if symmetric else row_zero_point)


@fake("quantize_int8")
def _fake_quantize_int8(given: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    require_2d("quantize_int8", "x", given.x, "[m, k]")
    require_one_device("quantize_int8", vars(given))
    m, k = given.x.shape
    return fake_quantized(given.x, m, k, given.symmetric)


def fake_quantized(like: Tensor, m: int, k: int, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The results of the fake kernels of ops that quantise [m, k] values."""
    return (
        like.new_empty((m, k), dtype=torch.int8),
        like.new_empty((m, 1), dtype=torch.float32),
        like.new_empty((0 if symmetric else m, 1), dtype=torch.int8),
    )
