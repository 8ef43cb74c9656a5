"""One packed layer in the place of several that multiply the same input, such as q, k and v of attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lamina.nn.int4_linear import Int4Linear
from lamina.nn.int8_linear import Int8Linear
from lamina.nn.packed_linear import Packed, PackedLinear
from lamina.nn.sparse24_linear import Sparse24Int4Linear, Sparse24Int8Linear
from lamina.nn.sparse24_rows import WithDenseRows
from lamina.ops import (
    PackedInt4,
    PackedInt8,
    PackedSparse24,
    Sparse24,
    pack_int4,
    pack_int8,
    pack_sparse24,
)

MERGEABLE = (Int8Linear, Int4Linear, Sparse24Int8Linear, Sparse24Int4Linear)


def merge_rows(layers: Sequence[PackedLinear]) -> PackedLinear:
    """A layer whose output features are those of `layers`, one layer after the other.

    layers   of one of the classes MERGEABLE, on one device, that multiply one input; they are not changed
    returns  a layer of their class. A column of its result has the bits that it has in the result of its own
             layer, because no column depends on another
    Raises   ValueError for layers that merge_problem names
    """
    if problem := merge_problem(layers):
        raise ValueError(f"lamina.nn.merge_rows: {problem}")
    first, biases = layers[0], [layer.bias for layer in layers if layer.bias is not None]
    bias = torch.cat(biases) if biases else None
    weight = _joined_weight(layers)
    if isinstance(first, Int8Linear):
        assert not isinstance(weight, PackedInt4)
        scale = _joined(layers, "weight_scale", 0)
        merged: Any = first._of_packed(weight, scale, bias, first.symmetric, None)
    else:
        assert isinstance(first, Int4Linear) and not isinstance(weight, PackedInt8)
        scale = _joined(layers, "weight_scale", 1)
        zero_point = None if first.symmetric else _joined(layers, "weight_zero_point", 1)
        merged = type(first)(
            weight.k, weight.n, False, group=first.group, symmetric=first.symmetric,
            activations=first.activations, device="meta", dtype=scale.dtype,
        )  # fmt: skip
        merged._own(weight, scale, zero_point, None, first.group)
        merged.bias = bias
    merged.weight_dtype = first.weight_dtype
    joined: PackedLinear = merged.train(first.training)
    return joined


def _joined_weight(layers: Sequence[PackedLinear]) -> Packed:
    """The packed rows of all layers."""
    parts: list[Any] = [layer.packed_weight for layer in layers]
    if not isinstance(parts[0], PackedSparse24):
        codes = torch.cat([part.unpack() for part in parts])
        return pack_int8(codes) if isinstance(parts[0], PackedInt8) else pack_int4(codes, parts[0].layout)
    sparse = [part.unpack() for part in parts]
    values, metadata = (torch.cat([getattr(s, name) for s in sparse]) for name in ("values", "metadata"))
    return pack_sparse24(Sparse24(values, metadata, len(values), parts[0].k), parts[0].layout)


def merge_problem(layers: Sequence[object]) -> str | None:
    """Why these layers cannot become one, or None."""
    first = layers[0]
    for layer in layers:
        if type(layer) not in MERGEABLE:
            names = ", ".join(kind.__name__ for kind in MERGEABLE)
            return f"{type(layer).__name__} is not one of {names}"
        assert isinstance(layer, Int8Linear | Int4Linear)
        if isinstance(layer, Int4Linear) and layer.perm is not None:
            return "a layer has an order of input features of its own (act-order)"
        if isinstance(layer, Int8Linear) and layer.input_scale is not None:
            return "a layer has a static scale of its input"
        if isinstance(layer, WithDenseRows) and layer.dense_rows:
            return "a layer has blocks of dense rows"
        if _kind(layer) != _kind(first):
            return f"{_kind(layer)} and {_kind(first)} differ"
    return None


def _kind(layer: object) -> str:
    """All that layers to merge must have in common."""
    assert isinstance(layer, Int8Linear | Int4Linear)
    parts = [type(layer).__name__, f"k = {layer.in_features}", f"symmetric = {layer.symmetric}"]
    if isinstance(layer, Int4Linear):
        zero_point = layer.weight_zero_point
        parts += [
            f"group = {layer.group}",
            f"activations = {layer.activations}",
            str(layer.weight_scale.dtype),
        ]
        parts += [] if zero_point is None else [f"zero points {zero_point.dtype}"]
    bias = layer.bias
    return ", ".join(
        [*parts, "no bias" if bias is None else f"bias {bias.dtype}", str(layer.weight_packed.device)]
    )


def _joined(layers: Sequence[PackedLinear], name: str, dim: int) -> Tensor:
    return torch.cat([getattr(layer, name) for layer in layers], dim)
