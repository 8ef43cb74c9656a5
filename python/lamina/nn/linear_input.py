"""The inputs that nn.Linear takes besides plain tensors, for the layers with packed weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lamina._int4 import WEIGHT_DTYPES

if TYPE_CHECKING:
    from lamina.nn.packed_linear import PackedLinear


def autocast(x: Tensor) -> Tensor:
    """x as torch.autocast gives it to torch.nn.functional.linear."""
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
    # torch.compile cannot find the ragged dimension in the shape; attention asks for the longest row.
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
    """layer(x) as torch.fx.symbolic_trace records the call of a leaf module, which every nn.Linear is.

    Raises   TypeError where x is anything else but a torch.fx.Proxy, and where layer is the root of the trace
    """
    name = f"lamina.nn.{type(layer).__name__}"
    if not isinstance(x, torch.fx.Proxy):
        raise TypeError(f"{name}: x must be a torch.Tensor, got {type(x).__name__}")
    tracer: Any = x.tracer
    if getattr(tracer, "root", None) is layer:
        raise TypeError(f"{name} is a leaf for torch.fx: trace a module that holds it, not the layer itself")
    call: torch.fx.Proxy = tracer.create_proxy("call_module", tracer.path_of_module(layer), (x,), {})
    return call
