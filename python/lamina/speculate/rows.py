"""Rows of several requests that go through a model together, and the cache that they are written to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from lamina.kv import Batch, PagedCache
from lamina.ops import TreeMask, pack_tree_mask


class Rows(NamedTuple):
    """Tokens of several requests, those of one after those of another: one call of a model.

    tokens     [rows]  int64
    positions  [rows]  int64: nodes of a tree with one parent share a position
    slots      [rows]  int64: where the cache keeps the row
    batch      the tables for attention
    tree       the mask if the rows of each request are the nodes of a tree, or None
    keep       [kept]  int64: the rows whose logits are wanted. None: all
    """

    tokens: Tensor
    positions: Tensor
    slots: Tensor
    batch: Batch
    tree: TreeMask | None
    keep: Tensor | None


class Model(Protocol):
    """A causal language model over a PagedCache, such as lamina.integrations.transformers.PagedModel."""

    cache: PagedCache

    def logits(self, rows: Rows) -> Tensor:
        """Writes the keys and values of the rows to the cache, and returns logits [rows or kept, vocab]."""


def run(
    model: Model,
    seqs: Sequence[int],
    tokens: Sequence[Sequence[int]],
    parents: Sequence[Sequence[int]] | None = None,
    *,
    only_last: bool = False,
) -> Tensor:
    """Appends tokens to sequences of model.cache, calls the model and returns its logits.

    tokens     those of each sequence, at least one
    parents    the parent of each of them if they are the nodes of a tree: -1 for the first, its root. None:
               each token follows the one before it
    only_last  computes logits only for the last token of each sequence
    returns    [tokens or sequences, vocab]
    """
    cache = model.cache
    counts = [len(of) for of in tokens]
    slots = cache.append(seqs, counts)
    batch = cache.batch(seqs, counts)
    tree = None
    begins = torch.tensor([cache.length(seq) - n for seq, n in zip(seqs, counts, strict=True)])
    rows = torch.tensor(counts)
    if parents is None:
        depths = torch.cat([torch.arange(n) for n in counts])
    else:
        flat = torch.tensor([p for of in parents for p in of], dtype=torch.int32, device=cache.device)
        tree = pack_tree_mask(flat, batch.cu_seqlens_q, batch.max_seqlen_q)
        depths = tree.tree_depth.to(begins.device)
    positions = begins.repeat_interleave(rows) + depths
    device = cache.device
    return model.logits(
        Rows(
            torch.tensor([token for of in tokens for token in of], device=device),
            positions.to(device),
            slots,
            batch,
            tree,
            (rows.cumsum(0) - 1).to(device) if only_last else None,
        )
    )
