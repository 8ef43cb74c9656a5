"""paged_attention in float64: token by token and head by head over the keys that the token sees."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from tests.reference.gemm import F64, TINY, U_OUT, Expected, U

CHUNK = 512  # keys that share a maximum
FLUSHED = 2.0**-124  # weights below e^-87 < 2^-125 of the largest are 0, in a chunk and between chunks


# How a kernel multiplies. The bounds depend on it:
#   f32    queries, keys, weights and values in f32
#   bf16   weights rounded to bf16, subnormal numbers count as 0
#   int16  queries and weights rounded to 16-bit integers, for int8 caches
#   tensor_bf16, tensor_f16
#          on tensor cores, in sums over all keys; weights are rounded to these types both where they multiply
#          values and where they are summed
ARITHMETIC = ("f32", "bf16", "int16", "tensor_bf16", "tensor_f16")
WEIGHT_ROUNDING = {"tensor_bf16": 2.0**-8, "tensor_f16": 2.0**-11}


class Attention(NamedTuple):
    """The results for all tokens: out [tokens, heads, v_head_dim] and lse [heads, tokens]; bounds for each
    arithmetic."""

    out: F64
    out_bounds: F64
    lse: F64
    lse_bounds: F64

    def expected(self, arithmetic: str = "f32") -> tuple[Expected, Expected]:
        """out and lse."""
        i = ARITHMETIC.index(arithmetic)
        return Expected(self.out, self.out_bounds[i]), Expected(self.lse, self.lse_bounds[i])


class Row(NamedTuple):
    """The results for one token and one head."""

    out: F64
    out_bounds: F64
    lse: float
    lse_bounds: F64


def dequantized_rows(
    cache: torch.Tensor, scale: torch.Tensor | None, block_table: torch.Tensor, seq_len: int
) -> tuple[F64, F64]:
    """The rows [seq_len, kv_heads, head_dim] of one request without their scales, and the scales [seq_len,
    kv_heads]."""
    page_size, kv_heads, head_dim = cache.shape[1:]
    pages, exact = block_table.tolist(), cache.to(torch.float64).numpy()
    rows, scales = np.zeros((seq_len, kv_heads, head_dim)), np.ones((seq_len, kv_heads))
    for slot in range(seq_len):
        rows[slot] = exact[pages[slot // page_size], slot % page_size]
    if scale is not None:
        exact = scale.to(torch.float64).numpy()
        for slot in range(seq_len):
            scales[slot] = (
                exact.item() if exact.size == 1 else exact[pages[slot // page_size], slot % page_size]
            )
    return rows, scales


class Request(NamedTuple):
    """The lengths of one request and the rules of its tree: mask [tree_len, tree_len], depth [tree_len]."""

    q_len: int
    seq_len: int
    mask: NDArray[np.bool_]
    depth: NDArray[np.int64]

    def keys_seen(
        self, token: int, causal: bool, window_left: int, window_right: int
    ) -> tuple[list[int], list[int]]:
        """The slots that the token sees, and their distances from it: position of the key - its own."""
        tree_len = len(self.mask)
        prefix, node = self.seq_len - tree_len, token - (self.q_len - tree_len)
        if node < 0:
            own = self.seq_len - self.q_len + token
            keys = [(slot, slot) for slot in range(self.seq_len) if slot <= own or not causal]
        else:
            own = prefix + int(self.depth[node])
            keys = [(slot, slot) for slot in range(prefix)]
            keys += [(prefix + n, prefix + int(self.depth[n])) for n in range(tree_len) if self.mask[node, n]]
        seen = [
            (slot, position - own)
            for slot, position in keys
            if (window_left < 0 or position >= own - window_left)
            and (window_right < 0 or position <= own + window_right)
        ]
        return [slot for slot, _ in seen], [distance for _, distance in seen]


def tree_of(
    first: int, tree_len: int, tree_mask: torch.Tensor | None, tree_depth: torch.Tensor | None
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """mask and depth of the tree whose first node is the token `first`."""
    mask = np.zeros((tree_len, tree_len), np.bool_)
    depth = np.zeros(tree_len, np.int64)
    for i in range(tree_len):
        assert tree_mask is not None
        for n in range(tree_len):
            mask[i, n] = int(tree_mask[first + i, n // 32]) >> (n % 32) & 1
        if tree_depth is None:
            depth[i] = sum(mask[i, n] for n in range(tree_len) if n != i)
        else:
            depth[i] = int(tree_depth[first + i])
    return mask, depth


def attend(
    q: F64,
    k: F64,
    k_scale: F64,
    v: F64,
    v_scale: F64,
    bias: F64,
    scale: float,
    softcap: float,
    sink: float | None,
    out_dtype: torch.dtype,
) -> Row:
    """One token and one head over the keys that it sees: k [keys, head_dim], v [keys, v_head_dim], k_scale,
    v_scale and bias [keys]."""
    if len(k) == 0:
        return Row(
            np.zeros(v.shape[1]), np.zeros((len(ARITHMETIC), v.shape[1])), -np.inf, np.zeros(len(ARITHMETIC))
        )
    x = scale * k_scale * (k @ q)
    score = softcap * np.tanh(x / softcap) if softcap else x
    s = score + bias
    top = s.max() if s.max() != -np.inf else 0.0
    weight = np.exp(s - top)
    lse = top + np.log(weight.sum())
    if sink is not None:
        weight = weight * np.exp(top - max(top, sink))
    total = weight.sum() + (0.0 if sink is None else np.exp(sink - max(top, sink)))
    weight = weight / total
    values = v * v_scale[:, None]
    out = weight @ values

    # An infinite dot product is exact.
    products = np.where(np.isinf(x), 0.0, np.abs(k_scale) * (np.abs(k) @ np.abs(q)))
    error = (len(q) + 4) * abs(scale) * products + 6 * np.where(np.isinf(s), 0.0, np.abs(s))
    error = U * (error + 8 * softcap + 4 * np.abs(bias))
    # A query of 16 bits is off by half a step of max|q| / 32767; queries below 2^-100 count as 0.
    step = np.abs(q).max() / 64000 + 2.0**-100
    coarse = error + abs(scale) * np.abs(k_scale) * step * np.abs(k).sum(1)
    out_bounds, lse_bounds = [], []
    for arithmetic in ARITHMETIC:
        largest = (coarse if arithmetic == "int16" else error).max()
        roundings = 2 * largest + U * (min(len(k), CHUNK) + 4 * -(-len(k) // CHUNK) + 40)
        extra = 0.0
        if arithmetic == "bf16":
            roundings += 2.0**-8
            extra = 2.0**-124
        elif arithmetic == "int16":
            extra = ((weight * v_scale).max() / 128000 + 2.0**-100) * np.abs(v).sum(0)
        elif arithmetic in WEIGHT_ROUNDING:
            rounding = WEIGHT_ROUNDING[arithmetic]
            roundings = 2 * largest + U * (len(k) + 64) + 2 * rounding
            extra = 2.0**-28 * np.abs(values).sum(0) if arithmetic == "tensor_f16" else 0.0
        bound = np.exp(2 * largest) * (roundings * (weight @ np.abs(values)) + extra)
        bound = bound + FLUSHED * np.abs(values).sum(0) + U_OUT[out_dtype] * np.abs(out) + TINY[out_dtype]
        out_bounds.append(bound)
        lse_bounds.append(
            largest + U * (560 + len(k) + 4 * np.abs(lse)) + WEIGHT_ROUNDING.get(arithmetic, 0.0)
        )
    return Row(out, np.array(out_bounds), lse, np.array(lse_bounds))


def paged_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_table: torch.Tensor,
    seq_lens: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    *,
    scale: float | None = None,
    causal: bool = True,
    window_left: int = -1,
    window_right: int = -1,
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
    tree_mask: torch.Tensor | None = None,
    tree_len: torch.Tensor | None = None,
    tree_depth: torch.Tensor | None = None,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Attention:
    """The arguments of torch.ops.lamina.paged_attention by the same names."""
    tokens, heads, head_dim = q.shape
    group = heads // max(1, k_cache.shape[2])
    out_dtype = out_dtype or q.dtype
    scale = float(np.float32(head_dim**-0.5 if scale is None else scale))
    softcap = float(np.float32(softcap))
    out, lse = np.zeros((tokens, heads, v_cache.shape[3])), np.zeros((heads, tokens))
    bounds = len(ARITHMETIC)
    out_bounds, lse_bounds = np.zeros((bounds, *out.shape)), np.zeros((bounds, *lse.shape))
    for b in range(len(seq_lens)):
        first, end, seq_len = int(cu_seqlens_q[b]), int(cu_seqlens_q[b + 1]), int(seq_lens[b])
        k, k_scales = dequantized_rows(k_cache, k_scale, block_table[b], seq_len)
        v, v_scales = dequantized_rows(v_cache, v_scale, block_table[b], seq_len)
        nodes = 0 if tree_len is None else int(tree_len[b])
        request = Request(end - first, seq_len, *tree_of(end - nodes, nodes, tree_mask, tree_depth))
        for t in range(first, end):
            slots, distances = request.keys_seen(t - first, causal, window_left, window_right)
            for h in range(heads):
                slope = 0.0
                if alibi_slopes is not None:
                    slope = float(alibi_slopes[h] if alibi_slopes.dim() == 1 else alibi_slopes[b, h])
                with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
                    row = attend(
                        q[t, h].to(torch.float64).numpy(),
                        k[slots, h // group],
                        k_scales[slots, h // group],
                        v[slots, h // group],
                        v_scales[slots, h // group],
                        -slope * np.abs(np.array(distances, np.float64)),
                        scale,
                        softcap,
                        None if sinks is None else float(sinks[h]),
                        out_dtype,
                    )
                out[t, h], out_bounds[:, t, h], lse[h, t], lse_bounds[:, h, t] = row
    return Attention(out, out_bounds, lse, lse_bounds)
