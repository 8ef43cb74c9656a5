"""2:4 weights in the layouts that the kernels read; the ops pack and unpack them, Python never permutes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from lamina._checks import call, require_2d, require_optional_int, require_str
from lamina._library import build_info
from lamina.ops.compress_sparse24 import Sparse24
from lamina.ops.pack_int8 import GROUP, sums_of_part
from lamina.ops.registration import Arguments, fake
from lamina.ops.tiles import Range, tiles_of

CPU_LAYOUT, CUDA_LAYOUT = "sparse24_rows", "sparse24_tile"
_ROWS: dict[str, int] = build_info()["layouts"][CPU_LAYOUT]  # the same sizes in both layouts
TILE_N, TILE_K = _ROWS["tile_n"], _ROWS["tile_k"]
_BITS = {torch.uint8: 4, torch.int8: 8, torch.float16: 16, torch.bfloat16: 16, torch.float32: 32}


def sparse24_layout_for(device: torch.device) -> str:
    """The layout of packed 2:4 weights that the kernels of a device read."""
    return CUDA_LAYOUT if device.type == "cuda" else CPU_LAYOUT


@dataclass(frozen=True, eq=False)
class PackedSparse24:
    """A 2:4 weight [n, k] in a layout of docs/layouts.md, version 1.

    data         [ceil(n/16), ceil(k/64), bytes of a tile] uint8, padding zero
    column_sums  of an int8 weight [n] int32, sum over k, or [ceil(k/128), n] with scales along k; else None
    dtype        of the weight; uint8 are int4 codes
    layout       "sparse24_rows" for CPU kernels, or "sparse24_tile" for CUDA kernels
    """

    data: Tensor
    column_sums: Tensor | None
    n: int
    k: int
    dtype: torch.dtype
    layout: str = CPU_LAYOUT

    VERSION: ClassVar = _ROWS["version"]

    @property
    def group(self) -> int | None:
        """Input features that share scales of an int8 weight: 128, or None where all of k share them."""
        return GROUP if self.column_sums is not None and self.column_sums.dim() == 2 else None

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weight, with its padding, and of the column sums."""
        return self.data.nbytes + (0 if self.column_sums is None else self.column_sums.nbytes)

    @property
    def device(self) -> torch.device:
        """The device that holds the weight."""
        return self.data.device

    def to(self, device: torch.device | str) -> PackedSparse24:
        """The same weight in the memory of another device, in the same layout."""
        sums = None if self.column_sums is None else self.column_sums.to(device)
        return replace(self, data=self.data.to(device), column_sums=sums)

    def shard(self, n: Range | None = None, k: Range | None = None) -> PackedSparse24:
        """The packed weight of rows n[0]..n[1] and features k[0]..k[1], as PackedInt8.shard cuts."""
        n, k = n or (0, self.n), k or (0, self.k)
        data = self.data[tiles_of("PackedSparse24", n, k, (self.n, self.k), (TILE_N, TILE_K), self.group)]
        part = replace(self, data=data.contiguous(), column_sums=None, n=n[1] - n[0], k=k[1] - k[0])
        if self.column_sums is None:
            return part
        sums = sums_of_part(self.column_sums, n, k, self.k, lambda: part.unpack().values)
        return replace(part, column_sums=sums)

    def unpack(self) -> Sparse24:
        """The weight that was packed, exactly."""
        values, metadata = call(
            torch.ops.lamina.unpack_sparse24, self.data, self.n, self.k, self.layout, self.dtype
        )
        return Sparse24(values, metadata, self.n, self.k)


def pack_sparse24(sparse: Sparse24, layout: str = CPU_LAYOUT, group: int | None = None) -> PackedSparse24:
    """Packs a 2:4 weight for the products of matmul_sparse24.

    sparse   Sparse24 from compress_sparse24; int8, f16, bf16, f32, or uint8 for int4 codes 0..15
    layout   "sparse24_rows" for CPU kernels, "sparse24_tile" for CUDA kernels, which take no f32
    group    for int8 only, as in pack_int8. None: one scale for all of k. 128: scales along k
    returns  PackedSparse24
    Raises   ValueError naming argument, value and allowed values; metadata that keeps no two entries of a
             group in rising order is named by its row and its group
    """
    if not isinstance(sparse, Sparse24):
        raise TypeError(
            "lamina::pack_sparse24: sparse must be Sparse24 (lamina.compress_sparse24), "
            f"got {type(sparse).__name__}"
        )
    require_str("pack_sparse24", "layout", layout)
    require_optional_int("pack_sparse24", "group", group)
    data, sums = call(torch.ops.lamina.pack_sparse24, sparse.values, sparse.metadata, sparse.k, layout, group)
    column_sums = sums if sparse.dtype == torch.int8 else None
    return PackedSparse24(data, column_sums, sparse.n, sparse.k, sparse.dtype, layout)


def require_packed_sparse24(op: str, w: object, dtypes: tuple[torch.dtype, ...]) -> None:
    """The argument w must be a PackedSparse24 of one of the dtypes."""
    if not isinstance(w, PackedSparse24):
        raise TypeError(
            f"lamina::{op}: w must be PackedSparse24 (lamina.pack_sparse24), got {type(w).__name__}"
        )
    if w.dtype not in dtypes:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(
            f"lamina::{op}: w holds {str(w.dtype).removeprefix('torch.')} values; allowed: {allowed}"
        )


def packed_sparse24_shape(n: int, k: int, dtype: torch.dtype) -> tuple[int, int, int]:
    """Shape of PackedSparse24.data for a weight [n, k]."""
    return -(-n // TILE_N), -(-k // TILE_K), TILE_N * TILE_K * (_BITS[dtype] + 2) // 16


@fake("pack_sparse24")
def _fake_pack_sparse24(given: Arguments) -> tuple[Tensor, Tensor]:
    require_2d("pack_sparse24", "values", given.values, "[n, k / 2]")
    n, k, dtype = given.values.shape[0], given.k, given.values.dtype
    data = given.values.new_empty(packed_sparse24_shape(n, k, dtype), dtype=torch.uint8)
    sums: tuple[int, ...] = (n,) if given.group is None else (-(-k // GROUP), n)
    return data, given.values.new_empty(sums if dtype == torch.int8 else (0,), dtype=torch.int32)


@fake("unpack_sparse24")
def _fake_unpack_sparse24(given: Arguments) -> tuple[Tensor, Tensor]:
    values = given.data.new_empty((given.n, given.k // 2), dtype=given.dtype)
    return values, given.data.new_empty((given.n, -(-given.k // 8)))
