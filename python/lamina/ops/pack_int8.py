"""int8 weights in the layout that the kernels read; the ops pack and unpack them, Python never permutes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from lamina._checks import call, require_2d, require_optional_int, require_tensors
from lamina._library import build_info
from lamina.ops.registration import Arguments, fake
from lamina.ops.tiles import Range, tiles_of

LAYOUT = "int8_tile"
GROUP: int = build_info()["limits"]["gemm_int8"]["group"]  # input features that share scales along k
_INT8_TILE: dict[str, int] = build_info()["layouts"][LAYOUT]
TILE_N, TILE_K = _INT8_TILE["tile_n"], _INT8_TILE["tile_k"]


@dataclass(frozen=True, eq=False)
class PackedInt8:
    """An int8 weight [n, k] in the layout `int8_tile` v1 (docs/layouts.md).

    data         [ceil(n/16), ceil(k/64), 16, 16, 4] int8, padding zero
    column_sums  [n] int32, sum over k, which the products multiply with the zero points of activations; with
                 scales along k [ceil(k/128), n], over each group of 128
    """

    data: Tensor
    column_sums: Tensor
    n: int
    k: int

    layout: ClassVar = LAYOUT  # on every device
    VERSION: ClassVar = _INT8_TILE["version"]

    @property
    def group(self) -> int | None:
        """Input features that share scales: 128, or None where all of k share them."""
        return GROUP if self.column_sums.dim() == 2 else None

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weight, with its padding, and of the column sums."""
        return self.data.nbytes + self.column_sums.nbytes

    @property
    def device(self) -> torch.device:
        """The device that holds the weight."""
        return self.data.device

    def unpack(self) -> Tensor:
        """The weight [n, k] int8 that was packed, exactly, on the same device. The CPU unpacks it."""
        data = self.data.cpu() if self.data.is_cuda else self.data
        w: Tensor = call(torch.ops.lamina.unpack_int8, data, self.n, self.k)
        return w.to(self.device)

    def to(self, device: torch.device | str | int) -> PackedInt8:
        """The same packed weight, byte for byte, on another device."""
        return PackedInt8(self.data.to(device), self.column_sums.to(device), self.n, self.k)

    def clone(self) -> PackedInt8:
        """The same packed weight in memory of its own."""
        return replace(self, data=self.data.clone(), column_sums=self.column_sums.clone())

    def repacked(self, layout: str) -> PackedInt8:
        """The weight itself: all kernels read one layout."""
        return self

    def shard(self, n: Range | None = None, k: Range | None = None) -> PackedInt8:
        """The packed weight of rows n[0]..n[1] and features k[0]..k[1]; None takes all.

        A range of n begins at a multiple of 16, a range of k at a multiple of 64, or of 128 where groups
        share scales. A range ends at such a multiple, or at the end of the weight. A shard along k is a copy,
        and its column sums are those of its own features.
        """
        n, k = n or (0, self.n), k or (0, self.k)
        data = self.data[tiles_of("PackedInt8", n, k, (self.n, self.k), (TILE_N, TILE_K), self.group)]
        part = PackedInt8(data.contiguous(), self.column_sums, n[1] - n[0], k[1] - k[0])
        return replace(part, column_sums=sums_of_part(self.column_sums, n, k, self.k, part.unpack))

    def cuda(self, device: torch.device | str | int | None = None) -> PackedInt8:
        """The same packed weight on a CUDA device, the current one by default."""
        return self.to("cuda" if device is None else device)

    def cpu(self) -> PackedInt8:
        """The same packed weight on the CPU."""
        return self.to("cpu")


def pack_int8(w: Tensor, group: int | None = None) -> PackedInt8:
    """Packs an int8 weight [n, k], any row stride, for gemm_int8; every value from -128 to 127 is kept.

    group    None: one scale for all of k. 128: scales along k; gemm_int8 then takes an a_scale
             [m, ceil(k/128)], a w_scale [ceil(k/128), n] or both. The packed bytes are the same, and the
             column sums are those of each group
    returns  PackedInt8 on the device of w

    The CPU packs a weight of a CUDA device and moves the result back: the call waits for the GPU and costs a
    copy each way, once per weight. The bytes are the same on every device.
    """
    require_tensors("pack_int8", w=w)
    require_optional_int("pack_int8", "group", group)
    data, column_sums = call(torch.ops.lamina.pack_int8, w.cpu() if w.is_cuda else w, group)
    return PackedInt8(data, column_sums, w.shape[0], w.shape[1]).to(w.device)


def sums_of_part(sums: Tensor, n: Range, k: Range, extent: int, unpack: Callable[[], Tensor]) -> Tensor:
    """The column sums of rows n and features k of a weight with column sums `sums` and `extent` features.

    unpack   gives int8 [rows, any] with the values of the part; only sums over a part of k need them
    """
    sums = sums[..., n[0] : n[1]]
    if sums.dim() == 2:
        sums = sums[k[0] // GROUP : -(-k[1] // GROUP)]
    elif k != (0, extent):
        sums = unpack().sum(1, dtype=torch.int32)
    return sums.contiguous()


def packed_shape(n: int, k: int) -> tuple[int, int, int, int, int]:
    """Shape of PackedInt8.data for a weight [n, k]."""
    group_k = _INT8_TILE["group_k"]
    return -(-n // TILE_N), -(-k // TILE_K), TILE_K // group_k, TILE_N, group_k


@fake("pack_int8")
def _fake_pack_int8(given: Arguments) -> tuple[Tensor, Tensor]:
    require_2d("pack_int8", "w", given.w, "[n, k]")
    n, k = given.w.shape
    sums = (n,) if given.group is None else (-(-k // GROUP), n)
    return given.w.new_empty(packed_shape(n, k)), given.w.new_empty(sums, dtype=torch.int32)


@fake("unpack_int8")
def _fake_unpack_int8(given: Arguments) -> Tensor:
    unpacked: Tensor = given.data.new_empty((given.n, given.k))
    return unpacked
