"""The queries and keys of a case, as numbers and as the paged cache of lamina."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.attention.cases import AttentionCase, Request, binary_tree
from lamina.kv import Batch, PagedCache

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
        mask = torch.ones(request.q_len, request.seq_len, dtype=torch.bool, device=self.q.device)
        if self.tree is None:
            return mask.tril(request.seq_len - request.q_len)
        mask[:, request.seq_len - request.q_len :] = self.tree.to(mask.device)
        return mask


@dataclass(frozen=True)
class Paged:
    """The cache of lamina with the keys of a case, and the tables of the batch."""

    cache: PagedCache
    batch: Batch

    @property
    def nbytes(self) -> int:
        cache = self.cache
        tensors = [*cache.k, *cache.v, *(cache.k_scale or ()), *(cache.v_scale or ())]
        return sum(t.nbytes for t in tensors)


def _rows(case: AttentionCase, seq_len: int, generator: torch.Generator) -> Rows:
    x = torch.randn(seq_len, case.kv_heads, case.head_dim, generator=generator, device=case.device)
    if case.kv_dtype != "int8":
        return Rows(x.to(DTYPES[case.kv_dtype]), None)
    scale = x.abs().amax(2) / 127
    return Rows((x / scale.unsqueeze(2)).round().to(torch.int8), scale)


def make_inputs(case: AttentionCase) -> Inputs:
    generator = torch.Generator(case.device).manual_seed(case.batch * case.context + case.head_dim)
    requests = case.requests()
    tokens = sum(request.q_len for request in requests)
    q = torch.randn(tokens, case.heads, case.head_dim, generator=generator, device=case.device)
    q = q.to(DTYPES[case.dtype])
    keys, values = ([_rows(case, request.seq_len, generator) for request in requests] for _ in range(2))
    return Inputs(case, requests, q, keys, values, binary_tree(case.tokens) if case.tree else None)


def paged(inputs: Inputs) -> Paged:
    """A lamina.kv.PagedCache whose pages are in random order, as after serving for a while."""
    case = inputs.case
    pages = sum(-(-request.seq_len // case.page) for request in inputs.requests)
    one = torch.ones(1, device=case.device) if case.kv_dtype == "fp8" else None
    cache = PagedCache(
        1, pages, case.page, case.kv_heads, case.head_dim, dtype=DTYPES[case.kv_dtype],
        layout=case.layout.upper(), k_scale=one, v_scale=one, device=case.device,
    )  # fmt: skip
    seqs = [cache.new() for _ in range(pages)]
    cache.append(seqs, case.page)
    for i in torch.randperm(pages, generator=torch.Generator().manual_seed(case.page)).tolist():
        cache.free(seqs[i])
    seqs = []
    for request, keys, values in zip(inputs.requests, inputs.keys, inputs.values, strict=True):
        seqs.append(cache.new())
        slots = cache.append(seqs[-1:], request.seq_len)
        at = (slots // case.page, slots % case.page)
        for to, rows in ((cache.k[0], keys.data), (cache.v[0], values.data)):
            as_stored = torch.int8 if to.itemsize == 1 else to.dtype
            to.view(as_stored)[at] = rows.view(as_stored)
        if cache.k_scale and cache.v_scale and keys.scale is not None and values.scale is not None:
            cache.k_scale[0][at], cache.v_scale[0][at] = keys.scale, values.scale
    return Paged(cache, cache.batch(seqs, [request.q_len for request in inputs.requests]))


def tree_words(tree: Tensor) -> Tensor:
    """bool [nodes, nodes] as int32 words [nodes, words], the form of tree_mask."""
    words = torch.zeros(len(tree), -(-len(tree) // 32), dtype=torch.int64)
    for node in range(tree.shape[1]):
        words[:, node // 32] |= tree[:, node].long() << node % 32
    return words.to(torch.int32)
