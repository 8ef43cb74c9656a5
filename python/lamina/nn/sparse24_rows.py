"""Linear layers with 2:4 weights: blocks of dense rows, and how their weights are packed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from lamina.nn.packed_linear import Packed, PackedLinear
from lamina.ops import PackedSparse24, compress_sparse24, pack_sparse24
from lamina.ops.decoder_layers import ProductKind
from lamina.ops.pack_sparse24 import (
    count_dense,
    is_blocks,
    mask_of_dense,
    packed_sparse24_shape,
    sparse24_layout_for,
)
from lamina.quant.sparse24_masks import GROUP

State = dict[str, Tensor]


class WithDenseRows(PackedLinear):
    """The part of a layer with int8 or int4 weights that lets blocks of its rows be dense.

    weight_format ends with the begin and the end of each block.
    """

    weight_dense: Tensor | None
    dense_rows: tuple[int, ...] = ()

    VALUES: ClassVar[torch.dtype]  # of the weight
    DENSE_DTYPES: ClassVar = {"weight_dense": (torch.uint8,)}

    def share_weight(self, other: PackedLinear) -> None:
        super().share_weight(other)
        assert isinstance(other, WithDenseRows)
        self.dense_rows = other.dense_rows

    def reserve(self, dense_rows: tuple[int, ...]) -> None:
        """Makes these blocks of rows dense in a module without values, on the meta device."""
        n, k = self.out_features, self.in_features
        dense = count_dense(dense_rows, n)
        shapes = (
            packed_sparse24_shape(n - dense, k, self.VALUES),
            packed_sparse24_shape(dense, k, self.VALUES, is_dense=True),
        )
        data, tiles = (torch.empty(shape, dtype=torch.uint8, device="meta") for shape in shapes)
        self._hold(PackedSparse24(data, None, n, k, self.VALUES, self._layout, tiles, dense_rows))
        self.weight_format = torch.empty(self.HEADER + len(dense_rows), dtype=torch.int64, device="meta")

    @property
    def _product_kind(self) -> ProductKind | None:
        kind = super()._product_kind
        return None if kind is None or self.dense_rows else ProductKind(kind + ProductKind.SPARSE24_W8A8)

    def _hold(self, packed: Packed) -> None:
        super()._hold(packed)
        assert isinstance(packed, PackedSparse24)
        self.weight_dense, self.dense_rows = packed.dense, packed.dense_rows

    def _header(self, *more: int) -> list[int]:
        return [*super()._header(*more), *self.dense_rows]

    def _packed_of(self, sums: Tensor | None) -> PackedSparse24:
        n, k, values = self.out_features, self.in_features, self.VALUES
        return PackedSparse24(
            self.weight_packed, sums, n, k, values, self._layout, self.weight_dense, self.dense_rows
        )

    def _is_header(self, length: int) -> bool:
        return length >= self.HEADER

    def _rows_in(self, state: State) -> tuple[int, ...]:
        """The blocks of dense rows of a state dict."""
        header = state.get("weight_format")
        return () if header is None else tuple(header.tolist()[self.HEADER :])

    def _header_problem(self, more: list[int], state: State) -> str | None:
        rows, n = self._rows_in(state), self.out_features
        if not is_blocks(rows, n):
            return f"weight_format[{self.HEADER}:] (blocks of dense rows) has no such blocks: {list(rows)}"
        if bool(rows) != ("weight_dense" in state):
            there = "missing" if rows else "there"
            return f"weight_dense is {there}, and weight_format has the blocks of dense rows {list(rows)}"
        dense = count_dense(rows, n)
        shape = packed_sparse24_shape(dense, self.in_features, self.VALUES, is_dense=True)
        if rows and state["weight_dense"].shape != shape:
            return f"weight_dense must be {list(shape)}, got {list(state['weight_dense'].shape)}"
        problem = packed_problem(self, n - dense, self.VALUES, state)
        return problem or super()._header_problem(more[: self.HEADER - 4], state)

    def _adopt(self, more: list[int], state: State) -> None:
        super()._adopt(more[: self.HEADER - 4], state)
        device = self.weight_packed.device
        for name in ("weight_packed", "weight_format", "weight_dense"):
            loaded = state.get(name)
            setattr(self, name, None if loaded is None else torch.empty_like(loaded, device=device))
        self.dense_rows = self._rows_in(state)


def require_groups_of_four(module: nn.Module, in_features: int) -> None:
    """Raises a ValueError unless whole groups of four input features divide `in_features`."""
    if in_features % GROUP:
        raise ValueError(
            f"{type(module).__name__}: in_features = {in_features}; must be a multiple of {GROUP}"
        )


def pack_rows(q: Tensor, mask: Tensor, dense_rows: Sequence[int]) -> PackedSparse24:
    """Packs q [n, k], of which blocks of rows are dense and the others keep `mask`, for the device of q."""
    is_dense = mask_of_dense(dense_rows, len(q))
    here = q.cpu()
    packed = pack_sparse24(
        compress_sparse24(here[~is_dense], mask.cpu()[~is_dense]),
        sparse24_layout_for(q.device),
        dense=here[is_dense] if len(dense_rows) else None,
        dense_rows=dense_rows,
    )
    return packed.to(q.device)


def packed_zeros(
    n: int, k: int, dtype: torch.dtype, layout: str, device: torch.device, zero: int = 0
) -> Tensor:
    """The packed weight 0, of which `zero` is the value."""
    if device.type == "meta":
        return torch.empty(packed_sparse24_shape(n, k, dtype), dtype=torch.uint8, device=device)
    zeros = torch.full((n, k), zero, dtype=dtype, device="cpu")
    return pack_sparse24(compress_sparse24(zeros, fill=zero), layout).data.to(device)


def packed_problem(module: PackedLinear, rows: int, dtype: torch.dtype, state: State) -> str | None:
    """Why a state dict has no packed 2:4 rows of this dtype for `module`, or None."""
    if "weight_packed" not in state:
        return "weight_packed is missing"
    shape = packed_sparse24_shape(rows, module.in_features, dtype)
    if state["weight_packed"].shape != shape:
        return f"weight_packed must be {list(shape)}, got {list(state['weight_packed'].shape)}"
    return None
