"""2:4 weights in the layouts that the kernels read; the ops pack and unpack them, Python never permutes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from lamina._checks import (
    call,
    require_2d,
    require_int,
    require_optional_int,
    require_optional_tensors,
    require_str,
    require_tensors,
)
from lamina._library import build_info
from lamina.ops import pack_int4 as int4
from lamina.ops.compress_sparse24 import Sparse24
from lamina.ops.pack_int4 import PackedInt4, pack_int4
from lamina.ops.pack_int8 import GROUP, PackedInt8, pack_int8, packed_shape, sums_of_part
from lamina.ops.registration import Arguments, fake
from lamina.ops.tiles import Range, is_at_tiles, tiles_of

CPU_LAYOUT, CUDA_LAYOUT = "sparse24_rows", "sparse24_tile"
_ROWS: dict[str, int] = build_info()["layouts"][CPU_LAYOUT]  # the same sizes in both layouts
TILE_N, TILE_K, BLOCK_N = _ROWS["tile_n"], _ROWS["tile_k"], _ROWS["block_n"]
_DENSE_LAYOUTS = {CPU_LAYOUT: int4.CPU_LAYOUT, CUDA_LAYOUT: int4.CUDA_LAYOUT}  # of int4 codes
_BITS = {torch.uint8: 4, torch.int8: 8, torch.float16: 16, torch.bfloat16: 16, torch.float32: 32}


def sparse24_layout_for(device: torch.device) -> str:
    """The layout of packed 2:4 weights that the kernels of a device read."""
    return CUDA_LAYOUT if device.type == "cuda" else CPU_LAYOUT


@dataclass(frozen=True, eq=False)
class PackedSparse24:
    """A weight [n, k] of 2:4 rows and blocks of dense rows, in a layout of docs/layouts.md, version 1.

    data         [ceil(rows/16), ceil(k/64), bytes of a tile] uint8, padding zero: the 2:4 rows
    column_sums  of an int8 weight [n] int32, sum over k, or [ceil(k/128), n] with scales along k; else None
    dtype        of the weight; uint8 are int4 codes
    layout       "sparse24_rows" for CPU kernels, or "sparse24_tile" for CUDA kernels
    dense        [ceil(rows/16), ceil(k/64), bytes of a tile] uint8: the dense rows, with the bytes of
                 PackedInt8, or of PackedInt4 for the same kernels; None: none
    dense_rows   the begin and the end of each block of dense rows among the n rows
    """

    data: Tensor
    column_sums: Tensor | None
    n: int
    k: int
    dtype: torch.dtype
    layout: str = CPU_LAYOUT
    dense: Tensor | None = None
    dense_rows: tuple[int, ...] = ()

    VERSION: ClassVar = _ROWS["version"]

    @property
    def group(self) -> int | None:
        """Input features that share scales of an int8 weight: 128, or None where all of k share them."""
        return GROUP if self.column_sums is not None and self.column_sums.dim() == 2 else None

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weight, with its padding, and of the column sums."""
        return sum(t.nbytes for t in (self.data, self.column_sums, self.dense) if t is not None)

    @property
    def device(self) -> torch.device:
        """The device that holds the weight."""
        return self.data.device

    def to(self, device: torch.device | str) -> PackedSparse24:
        """The same weight in the memory of another device, in the same layout."""
        sums, dense = (None if t is None else t.to(device) for t in (self.column_sums, self.dense))
        return replace(self, data=self.data.to(device), column_sums=sums, dense=dense)

    def clone(self) -> PackedSparse24:
        """The same packed weight in memory of its own."""
        sums, dense = (None if t is None else t.clone() for t in (self.column_sums, self.dense))
        return replace(self, data=self.data.clone(), column_sums=sums, dense=dense)

    def shard(self, n: Range | None = None, k: Range | None = None) -> PackedSparse24:
        """The packed weight of rows n[0]..n[1] and features k[0]..k[1], as PackedInt8.shard cuts.

        Where rows are dense, a range of n begins at a multiple of 64, and ends at one or at the end.
        """
        n, k = n or (0, self.n), k or (0, self.k)
        tile_n = TILE_N if self.dense is None else BLOCK_N
        _, of_k = tiles_of("PackedSparse24", n, k, (self.n, self.k), (tile_n, TILE_K), self.group)
        before = [count_dense(self.dense_rows, row) for row in n]
        of_sparse, of_dense = (
            slice(*(-(-row // TILE_N) for row in rows))
            for rows in ((n[0] - before[0], n[1] - before[1]), before)
        )
        part = replace(
            self,
            data=self.data[of_sparse, of_k].contiguous(),
            column_sums=None,
            n=n[1] - n[0],
            k=k[1] - k[0],
            dense=None if before[0] == before[1] else self._dense_tiles[of_dense, of_k].contiguous(),
            dense_rows=tuple(blocks_within(self.dense_rows, n)),
        )
        if self.column_sums is None:
            return part
        return replace(part, column_sums=sums_of_part(self.column_sums, n, k, self.k, part.decompress))

    def unpack(self) -> Sparse24:
        """The 2:4 rows that were packed, exactly, on the same device. The CPU unpacks them."""
        data = self.data.cpu() if self.data.is_cuda else self.data
        rows = self.n - count_dense(self.dense_rows, self.n)
        values, metadata = call(torch.ops.lamina.unpack_sparse24, data, rows, self.k, self.layout, self.dtype)
        return Sparse24(values, metadata, rows, self.k).to(self.device)

    def unpack_dense(self) -> Tensor | None:
        """The dense rows that were packed, exactly, on the same device, or None."""
        if self.dense is None:
            return None
        rows = count_dense(self.dense_rows, self.n)
        if self.dtype == torch.int8:
            tiles = self.dense.view(torch.int8).view(packed_shape(rows, self.k))
            return PackedInt8(tiles, tiles, rows, self.k).unpack()
        return PackedInt4(self.dense, rows, self.k, _DENSE_LAYOUTS[self.layout]).unpack()

    def decompress(self, fill: float = 0) -> Tensor:
        """The weight [n, k] on the same device; entries of 2:4 rows that are not kept are `fill`."""
        sparse, dense = self.unpack().decompress(fill), self.unpack_dense()
        if dense is None:
            return sparse
        is_dense = mask_of_dense(self.dense_rows, self.n).to(self.device)
        w = sparse.new_empty(self.n, self.k)
        w[is_dense], w[~is_dense] = dense, sparse
        return w

    def repacked(self, layout: str) -> PackedSparse24:
        """The same weight in another layout, on the same device. The CPU packs it."""
        here = self.to("cpu")
        packed = pack_sparse24(
            here.unpack(), layout, self.group, dense=here.unpack_dense(), dense_rows=self.dense_rows
        )
        return packed.to(self.device)

    @property
    def _dense_tiles(self) -> Tensor:
        assert self.dense is not None
        return self.dense


def pack_sparse24(
    sparse: Sparse24,
    layout: str = CPU_LAYOUT,
    group: int | None = None,
    *,
    dense: Tensor | None = None,
    dense_rows: Sequence[int] = (),
) -> PackedSparse24:
    """Packs a 2:4 weight for the products of matmul_sparse24.

    sparse      Sparse24 from compress_sparse24; int8, f16, bf16, f32, or uint8 for int4 codes 0..15
    layout      "sparse24_rows" for CPU kernels, "sparse24_tile" for CUDA kernels, which take no f32
    group       for int8 only, as in pack_int8. None: one scale for all of k. 128: scales along k
    dense       [rows, k]  int8 or uint8 like sparse: rows that stay dense, for group = None. The weight has
                them and those of sparse
    dense_rows  where the dense rows are in the weight: the begin and the end of each block, in order. A block
                begins at a multiple of 64, and ends at one or at the end of the weight
    returns     PackedSparse24 on the device of the weight. The CPU packs it, as pack_int8 does
    Raises      ValueError naming argument, value and allowed values; metadata that keeps no two entries of a
                group in rising order is named by its row and its group
    """
    if not isinstance(sparse, Sparse24):
        raise TypeError(
            "lamina::pack_sparse24: sparse must be Sparse24 (lamina.compress_sparse24), "
            f"got {type(sparse).__name__}"
        )
    require_str("pack_sparse24", "layout", layout)
    require_optional_int("pack_sparse24", "group", group)
    require_tensors("pack_sparse24", **{"sparse.values": sparse.values, "sparse.metadata": sparse.metadata})
    require_optional_tensors("pack_sparse24", dense=dense)
    bounds = _checked_rows(dense_rows)
    if bounds and dense is None:
        raise ValueError(f"lamina::pack_sparse24: dense_rows = {list(bounds)} without dense; allowed: none")
    here = sparse.cpu() if sparse.values.is_cuda else sparse
    data, sums = call(torch.ops.lamina.pack_sparse24, here.values, here.metadata, here.k, layout, group)
    column_sums = sums if sparse.dtype == torch.int8 else None
    packed = PackedSparse24(data, column_sums, sparse.n, sparse.k, sparse.dtype, layout)
    if dense is not None:
        packed = _with_dense(packed, dense.cpu() if dense.is_cuda else dense, bounds)
    return packed.to(sparse.device)


def _checked_rows(dense_rows: Sequence[int]) -> tuple[int, ...]:
    """dense_rows as a tuple of ints."""
    if not isinstance(dense_rows, Sequence) or isinstance(dense_rows, str):
        kind = type(dense_rows).__name__
        raise TypeError(f"lamina::pack_sparse24: dense_rows must be a sequence of ints, got {kind}")
    for at, row in enumerate(dense_rows):
        require_int("pack_sparse24", f"dense_rows[{at}]", row)
    return tuple(dense_rows)


def _with_dense(packed: PackedSparse24, dense: Tensor, bounds: tuple[int, ...]) -> PackedSparse24:
    """The weight that has the 2:4 rows of `packed` and these dense rows, both on the CPU."""
    op = "pack_sparse24"
    if dense.dim() != 2 or dense.shape[1] != packed.k or dense.is_meta:
        raise ValueError(
            f"lamina::{op}: dense must be [rows, k] with k = {packed.k}, got {list(dense.shape)}"
            + (" on meta" if dense.is_meta else "")
        )
    n = packed.n + dense.shape[0]
    if not bounds and not len(dense):
        return packed
    if dense.dtype != packed.dtype or packed.dtype not in (torch.int8, torch.uint8):
        got, of = (str(t.dtype).removeprefix("torch.") for t in (dense, packed))
        raise ValueError(f"lamina::{op}: dense is {got} beside {of} values; allowed: int8 or uint8 for both")
    if packed.group is not None:
        raise ValueError(f"lamina::{op}: group = {packed.group} with dense rows; allowed: None")
    if not is_blocks(bounds, n) or count_dense(bounds, n) != dense.shape[0]:
        raise ValueError(
            f"lamina::{op}: dense_rows = {list(bounds)}; must be the begin and the end of blocks that have "
            f"{dense.shape[0]} rows, as dense has, each at a multiple of {BLOCK_N} or at n = {n}"
        )
    if packed.dtype == torch.uint8:
        codes = pack_int4(dense, _DENSE_LAYOUTS[packed.layout]).data
        return replace(packed, n=n, dense=codes, dense_rows=bounds)
    assert packed.column_sums is not None
    of_dense, is_dense = pack_int8(dense), mask_of_dense(bounds, n)
    sums = packed.column_sums.new_empty(n)
    sums[is_dense], sums[~is_dense] = of_dense.column_sums, packed.column_sums
    tiles = of_dense.data.view(torch.uint8).flatten(2)
    return replace(packed, column_sums=sums, n=n, dense=tiles, dense_rows=bounds)


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


def is_blocks(bounds: Sequence[int], n: int) -> bool:
    """Whether `bounds` are the begin and the end of blocks of dense rows among n rows, in order."""
    if list(bounds) != sorted(bounds) or len(bounds) % 2:
        return False
    blocks = zip(bounds[::2], bounds[1::2], strict=True)
    return all(begin < end and is_at_tiles((begin, end), n, BLOCK_N) for begin, end in blocks)


def count_dense(bounds: Sequence[int], n: int) -> int:
    """How many of the first n rows are dense."""
    return sum(blocks_within(bounds, (0, n))[1::2]) - sum(blocks_within(bounds, (0, n))[::2])


def blocks_within(bounds: Sequence[int], rows: Range) -> list[int]:
    """The blocks of dense rows among the rows of a range, counted from its begin."""
    begin, end = rows
    cut = [
        (max(b, begin) - begin, min(e, end) - begin) for b, e in zip(bounds[::2], bounds[1::2], strict=True)
    ]
    return [row for block in cut if block[0] < block[1] for row in block]


def mask_of_dense(bounds: Sequence[int], n: int) -> Tensor:
    """[n] bool: whether a row is dense."""
    mask = torch.zeros(n, dtype=torch.bool)
    for begin, end in zip(bounds[::2], bounds[1::2], strict=True):
        mask[begin:end] = True
    return mask


def packed_sparse24_shape(n: int, k: int, dtype: torch.dtype, is_dense: bool = False) -> tuple[int, int, int]:
    """Shape of PackedSparse24.data for n 2:4 rows of k features, or of PackedSparse24.dense."""
    bits = 2 * _BITS[dtype] if is_dense else _BITS[dtype] + 2
    return -(-n // TILE_N), -(-k // TILE_K), TILE_N * TILE_K * bits // 16


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
