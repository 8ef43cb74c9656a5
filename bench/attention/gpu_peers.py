"""The peers of paged_attention on a GPU: torch's SDPA and varlen_attn, FlashInfer and FlashAttention-3.

SDPA reads contiguous keys, one call for neighbouring requests of equal lengths. The others read pages
[pages, page, kv_heads, head_dim] in random order, as lamina does. None of them reads int8: all get the
numbers that lamina's cache stands for, in the dtype of the queries. Plans that an engine makes once for all
layers of a step are not timed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.attention.exact import Exact
from bench.attention.floor import peer_work
from bench.attention.inputs import DTYPES, Inputs
from bench.attention.peers import sdpa
from bench.cases import Accuracy, Candidate, Context
from bench.peers import PeerUnavailable

WORKSPACE_BYTES = 256 << 20  # of FlashInfer


@dataclass(frozen=True)
class Tables:
    """The pages of all requests in random order, and what peers need to find them."""

    pages: Tensor  # [all pages], int32, one request after the other
    table: Tensor  # [requests, most pages], int32
    first_page: Tensor  # [requests + 1], int32, of `pages`
    seq_lens: Tensor
    starts: Tensor  # [requests + 1], int32: the first token of each request
    most_tokens: int
    most_keys: int


def tables_of(inputs: Inputs) -> Tables:
    case = inputs.case
    counts = [-(-request.seq_len // case.page) for request in inputs.requests]
    pages = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(case.page)).int()
    table = torch.zeros(len(counts), max(counts), dtype=torch.int32)
    for row, own in zip(table, torch.split(pages, counts), strict=True):
        row[: len(own)] = own
    first = torch.tensor([0, *counts]).cumsum(0).int()
    seq_lens = torch.tensor([request.seq_len for request in inputs.requests], dtype=torch.int32)
    starts = torch.tensor(inputs.starts(), dtype=torch.int32)
    pages, table, first, seq_lens, starts = (
        t.to(case.device) for t in (pages, table, first, seq_lens, starts)
    )
    most_tokens = max(request.q_len for request in inputs.requests)
    return Tables(pages, table, first, seq_lens, starts, most_tokens, int(seq_lens.max()))


def paged_rows(inputs: Inputs, tables: Tables, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Keys and values [pages, page, kv_heads, head_dim]; the rest of last pages is zeros."""
    case = inputs.case
    shape = (len(tables.pages), case.page, case.kv_heads, case.head_dim)
    found = []
    for all_rows in (inputs.keys, inputs.values):
        cache = torch.zeros(shape, dtype=dtype, device=case.device)
        for own, rows in zip(tables.table, all_rows, strict=True):
            slots = torch.arange(len(rows.data), device=case.device)
            cache[own[slots // case.page].long(), slots % case.page] = rows.to(dtype).transpose(0, 1)
        found.append(cache)
    return found[0], found[1]


Attend = Callable[[Tensor, Tensor], Tensor]


def _paged(
    inputs: Inputs, exact: Exact, context: Context, *, impl: str, prepare: Callable[[Inputs, Tables], Attend]
) -> Candidate:
    """A peer that reads pages. prepare: imports it, makes its plan, and returns its call of a cache."""
    case = inputs.case
    dtype = DTYPES[case.dtype]
    if inputs.q.device.type != "cuda":
        raise PeerUnavailable(f"{impl} needs a CUDA device")
    if inputs.tree is not None:
        raise PeerUnavailable(f"{impl} has no mask of a tree")
    tables = tables_of(inputs)
    try:
        attend = prepare(inputs, tables)
    except (ImportError, AttributeError, RuntimeError, ValueError, TypeError, OSError) as error:
        raise PeerUnavailable(f"{type(error).__name__}: {str(error).splitlines()[:1]}") from error
    nbytes = 2 * sum(rows.data.numel() for rows in inputs.keys) * dtype.itemsize
    ring = context.rotation.ring((impl,), nbytes, lambda: paged_rows(inputs, tables, dtype))

    def call() -> Tensor:
        return attend(*next(ring))

    def check() -> Accuracy:
        return exact.accuracy(call().view(inputs.q.shape), "floats", dtype)

    computes = f"pages of {case.page} in {case.dtype}"
    return Candidate(impl, computes, call, check, peer_work(case, "bf16", dtype.itemsize), ring)


def _varlen(inputs: Inputs, tables: Tables) -> Attend:
    varlen_attn: Any = importlib.import_module("torch.nn.attention.varlen").varlen_attn

    def attend(k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = varlen_attn(
            inputs.q, k, v, tables.starts, None, tables.most_tokens, tables.most_keys,
            window_size=(-1, 0), enable_gqa=True, seqused_k=tables.seq_lens, block_table=tables.table,
        )  # fmt: skip
        return out

    return attend


def _fa3(inputs: Inputs, tables: Tables) -> Attend:
    attention: Any = importlib.import_module("flash_attn_interface").flash_attn_with_kvcache

    def attend(k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = attention(
            inputs.q, k, v, cache_seqlens=tables.seq_lens, page_table=tables.table,
            cu_seqlens_q=tables.starts, max_seqlen_q=tables.most_tokens, causal=True,
        )  # fmt: skip
        return out

    return attend


def _flashinfer(inputs: Inputs, tables: Tables) -> Attend:
    flashinfer: Any = importlib.import_module("flashinfer")
    case, dtype = inputs.case, DTYPES[inputs.case.dtype]
    workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=case.device)
    last = (tables.seq_lens - 1) % case.page + 1
    if tables.most_tokens == 1:
        wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD", use_tensor_cores=True)
        wrapper.plan(
            tables.first_page, tables.pages, last, case.heads, case.kv_heads, case.head_dim, case.page,
            q_data_type=dtype, kv_data_type=dtype,
        )  # fmt: skip
    else:
        wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace, "NHD")
        wrapper.plan(
            tables.starts, tables.first_page, tables.pages, last, case.heads, case.kv_heads, case.head_dim,
            case.page, causal=True, q_data_type=dtype, kv_data_type=dtype,
        )  # fmt: skip

    def attend(k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = wrapper.run(inputs.q, (k, v))
        return out

    return attend


def _sdpa(inputs: Inputs, exact: Exact, context: Context) -> Candidate:
    return sdpa(inputs, exact, context, impl="torch_sdpa", name=inputs.case.dtype)


GPU_PEERS: dict[str, Callable[[Inputs, Exact, Context], Candidate]] = {
    "torch_sdpa": _sdpa,
    "torch_varlen": partial(_paged, impl="torch_varlen", prepare=_varlen),
    "fa3": partial(_paged, impl="fa3", prepare=_fa3),
    "flashinfer": partial(_paged, impl="flashinfer", prepare=_flashinfer),
}
