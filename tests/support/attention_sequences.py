"""Ragged sequences for the functions with the signatures of other libraries, and torch's SDPA in float64."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

HEADS, KV_HEADS, DIM = 6, 2, 24
# Sums of fewer than 64 products and keys, all about 1, with scores below 16: below 100 roundings of 2^-24.
CLOSE = {"rtol": 0.0, "atol": 1e-5}
# q_len, k_len: a prompt, decode, more queries than keys (rows that see nothing), no query, no key.
LENGTHS = [(5, 5), (1, 9), (7, 4), (0, 3), (2, 0), (3, 17)]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def offsets(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def expected(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    window: tuple[int, int] = (-1, -1),
    slopes: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """SDPA of one sequence, q [q_len, heads, dim], and its logarithms [heads, q_len]; 0 and +inf if empty."""
    q_len, k_len, heads = len(q), len(k), q.shape[1]
    distance = torch.arange(k_len) - (torch.arange(q_len).unsqueeze(1) + k_len - q_len)
    seen = torch.ones(q_len, k_len, dtype=torch.bool)
    if causal:
        seen &= distance <= 0
    if window[0] >= 0:
        seen &= distance >= -window[0]
    if window[1] >= 0:
        seen &= distance <= window[1]
    bias = torch.zeros(heads, q_len, k_len, dtype=torch.float64).masked_fill(~seen, -math.inf)
    if slopes is not None:
        bias = bias - slopes.double()[:, None, None] * distance.abs()
    own, keys, values = (x.double().transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    out = scaled_dot_product_attention(own, keys, values, bias.unsqueeze(0), scale=scale, enable_gqa=True)
    factor = q.shape[2] ** -0.5 if scale is None else scale
    scores = factor * own[0] @ keys[0].repeat_interleave(heads // k.shape[1], 0).mT + bias
    lse = scores.logsumexp(2)
    is_empty = ~seen.any(1)
    out = out[0].transpose(0, 1).masked_fill(is_empty[:, None, None], 0.0)
    return out, lse.masked_fill(is_empty, math.inf)


class Batch:
    """Sequences of LENGTHS one after the other, and the same keys in pages of 3 rows in another order."""

    def __init__(self) -> None:
        q_lens, k_lens = (list(lengths) for lengths in zip(*LENGTHS, strict=True))
        self.q, self.cu_q = randn(sum(q_lens), HEADS, DIM), offsets(q_lens)
        self.k, self.v = randn(sum(k_lens), KV_HEADS, DIM, seed=1), randn(sum(k_lens), KV_HEADS, DIM, seed=2)
        self.cu_k = offsets(k_lens)
        self.max_q, self.max_k = max(q_lens), max(k_lens)
        self.seq_lens = torch.tensor(k_lens, dtype=torch.int32)
        pages = [-(-length // 3) for length in k_lens]
        order = torch.randperm(sum(pages), generator=torch.Generator().manual_seed(3))
        self.table = torch.full((len(pages), max(pages)), 2**31 - 1, dtype=torch.int32)
        self.k_cache, self.v_cache = torch.full((2, sum(pages), 3, KV_HEADS, DIM), math.nan).unbind(0)
        for b, (start, end) in enumerate(pairwise(self.cu_k.tolist())):
            own = order.split(pages)[b]
            self.table[b, : len(own)] = own
            slots = torch.arange(end - start)
            self.k_cache[own[slots // 3], slots % 3] = self.k[start:end]
            self.v_cache[own[slots // 3], slots % 3] = self.v[start:end]

    def expected(self, **options: Any) -> tuple[Tensor, Tensor]:
        slopes = options.pop("slopes", None)
        outs, lses = [], []
        for b, ((q0, q1), (k0, k1)) in enumerate(
            zip(pairwise(self.cu_q.tolist()), pairwise(self.cu_k.tolist()), strict=True)
        ):
            own = slopes[b] if slopes is not None and slopes.dim() == 2 else slopes
            out, lse = expected(self.q[q0:q1], self.k[k0:k1], self.v[k0:k1], slopes=own, **options)
            outs.append(out)
            lses.append(lse)
        return torch.cat(outs), torch.cat(lses, 1)


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b) and a.dtype == b.dtype
