"""Typed Python twins of torch.ops.lamina.*, and the fake kernels that let them trace."""

from __future__ import annotations

import torch

from lamina.ops.gemm_int4 import _fake_gemm_int4, gemm_int4, register_gradients
from lamina.ops.gemm_int4_int8 import _fake_gemm_int4_int8, gemm_int4_int8
from lamina.ops.gemm_int8 import (
    _fake_gemm_int8,
    _fake_gemm_int8_quantized,
    gemm_int8,
    gemm_int8_quantized,
)
from lamina.ops.pack_int4 import PackedInt4, _fake_pack_int4, _fake_unpack_int4, pack_int4
from lamina.ops.pack_int8 import PackedInt8, _fake_pack_int8, _fake_unpack_int8, pack_int8
from lamina.ops.quantize_int8 import QuantizedInt8, _fake_quantize_int8, quantize_int8

__all__ = [
    "PackedInt4",
    "PackedInt8",
    "QuantizedInt8",
    "gemm_int4",
    "gemm_int4_int8",
    "gemm_int8",
    "gemm_int8_quantized",
    "pack_int4",
    "pack_int8",
    "quantize_int8",
]

_FAKES = {
    "gemm_int4": _fake_gemm_int4,
    "gemm_int4_int8": _fake_gemm_int4_int8,
    "gemm_int8": _fake_gemm_int8,
    "gemm_int8_quantized": _fake_gemm_int8_quantized,
    "pack_int4": _fake_pack_int4,
    "pack_int8": _fake_pack_int8,
    "quantize_int8": _fake_quantize_int8,
    "unpack_int4": _fake_unpack_int4,
    "unpack_int8": _fake_unpack_int8,
}


def register_fakes(namespace: str) -> None:
    """Registers the shape and dtype rules of every op in torch.ops.<namespace>."""
    for name, fake in _FAKES.items():
        torch.library.register_fake(f"{namespace}::{name}")(fake)


register_fakes("lamina")
register_gradients("lamina")
