"""The queries and keys of a case, as numbers and as the paged cache of lamina."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.attention.cases import AttentionCase, Request, binary_tree

DTYPES = {
    "f32": torch.float32,
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "int8": torch.int8,
    "fp8": torch.float8_e4m3fn,
}


@dataclass(frozen=True)
class Rows:
    """The keys or values of one request: [seq_len, kv_heads, head_dim] as stored, and scales of int8."""

    data: Tensor
    scale: Tensor | None  # [seq_len, kv_heads] f32

    def to(self, dtype: torch.dtype) -> Tensor:
        """The numbers that the rows stand for, [kv_heads, seq_len, head_dim] contiguous."""
        rows = self.data.to(torch.float64 if dtype == torch.float64 else torch.float32)
        if self.scale is not None:
            rows = rows * self.scale.unsqueeze(2).to(rows.dtype)
        return rows.to(dtype).transpose(0, 1).contiguous()


@dataclass(frozen=True)
class Inputs:
    case: AttentionCase
    requests: list[Request]
    q: Tensor  # [tokens, heads, head_dim]
    keys: list[Rows]
    values: list[Rows]
    tree: Tensor | None  # bool [tokens of a request, the same]: the nodes that each node sees

    def starts(self) -> list[int]:
        """The first token of each request, and the number of all tokens."""
        starts = [0]
        for request in self.requests:
            starts.append(starts[-1] + request.q_len)
        return starts

    def mask(self, request: Request) -> Tensor:
        """bool [q_len, seq_len]: the keys that each token sees."""
        mask = torch.ones(request.q_len, request.seq_len, dtype=torch.bool)
        if self.tree is None:
            return mask.tril(request.seq_len - request.q_len)
        mask[:, request.seq_len - request.q_len :] = self.tree
        return mask


@dataclass(frozen=True)
class PagedCache:
    k: Tensor
    v: Tensor
    block_table: Tensor
    k_scale: Tensor | None
    v_scale: Tensor | None


def _rows(case: AttentionCase, seq_len: int, generator: torch.Generator) -> Rows:
    x = torch.randn(seq_len, case.kv_heads, case.head_dim, generator=generator)
    if case.kv_dtype != "int8":
        return Rows(x.to(DTYPES[case.kv_dtype]), None)
    scale = x.abs().amax(2) / 127
    return Rows((x / scale.unsqueeze(2)).round().to(torch.int8), scale)


def make_inputs(case: AttentionCase) -> Inputs:
    generator = torch.Generator().manual_seed(case.batch * case.context + case.head_dim)
    requests = case.requests()
    tokens = sum(request.q_len for request in requests)
    q = torch.randn(tokens, case.heads, case.head_dim, generator=generator).to(DTYPES[case.dtype])
    keys, values = ([_rows(case, request.seq_len, generator) for request in requests] for _ in range(2))
    return Inputs(case, requests, q, keys, values, binary_tree(case.tokens) if case.tree else None)


def paged(inputs: Inputs) -> PagedCache:
    """A cache in ordinary tensors, as a user allocates it, whose pages are in random order."""
    case = inputs.case
    counts = [-(-request.seq_len // case.page) for request in inputs.requests]
    order = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(case.page))
    table = torch.full((len(counts), max(counts)), -1, dtype=torch.int32)
    pages = torch.split(order, counts)
    for row, own in zip(table, pages, strict=True):
        row[: len(own)] = own

    def fill(all_rows: list[Rows]) -> tuple[Tensor, Tensor | None]:
        shape = [len(order), case.page, case.kv_heads, case.head_dim]
        if case.layout == "hnd":
            shape[1], shape[2] = shape[2], shape[1]
        cache = torch.zeros(shape, dtype=DTYPES[case.kv_dtype])
        if case.layout == "hnd":
            cache = cache.transpose(1, 2)
        scale = torch.zeros(*cache.shape[:3]) if case.kv_dtype == "int8" else None
        for rows, own in zip(all_rows, pages, strict=True):
            slots = torch.arange(len(rows.data))
            at = (own[slots // case.page], slots % case.page)
            cache.view(torch.int8 if cache.itemsize == 1 else cache.dtype)[at] = (
                rows.data.view(torch.int8) if cache.itemsize == 1 else rows.data
            )
            if scale is not None and rows.scale is not None:
                scale[at] = rows.scale
        return cache, scale

    (k, k_scale), (v, v_scale) = fill(inputs.keys), fill(inputs.values)
    return PagedCache(k, v, table, k_scale, v_scale)


def tree_words(tree: Tensor) -> Tensor:
    """bool [nodes, nodes] as int32 words [nodes, words], the form of tree_mask."""
    words = torch.zeros(len(tree), -(-len(tree) // 32), dtype=torch.int64)
    for node in range(tree.shape[1]):
        words[:, node // 32] |= tree[:, node].long() << node % 32
    return words.to(torch.int32)
