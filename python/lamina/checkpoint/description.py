"""Packed layers as JSON: the entry that config.json holds for a layer, and the empty layer of an entry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from lamina.compression.schemes import SCHEMES, Int4Scheme, Scheme
from lamina.nn import Int4Linear, Int8Linear
from lamina.nn.packed_linear import PackedLinear
from lamina.quant import WEIGHT_DTYPES

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in WEIGHT_DTYPES}


def describe(module: PackedLinear) -> dict[str, Any]:
    """A packed layer as JSON, without the values of its buffers. docs/checkpoint.md explains the keys."""
    entry: dict[str, Any] = {
        "class": type(module).__name__,
        "scheme": _scheme_of(module).name,
        "in_features": module.in_features,
        "out_features": module.out_features,
        "bias": None if module.bias is None else _dtype_name(module.bias.dtype),
        "weight_dtype": _dtype_name(module.weight_dtype),
    }
    if isinstance(module, Int4Linear):
        entry["group"] = module.group
        entry["scale_dtype"] = _dtype_name(module.weight_scale.dtype)
        entry["perm"] = None if module.perm is None else len(module.perm)
    return entry


def blank(entry: Mapping[str, Any]) -> PackedLinear:
    """The layer that `entry` describes, on the meta device and without a perm: loading the tensors sets it.

    Raises ValueError for a missing key, and for a scheme or a dtype that this lamina does not know.
    """
    scheme = SCHEMES.get(entry.get("scheme", ""))
    if scheme is None:
        raise ValueError(f"scheme must be one of {', '.join(SCHEMES)}, got {entry.get('scheme')!r}")
    scale_dtype = torch.float32
    try:
        weight_dtype = DTYPES[entry["weight_dtype"]]
        n, k = int(entry["out_features"]), int(entry["in_features"])
        if isinstance(scheme, Int4Scheme):
            scheme = replace(scheme, group=int(entry["group"]))
            scale_dtype = DTYPES[entry["scale_dtype"]]
        linear = nn.Linear(k, n, bias=False, device="meta", dtype=scale_dtype)
        if entry["bias"] is not None:
            linear.bias = nn.Parameter(torch.empty(n, device="meta", dtype=DTYPES[entry["bias"]]))
    except KeyError as error:
        raise ValueError(f"{error} is missing, or is a dtype other than {', '.join(DTYPES)}") from None
    module = scheme.blank(linear)
    module.weight_dtype = weight_dtype
    return module


def _scheme_of(module: PackedLinear) -> Scheme:
    for scheme in SCHEMES.values():
        if scheme.has_made(module):
            return scheme
    kinds = f"{Int4Linear.__name__} or {Int8Linear.__name__}"
    raise TypeError(f"a packed layer must be {kinds}, got {type(module).__name__}")


def _dtype_name(dtype: torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ValueError(f"save_compressed: packed layers must be of {', '.join(DTYPES)}, got {name}")
    return name
