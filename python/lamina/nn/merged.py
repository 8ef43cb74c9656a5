"""One packed layer in the place of several that multiply the same input, such as q, k and v of attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lamina.nn.int4_linear import Int4Linear
from lamina.nn.int8_linear import Int8Linear
from lamina.nn.packed_linear import PackedLinear
from lamina.quant import QuantizedInt4


def merge_rows(layers: Sequence[PackedLinear]) -> PackedLinear:
    """A layer whose output features are those of `layers`, one layer after the other.

    layers   Int8Linear or Int4Linear on one device that multiply one input; they are not changed
    returns  a layer of their class. A column of its result has the bits that it has in the result of its own
             layer, because no column depends on another
    Raises   ValueError for layers that merge_problem names
    """
    if problem := merge_problem(layers):
        raise ValueError(f"lamina.nn.merge_rows: {problem}")
    first, biases = layers[0], [layer.bias for layer in layers if layer.bias is not None]
    bias = torch.cat(biases) if biases else None
    held: list[Any] = list(layers)
    codes = torch.cat([layer.packed_weight.unpack() for layer in held])
    if isinstance(first, Int8Linear):
        scale = _joined(layers, "weight_scale", 0)
        merged: PackedLinear = Int8Linear.from_quantized(codes, scale, bias, symmetric=first.symmetric)
    else:
        assert isinstance(first, Int4Linear)
        zero_point = None if first.symmetric else _joined(layers, "weight_zero_point", 1)
        group = max(first.in_features, 1) if first.group == -1 else first.group
        weight = QuantizedInt4(codes, _joined(layers, "weight_scale", 1), zero_point, group)
        merged = Int4Linear.from_quantized(weight, bias, activations=first.activations)
    merged.weight_dtype = first.weight_dtype
    return merged.train(first.training)


def merge_problem(layers: Sequence[object]) -> str | None:
    """Why these layers cannot become one, or None."""
    first = layers[0]
    for layer in layers:
        if type(layer) not in (Int8Linear, Int4Linear):
            return f"{type(layer).__name__} is neither Int8Linear nor Int4Linear"
        assert isinstance(layer, Int8Linear | Int4Linear)
        if isinstance(layer, Int4Linear) and layer.perm is not None:
            return "a layer has an order of input features of its own (act-order)"
        if isinstance(layer, Int8Linear) and layer.input_scale is not None:
            return "a layer has a static scale of its input"
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
