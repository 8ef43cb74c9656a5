"""Act-order: int4 weights whose groups hold input features in any order, as a `g_idx` lists them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lamina.ops.gemm_int4 import GROUP_STEP


class ActOrder(NamedTuple):
    """The arguments of the ops for a weight with a g_idx; act_order makes them."""

    perm: Tensor | None  # [K] int32, for pack_int4 and the products; None: the features keep their order
    group: int  # packed input features that share a scale
    scale_rows: Tensor  # [ceil(K / group)] int64: the row of scales and zero points [groups, n] of each group


def act_order(g_idx: Tensor) -> ActOrder:
    """Finds an order of the input features in which the features of each group follow each other.

    g_idx    [k]  int32 | int64 >= 0, the group of each input feature, as GPTQ's desc_act leaves it: groups in
             any order, with any number of features. A slice of a layer's g_idx, for tensor parallelism, works
             too
    returns  ActOrder. Features of a group keep their order. K = k if all groups but the last have the same
             number of features, a multiple of 16. Otherwise -1 pads each group to a multiple of `group`: of
             16, or of the largest 16 * 2^i for which K is at most an eighth above k
    Raises   ValueError naming argument, value and allowed values

        order = act_order(g_idx)
        w = pack_int4(q, "int4_rows", perm=order.perm)  # q [n, k]
        y = gemm_int4(x, w, scale[order.scale_rows], group=order.group, perm=order.perm)

    The products of the slices of a layer along k, each with the act_order of its slice of g_idx and all of
    the layer's scales, add up to the product of the whole.
    """
    if g_idx.dim() != 1 or g_idx.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"act_order: g_idx must be int32 or int64 [k], got {g_idx.dtype} {list(g_idx.shape)}"
        )
    k = len(g_idx)
    if k and int(g_idx.min()) < 0:
        at = int(g_idx.lt(0).nonzero()[0])
        raise ValueError(f"act_order: g_idx[{at}] = {int(g_idx[at])}; must be >= 0")
    sorted_groups, features = g_idx.cpu().sort(stable=True)
    present, counts = sorted_groups.unique_consecutive(return_counts=True)  # type: ignore[no-untyped-call]
    group = _group(counts)
    blocks = -(-counts // group)
    scale_rows = present.long().repeat_interleave(blocks).to(g_idx.device)
    in_order = torch.equal(features, torch.arange(k, device=features.device))
    if int((counts[:-1] % group).sum()) == 0:  # the last one may be ragged
        return ActOrder(None if in_order else features.int().to(g_idx.device), group, scale_rows)
    starts = (blocks.cumsum(0) - blocks) * group  # the first packed feature of each group
    places = torch.arange(k, device=features.device) + (
        starts - (counts.cumsum(0) - counts)
    ).repeat_interleave(counts)
    perm = torch.full((int(blocks.sum()) * group,), -1, dtype=torch.int32, device=features.device)
    perm[places] = features.int()
    return ActOrder(perm.to(g_idx.device), group, scale_rows)


def _group(counts: Tensor) -> int:
    """The number of packed input features to a scale, for groups with these numbers of features."""
    most = -(-int(counts.max()) // GROUP_STEP) * GROUP_STEP if len(counts) else GROUP_STEP
    if bool((counts[:-1] == most).all()):
        return most
    k, group = int(counts.sum()), GROUP_STEP
    while 8 * int((-(-counts // (2 * group)) * 2 * group).sum()) <= 9 * k:
        group *= 2
    return group
