"""Packed weights: what the kernels read, made and unmade by the pack ops; Python never permutes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lamina._checks import call, require_2d

TILE_N = 16  # csrc/layout/int8_tile.h
TILE_K = 64
MAX_K = (1 << 24) - 1  # csrc/ops/gemm_int8/gemm_int8.h: int32 column sums


@dataclass(frozen=True, eq=False)
class PackedInt8:
    """An int8 weight [n, k] in the layout `int8_tile` v1 (docs/layouts.md).

    data         [ceil(n/16), ceil(k/64), 16, 16, 4] int8, padding zero
    column_sums  [n] int32, sum over k: what an activation zero point is multiplied with
    """

    data: Tensor
    column_sums: Tensor
    n: int
    k: int

    FORMAT = "int8_tile"
    VERSION = 1

    @property
    def nbytes(self) -> int:
        """Bytes held: packed weights with their padding, and the column sums."""
        return self.data.nbytes + self.column_sums.nbytes

    def unpack(self) -> Tensor:
        """The weight [n, k] int8 that was packed, exactly."""
        w: Tensor = call(torch.ops.lamina.unpack_int8, self.data, self.n, self.k)
        return w

    def to(self, device: torch.device | str) -> PackedInt8:
        """The same packed weight on another device."""
        return PackedInt8(self.data.to(device), self.column_sums.to(device), self.n, self.k)


def pack_int8(w: Tensor) -> PackedInt8:
    """Packs an int8 weight [n, k], any row stride, for gemm_int8; any value from -128 to 127 is kept."""
    data, column_sums = call(torch.ops.lamina.pack_int8, w)
    return PackedInt8(data, column_sums, w.shape[0], w.shape[1])


def packed_shape(n: int, k: int) -> tuple[int, int, int, int, int]:
    """Shape of PackedInt8.data for a weight [n, k]."""
    return -(-n // TILE_N), -(-k // TILE_K), TILE_K // 4, TILE_N, 4


def _fake_pack_int8(w: Tensor) -> tuple[Tensor, Tensor]:
    require_2d("pack_int8", "w", w, "[n, k]")
    return w.new_empty(packed_shape(w.shape[0], w.shape[1])), w.new_empty((w.shape[0],), dtype=torch.int32)


def _fake_unpack_int8(data: Tensor, n: int, k: int) -> Tensor:
    return data.new_empty((n, k))
