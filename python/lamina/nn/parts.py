"""Parts of Int4Linear: the packed features that a part keeps, their groups and their order."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
from torch import Tensor

from lamina.ops.gemm_int4 import GROUP_STEP
from lamina.ops.pack_int4 import TILE_K, TILE_N, PackedInt4, pack_int4
from lamina.ops.pack_sparse24 import PackedSparse24
from lamina.ops.tiles import Range, is_at_tiles
from lamina.quant import act_order

if TYPE_CHECKING:
    from lamina.nn.int4_linear import Int4Linear

Layer = TypeVar("Layer", bound="Int4Linear")


class Features(NamedTuple):
    """The packed input features of a part of an int4 weight."""

    group: int  # that share a scale
    scale_rows: Tensor  # [groups] int64: the row of the whole's scales for each group
    order: Tensor | None  # [K] int32: features of the whole's packed weight, or -1; None: the range itself
    perm: Tensor | None  # [K] int32: features of the part's input, or -1; None: the order of the input


def part_of_int4(layer: Layer, n: Range, k: Range) -> Layer:
    """PackedLinear.shard of an Int4Linear, without the bias."""
    group, perm, columns = layer.group, layer.perm, slice(*n)
    scale, zero_point = layer.weight_scale, layer.weight_zero_point
    if k == (0, layer.in_features):
        packed = cut_int4(layer.packed_weight, n, (0, layer.packed_features), None)
    else:
        group, rows, order, perm = features_of(k, layer.packed_features, group, perm)
        scale, zero_point = scale[rows], None if zero_point is None else zero_point[rows]
        packed = cut_int4(layer.packed_weight, n, k, order)
    part = type(layer)(
        k[1] - k[0], n[1] - n[0], False, group=group, symmetric=layer.symmetric,
        activations=layer.activations, device="meta", dtype=scale.dtype,
    )  # fmt: skip
    zero_point = None if zero_point is None else zero_point[:, columns]
    perm = None if perm is None else perm.to(packed.device, copy=True)
    part._own(packed, scale[:, columns], zero_point, perm, group)
    return part


def features_of(k: Range, packed_k: int, group: int, perm: Tensor | None) -> Features:
    """The features k[0]..k[1] of a weight with `packed_k` packed features in groups of `group`, -1 for all.

    Groups that the range cuts become smaller groups of one size, with the same scales, where all cuts are at
    multiples of 16. Elsewhere, and after a perm, the part gets a perm of its own: lamina.quant.act_order.
    """
    begin, end = k
    size = packed_k if group == -1 else group
    if perm is None:
        if group == -1:
            return Features(group, torch.zeros(1, dtype=torch.int64), None, None)
        smaller = math.gcd(begin, size)
        if smaller % GROUP_STEP == 0:
            return Features(smaller, torch.arange(begin, end, smaller) // size, None, None)
    feature = torch.arange(packed_k) if perm is None else perm.cpu()
    kept = ((feature >= begin) & (feature < end)).nonzero().flatten()
    ordered = act_order(kept // size)
    order, features = kept.int(), feature[kept].int() - begin
    if ordered.perm is not None:
        is_padding = ordered.perm < 0
        order, features = (torch.where(is_padding, -1, t[ordered.perm]) for t in (order, features))
    is_in_order = torch.equal(features, torch.arange(end - begin, dtype=torch.int32))
    return Features(ordered.group, ordered.scale_rows, order, None if is_in_order else features)


def cut_int4(
    whole: PackedInt4 | PackedSparse24, n: Range, k: Range, order: Tensor | None
) -> PackedInt4 | PackedSparse24:
    """The packed codes of rows n, and of features k or of those in `order`, in memory of their own.

    Tiles are copied as they are where both ranges begin and end with tiles. Other codes are packed anew;
    2:4 weights refuse them.
    """
    at_tiles = is_at_tiles(n, whole.n, TILE_N) and is_at_tiles(k, whole.k, TILE_K)
    if isinstance(whole, PackedSparse24) or (order is None and at_tiles):
        return whole.shard(n, k).clone()
    codes = whole.unpack()[n[0] : n[1]]
    return pack_int4(codes[:, k[0] : k[1]] if order is None else codes, whole.layout, order)
