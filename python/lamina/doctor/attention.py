"""The checks of attention and of the paged KV cache."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from lamina import ops
from lamina.doctor.outcome import DeviceCheck, Outcome
from lamina.testing import error_over_bound, same_values
from lamina.testing.reference import Expected

PAGES, PAGE, KV_HEADS, GROUP, HEAD_DIM = 120, 16, 2, 3, 64
BLOCKS = 38  # of a request, enough for the longest
LENGTHS, TOKENS = (1, 40, 600), (1, 3, 2)  # of the requests: keys, and tokens of the query
# Weights and queries lose up to 2^-9 where a CPU multiplies bf16 or int8. On CUDA weights lose up to 2^-8 in
# products and in sums. The tests of the op have exact bounds.
TOLERANCE, CUDA_TOLERANCE = 2.0**-7, 2.0**-6


def _int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def _tables() -> tuple[Tensor, Tensor, Tensor]:
    """block_table, seq_lens and cu_seqlens_q."""
    seed = torch.Generator().manual_seed(5)
    blocks = torch.randperm(PAGES, generator=seed).int()[: len(LENGTHS) * BLOCKS].view(len(LENGTHS), BLOCKS)
    return blocks, _int32(*LENGTHS), _int32(0, *torch.tensor(TOKENS).cumsum(0).tolist())


def _caches(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None]:
    """Keys, values and, for a quantised cache, one scale."""
    seed = torch.Generator().manual_seed(6)
    k, v = torch.randn(2, PAGES, PAGE, KV_HEADS, HEAD_DIM, generator=seed)
    if dtype not in (torch.int8, torch.float8_e4m3fn):
        return k.to(dtype), v.to(dtype), None
    k, v = (k * 30).round().clamp(-120, 120).to(dtype), (v * 30).round().clamp(-120, 120).to(dtype)
    return k, v, torch.tensor([1 / 30])


def _slots(blocks: Tensor, request: int) -> Tensor:
    """The slots of a request in order, as indices of rows of the cache."""
    return (blocks[request].long()[:, None] * PAGE + torch.arange(PAGE)).flatten()[: LENGTHS[request]]


def _check_paged_attention(device: torch.device) -> Iterator[Outcome]:
    blocks, lengths, starts = _tables()
    seed = torch.Generator().manual_seed(7)
    is_cuda = device.type == "cuda"  # where queries of 32 bits are refused
    dtypes = (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int8)
    tolerance = CUDA_TOLERANCE if is_cuda else TOLERANCE
    for dtype in dtypes[is_cuda:]:
        k, v, scale = _caches(dtype)
        q = torch.randn(sum(TOKENS), KV_HEADS * GROUP, HEAD_DIM, generator=seed)
        q = q.to(dtype if dtype.itemsize == 2 else torch.bfloat16 if is_cuda else torch.float32)
        query, keys, values, table, lens, firsts = (t.to(device) for t in (q, k, v, blocks, lengths, starts))
        placed = None if scale is None else scale.to(device)
        out = ops.paged_attention(
            query, keys, values, table, lens, firsts,
            max_seqlen_q=max(TOKENS), k_scale=placed, v_scale=placed, out_dtype=torch.float32,
        )  # fmt: skip
        assert isinstance(out, Tensor)
        factor = 1.0 if scale is None else float(scale)
        for b, (length, count) in enumerate(zip(LENGTHS, TOKENS, strict=True)):
            rows = _slots(blocks, b)
            keys, values = (
                t.double().flatten(0, 1)[rows].repeat_interleave(GROUP, 1) * factor for t in (k, v)
            )
            for i in range(count):
                token, seen = int(starts[b]) + i, length - count + i + 1
                s = torch.einsum("hd,khd->hk", q[token].double(), keys[:seen]) * HEAD_DIM**-0.5
                w = s.softmax(1)
                exact = torch.einsum("hk,khd->hd", w, values[:seen])
                bound = tolerance * torch.einsum("hk,khd->hd", w, values[:seen].abs())
                ratio = error_over_bound(out[token].cpu(), Expected(exact, bound))
                yield Outcome(f"{str(dtype).removeprefix('torch.')}, {seen} keys", ratio)


def _same(case: str, got: Tensor, want: Tensor) -> Outcome:
    return Outcome(case, 0.0 if same_values(got.cpu(), want) else math.inf)


def _check_append_paged_kv(device: torch.device) -> Iterator[Outcome]:
    k, v, _ = _caches(torch.float32)
    tokens = torch.randn(2, 5, KV_HEADS, HEAD_DIM, generator=torch.Generator().manual_seed(8))
    slots = torch.tensor([7, 300, -1, 12, 1000])
    want_k, want_v = k.clone(), v.clone()
    kept = slots >= 0
    want_k.flatten(0, 1)[slots[kept]], want_v.flatten(0, 1)[slots[kept]] = tokens[0][kept], tokens[1][kept]
    k, v = k.clone().to(device), v.clone().to(device)
    ops.append_paged_kv(tokens[0].to(device), tokens[1].to(device), k, v, slots.to(device))
    yield _same("keys", k, want_k)
    yield _same("values", v, want_v)


def _check_gather_paged_kv(device: torch.device) -> Iterator[Outcome]:
    blocks, lengths, _ = _tables()
    starts = _int32(0, *lengths.cumsum(0).tolist())
    for dtype in (torch.float32, torch.bfloat16):
        k, v, _ = _caches(dtype)
        rows = torch.cat([_slots(blocks, b) for b in range(len(LENGTHS))])
        keys, values, table, firsts = (t.to(device) for t in (k, v, blocks, starts))
        gathered = ops.gather_paged_kv(keys, values, table, firsts, sum(LENGTHS))
        for name, got, cache in zip(("keys", "values"), gathered, (k, v), strict=True):
            yield _same(f"{name} {str(dtype).removeprefix('torch.')}", got, cache.flatten(0, 1)[rows])


def _check_copy_kv_blocks(device: torch.device) -> Iterator[Outcome]:
    k, v, _ = _caches(torch.bfloat16)
    keys, values = k.clone().to(device), v.clone().to(device)
    ops.copy_kv_blocks(keys, values, torch.tensor([[3, 5], [0, 79]], device=device))
    for name, got, cache in zip(("keys", "values"), (keys, values), (k, v), strict=True):
        cache[[5, 79]] = cache[[3, 0]]
        yield _same(name, got, cache)


def _check_compact_kv(device: torch.device) -> Iterator[Outcome]:
    blocks, lengths, _ = _tables()
    k, v, _ = _caches(torch.float32)
    keys, values = k.clone().to(device), v.clone().to(device)
    nodes, accepted = (1, 6, 8), torch.tensor([[0, -1, -1], [0, 2, 5], [1, 3, 4]], dtype=torch.int32)
    table, lens, trees = (t.to(device) for t in (blocks, lengths, _int32(*nodes)))
    ops.compact_kv(keys, values, table, lens, trees, accepted.to(device))
    for name, got, cache in zip(("keys", "values"), (keys, values), (k, v), strict=True):
        flat, before = cache.flatten(0, 1), cache.flatten(0, 1).clone()
        for b, count in enumerate(nodes):
            tree = _slots(blocks, b)[-count:]
            for i, node in enumerate(n for n in accepted[b].tolist() if n >= 0):
                flat[tree[i]] = before[tree[node]]
        yield _same(name, got, cache)


def _check_merge_attention_states(device: torch.device) -> Iterator[Outcome]:
    seed = torch.Generator().manual_seed(9)
    outs = torch.randn(3, 7, 4, 64, generator=seed)
    lses = torch.randn(3, 4, 7, generator=seed) * 3
    lses[1, 2] = -math.inf
    out, lse = ops.merge_attention_states([t.to(device) for t in outs], [t.to(device) for t in lses])
    weights = lses.double().softmax(0).mT[..., None]
    bound = TOLERANCE * (weights * outs.double().abs()).sum(0)
    yield Outcome("out", error_over_bound(out.cpu(), Expected((weights * outs.double()).sum(0), bound)))
    exact = lses.double().logsumexp(0)
    yield Outcome("lse", error_over_bound(lse.cpu(), Expected(exact, TOLERANCE * (1 + exact.abs()))))


CHECKS: dict[str, DeviceCheck] = {
    "paged_attention": _check_paged_attention,
    "append_paged_kv": _check_append_paged_kv,
    "gather_paged_kv": _check_gather_paged_kv,
    "copy_kv_blocks": _check_copy_kv_blocks,
    "compact_kv": _check_compact_kv,
    "merge_attention_states": _check_merge_attention_states,
}
