"""int4 weights in the layouts that the kernels read; the ops pack and unpack them, Python never permutes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from lamina._checks import call, require_2d, require_optional_tensors, require_str, require_tensors
from lamina._library import build_info
from lamina.ops.registration import Arguments, fake
from lamina.ops.tiles import Range, tiles_of

MOST_CODE = 15
_LAYOUTS: dict[str, str] = {
    layout["device"]: name for name, layout in build_info()["layouts"].items() if "device" in layout
}
CPU_LAYOUT, CUDA_LAYOUT = _LAYOUTS["cpu"], _LAYOUTS["cuda"]
INT4_LAYOUTS = (CUDA_LAYOUT, CPU_LAYOUT)
_TILE: dict[str, int] = build_info()["layouts"][CPU_LAYOUT]  # the same for both layouts
TILE_N, TILE_K = _TILE["tile_n"], _TILE["tile_k"]


def layout_for(device: torch.device) -> str:
    """The layout of packed int4 weights that the kernels of a device read."""
    return CUDA_LAYOUT if device.type == "cuda" else CPU_LAYOUT


@dataclass(frozen=True, eq=False)
class PackedInt4:
    """The codes 0..15 of an int4 weight [n, k] in a layout of docs/layouts.md, version 1.

    data    [ceil(n/16), ceil(k/64), 512] uint8, two codes a byte, padding zero
    layout  "int4_tile" for CUDA kernels, or "int4_rows" for CPU kernels
    """

    data: Tensor
    n: int
    k: int
    layout: str

    VERSION: ClassVar = _TILE["version"]

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weight, with its padding."""
        return self.data.nbytes

    @property
    def device(self) -> torch.device:
        """The device that holds the weight."""
        return self.data.device

    def unpack(self) -> Tensor:
        """The codes [n, k] uint8 that were packed, exactly, on the same device.

        The codes stay in the order in which they were packed: with a perm q[:, perm], 0 where perm is -1.
        """
        q: Tensor = call(torch.ops.lamina.unpack_int4, self.data, self.n, self.k, self.layout)
        return q

    def to(self, device: torch.device | str | int) -> PackedInt4:
        """The same packed weight, byte for byte, on another device."""
        return PackedInt4(self.data.to(device), self.n, self.k, self.layout)

    def clone(self) -> PackedInt4:
        """The same packed weight in memory of its own."""
        return replace(self, data=self.data.clone())

    def repacked(self, layout: str) -> PackedInt4:
        """The same codes in another layout, on the same device, which packs them."""
        return pack_int4(self.unpack(), layout)

    def shard(self, n: Range | None = None, k: Range | None = None) -> PackedInt4:
        """The packed weight of rows n[0]..n[1] and features k[0]..k[1], without unpacking; None takes all.

        A range of n begins at a multiple of 16, a range of k at a multiple of 64. A range ends at such a
        multiple, or at the end of the weight. A shard along k is a copy.
        """
        n, k = n or (0, self.n), k or (0, self.k)
        data = self.data[tiles_of("PackedInt4", n, k, (self.n, self.k), (TILE_N, TILE_K))]
        return PackedInt4(data.contiguous(), n[1] - n[0], k[1] - k[0], self.layout)


def pack_int4(q: Tensor, layout: str = "int4_tile", perm: Tensor | None = None) -> PackedInt4:
    """Packs the codes of an int4 weight where they are.

    q        [n, k]  uint8, any row stride, values 0..15
    layout   "int4_tile" for CUDA kernels, "int4_rows" for CPU kernels
    perm     [K]  int32, for act-order: packs the columns q[:, perm], and code 0 where perm is -1. The result
             has k = K; give the products the same perm
    returns  PackedInt4 on the device of q. On a CUDA device the call waits until the values are checked
    Raises   ValueError naming argument, value and allowed values
    """
    require_tensors("pack_int4", q=q)
    require_str("pack_int4", "layout", layout)
    require_optional_tensors("pack_int4", perm=perm)
    if q.is_cuda and not _is_packable(q, perm):
        q = q.cpu()  # the CPU op names the wrong value in its error
    order = None if perm is None else perm.to(q.device)
    data = call(torch.ops.lamina.pack_int4, q, layout, order)
    return PackedInt4(data, q.shape[0], q.shape[1] if perm is None else len(perm), layout)


def _is_packable(q: Tensor, perm: Tensor | None) -> bool:
    """Whether the values are allowed; the op checks dtypes and shapes."""
    wrong = (q > MOST_CODE).any()
    if perm is not None:
        wrong |= ((perm < -1) | (perm >= q.shape[-1])).any().to(q.device)
    return not bool(wrong)


def packed_int4_shape(n: int, k: int) -> tuple[int, int, int]:
    """Shape of PackedInt4.data for a weight [n, k]."""
    return -(-n // TILE_N), -(-k // TILE_K), _TILE["tile_bytes"]


@fake("pack_int4")
def _fake_pack_int4(given: Arguments) -> Tensor:
    require_2d("pack_int4", "q", given.q, "[n, k]")
    k = given.q.shape[1] if given.perm is None else given.perm.shape[0]
    packed: Tensor = given.q.new_empty(packed_int4_shape(given.q.shape[0], k))
    return packed


@fake("unpack_int4")
def _fake_unpack_int4(given: Arguments) -> Tensor:
    unpacked: Tensor = given.data.new_empty((given.n, given.k))
    return unpacked
