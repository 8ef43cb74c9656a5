"""Packed weights: what the kernels read, made and unmade by the pack ops; Python never permutes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lamina._checks import (
    call,
    require_2d,
    require_optional_int,
    require_optional_tensors,
    require_str,
    require_tensors,
)

TILE_N = 16  # csrc/layout/int8_tile.h
TILE_K = 64
GROUP = 128  # csrc/ops/gemm_int8/gemm_int8.h
MAX_K = (1 << 24) - 1  # csrc/ops/gemm_int8/gemm_int8.h: int32 column sums


@dataclass(frozen=True, eq=False)
class PackedInt8:
    """An int8 weight [n, k] in the layout `int8_tile` v1 (docs/layouts.md).

    data         [ceil(n/16), ceil(k/64), 16, 16, 4] int8, padding zero
    column_sums  [n] int32, sum over k: what an activation zero point is multiplied with; with scales along k
                 [ceil(k/128), n], over each group of 128
    """

    data: Tensor
    column_sums: Tensor
    n: int
    k: int

    FORMAT = "int8_tile"
    VERSION = 1

    @property
    def group(self) -> int | None:
        """Input features that share scales: 128, or None for all."""
        return GROUP if self.column_sums.dim() == 2 else None

    @property
    def nbytes(self) -> int:
        """Bytes held: packed weights with their padding, and the column sums."""
        return self.data.nbytes + self.column_sums.nbytes

    @property
    def device(self) -> torch.device:
        """Where the weight is."""
        return self.data.device

    def unpack(self) -> Tensor:
        """The weight [n, k] int8 that was packed, exactly, on the same device; unpacked on the CPU."""
        data = self.data.cpu() if self.data.is_cuda else self.data
        w: Tensor = call(torch.ops.lamina.unpack_int8, data, self.n, self.k)
        return w.to(self.device)

    def to(self, device: torch.device | str | int) -> PackedInt8:
        """The same packed weight, byte for byte, on another device."""
        return PackedInt8(self.data.to(device), self.column_sums.to(device), self.n, self.k)

    def cuda(self, device: torch.device | str | int | None = None) -> PackedInt8:
        """The same packed weight on a CUDA device, the current one by default."""
        return self.to("cuda" if device is None else device)

    def cpu(self) -> PackedInt8:
        """The same packed weight on the CPU."""
        return self.to("cpu")


def pack_int8(w: Tensor, group: int | None = None) -> PackedInt8:
    """Packs an int8 weight [n, k], any row stride, for gemm_int8; any value from -128 to 127 is kept.

    group = 128 is for scales along k: gemm_int8 then takes an a_scale [m, ceil(k/128)], a w_scale
    [ceil(k/128), n] or both. The packed bytes are the same, the column sums those of each group. None: scales
    of all k.
    The result is on the device of w. A weight on a CUDA device is packed on the CPU and moved back, which
    waits for the GPU and costs a copy each way, once per weight; the bytes are the same on every device.
    """
    require_tensors("pack_int8", w=w)
    require_optional_int("pack_int8", "group", group)
    data, column_sums = call(torch.ops.lamina.pack_int8, w.cpu() if w.is_cuda else w, group)
    return PackedInt8(data, column_sums, w.shape[0], w.shape[1]).to(w.device)


MOST_CODE = 15
INT4_LAYOUTS = ("int4_tile", "int4_rows")  # for CUDA kernels, for CPU kernels


@dataclass(frozen=True, eq=False)
class PackedInt4:
    """The codes 0..15 of an int4 weight [n, k] in a layout of docs/layouts.md, version 1.

    data    [ceil(n/16), ceil(k/64), 512] uint8, two codes a byte, padding zero
    layout  "int4_tile", what CUDA kernels read, or "int4_rows", what CPU kernels read
    """

    data: Tensor
    n: int
    k: int
    layout: str

    VERSION = 1

    @property
    def nbytes(self) -> int:
        """Bytes held, padding included."""
        return self.data.nbytes

    @property
    def device(self) -> torch.device:
        """Where the weight is."""
        return self.data.device

    def unpack(self) -> Tensor:
        """The codes [n, k] uint8 that were packed, exactly, on the same device.

        They stay in the order of packing: with a perm q[:, perm], 0 where perm is -1.
        """
        q: Tensor = call(torch.ops.lamina.unpack_int4, self.data, self.n, self.k, self.layout)
        return q

    def to(self, device: torch.device | str | int) -> PackedInt4:
        """The same packed weight, byte for byte, on another device."""
        return PackedInt4(self.data.to(device), self.n, self.k, self.layout)

    def part(self, n: tuple[int, int] | None = None, k: tuple[int, int] | None = None) -> PackedInt4:
        """The packed weight of rows n[0]..n[1] and input features k[0]..k[1], None for all: no unpacking.

        Each begins at a multiple of 16 and 64, and ends at one or with the weight. A part along k is copied.
        """
        n, k = n or (0, self.n), k or (0, self.k)
        for name, (begin, end), extent, tile in (("n", n, self.n, TILE_N), ("k", k, self.k, TILE_K)):
            is_cut = begin % tile == 0 and (end % tile == 0 or end == extent)
            if not (0 <= begin <= end <= extent and is_cut):
                raise ValueError(
                    f"lamina: PackedInt4.part: {name} = {(begin, end)}; must be within (0, {extent}), begin "
                    f"at a multiple of {tile}, and end at one or at {extent}"
                )
        data = self.data[n[0] // TILE_N : -(-n[1] // TILE_N), k[0] // TILE_K : -(-k[1] // TILE_K)]
        return PackedInt4(data.contiguous(), n[1] - n[0], k[1] - k[0], self.layout)


def pack_int4(q: Tensor, layout: str = "int4_tile", perm: Tensor | None = None) -> PackedInt4:
    """Packs the codes 0..15 of an int4 weight, uint8 [n, k], any row stride; another value is an error.

    layout: "int4_tile" for CUDA kernels, "int4_rows" for CPU kernels. The result is on the device of q,
    where it is packed; on a CUDA device the call waits for the values to be checked.
    perm: int32 [K], for act-order. Packed are the columns q[:, perm], code 0 where perm is -1; the result has
    k = K. Give the products the same perm.
    """
    require_tensors("pack_int4", q=q)
    require_str("pack_int4", "layout", layout)
    require_optional_tensors("pack_int4", perm=perm)
    if q.is_cuda and not _is_packable(q, perm):
        q = q.cpu()  # which finds out what is wrong, and says it
    order = None if perm is None else perm.to(q.device)
    data = call(torch.ops.lamina.pack_int4, q, layout, order)
    return PackedInt4(data, q.shape[0], q.shape[1] if perm is None else len(perm), layout)


def _is_packable(q: Tensor, perm: Tensor | None) -> bool:
    """Whether the values are allowed; dtypes and shapes are for the op to check."""
    wrong = (q > MOST_CODE).any()
    if perm is not None:
        wrong |= ((perm < -1) | (perm >= q.shape[-1])).any().to(q.device)
    return not bool(wrong)


def packed_shape(n: int, k: int) -> tuple[int, int, int, int, int]:
    """Shape of PackedInt8.data for a weight [n, k]."""
    return -(-n // TILE_N), -(-k // TILE_K), TILE_K // 4, TILE_N, 4


def packed_int4_shape(n: int, k: int) -> tuple[int, int, int]:
    """Shape of PackedInt4.data for a weight [n, k]."""
    return -(-n // TILE_N), -(-k // TILE_K), TILE_N * TILE_K // 2


def _fake_pack_int8(w: Tensor, group: int | None = None) -> tuple[Tensor, Tensor]:
    require_2d("pack_int8", "w", w, "[n, k]")
    n, k = w.shape
    sums = (n,) if group is None else (-(-k // GROUP), n)
    return w.new_empty(packed_shape(n, k)), w.new_empty(sums, dtype=torch.int32)


def _fake_pack_int4(q: Tensor, layout: str, perm: Tensor | None = None) -> Tensor:
    require_2d("pack_int4", "q", q, "[n, k]")
    return q.new_empty(packed_int4_shape(q.shape[0], q.shape[1] if perm is None else perm.shape[0]))


def _fake_unpack_int4(data: Tensor, n: int, k: int, layout: str) -> Tensor:
    return data.new_empty((n, k))


def _fake_unpack_int8(data: Tensor, n: int, k: int) -> Tensor:
    return data.new_empty((n, k))
