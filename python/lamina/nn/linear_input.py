"""Inputs of packed layers that nn.Linear takes too: under autocast, nested tensors, proxies of torch.fx."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lamina.quant import WEIGHT_DTYPES

if TYPE_CHECKING:
    from lamina.nn.packed_linear import PackedLinear


def autocast(x: Tensor) -> Tensor:
    """x in the dtype to which torch.autocast casts the input of torch.nn.functional.linear."""
    if x.is_meta or not torch.is_autocast_enabled(x.device.type):
        return x
    return x.to(torch.get_autocast_dtype(x.device.type)) if x.dtype in WEIGHT_DTYPES else x


def call_on_jagged(layer: PackedLinear, x: Any) -> Tensor:
    """layer(x) of a nested tensor, with the rows of x.

    Raises   ValueError for a layout other than torch.jagged, and for a ragged last dimension
    """
    name = f"lamina.nn.{type(layer).__name__}"
    if x.layout is not torch.jagged:
        raise ValueError(f"{name}: x is a nested tensor of layout {x.layout}; allowed: torch.jagged")
    # Pass these three on: torch.compile cannot derive the ragged dimension from the shape, and attention
    # needs the longest row.
    ragged, least, most = x._ragged_idx, x._maybe_min_seqlen, x._maybe_max_seqlen
    if ragged == x.dim() - 1:
        raise ValueError(f"{name}: x must be [..., k] with k = {layer.in_features}, got a ragged k")
    return torch.nested.nested_tensor_from_jagged(
        layer(x.values()),
        x.offsets(),
        x.lengths(),
        jagged_dim=ragged,
        min_seqlen=least,
        max_seqlen=most,
    )


def call_on_proxy(layer: nn.Module, x: object) -> torch.fx.Proxy:
    """layer(x) as a call of a leaf module, the node that torch.fx.symbolic_trace records for an nn.Linear.

    Raises   TypeError if x is not a torch.fx.Proxy, or if layer is the root of the trace
    """
    name = f"lamina.nn.{type(layer).__name__}"
    if not isinstance(x, torch.fx.Proxy):
        raise TypeError(f"{name}: x must be a torch.Tensor, got {type(x).__name__}")
    tracer: Any = x.tracer
    if getattr(tracer, "root", None) is layer:
        raise TypeError(f"{name} is a leaf for torch.fx: trace a module that holds it, not the layer itself")
    call: torch.fx.Proxy = tracer.create_proxy("call_module", tracer.path_of_module(layer), (x,), {})
    return call
