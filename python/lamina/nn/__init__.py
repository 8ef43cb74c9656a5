"""Modules that run on lamina's ops."""

from __future__ import annotations

from lamina.nn.int4_linear import Int4Linear
from lamina.nn.int8_linear import Int8Linear
from lamina.nn.packed_linear import PackedLinear
from lamina.nn.rms_norm import RMSNorm
from lamina.nn.sparse24_linear import Sparse24Int4Linear, Sparse24Int8Linear, Sparse24Linear

__all__ = [
    "Int4Linear",
    "Int8Linear",
    "PackedLinear",
    "RMSNorm",
    "Sparse24Int4Linear",
    "Sparse24Int8Linear",
    "Sparse24Linear",
]
