"""Attention over a paged KV cache: decode, verification of drafts, prefill, and any mix in one call."""

from __future__ import annotations

import torch
from torch import Tensor

from lamina._checks import (
    call,
    require_bool,
    require_int,
    require_one_device,
    require_optional_tensors,
    require_tensors,
)
from lamina.ops.registration import Arguments, fake

OP = "paged_attention"


def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    cu_seqlens_q: Tensor,
    *,
    max_seqlen_q: int,
    scale: float | None = None,
    causal: bool = True,
    window: tuple[int, int] | None = None,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    tree_mask: Tensor | None = None,
    tree_len: Tensor | None = None,
    tree_depth: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    return_lse: bool = False,
    batch_invariant: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """softmax(scale * dot(q, k) + bias) times v for every token of a batch, with k and v in a paged cache.

    q             [tokens, heads, head_dim]  f32 (on a CPU) | f16 | bf16, unit stride in head_dim, other
                  strides free. The tokens of all requests stand one after the other
    k_cache       [pages, page, kv_heads, head_dim]  f32 | f16 | bf16 | float8_e4m3fn | int8, unit stride in
                  head_dim, other strides free: [pages, kv_heads, page, head_dim], or K and V in one tensor,
                  are views. heads = group * kv_heads, with group from 1 to 128. head_dim is a multiple of 8,
                  at most 256. CUDA: the dtype of q, float8_e4m3fn or int8
    v_cache       as k_cache, with the same dtype; its head_dim may differ
    block_table   [requests, max_blocks]  int32: slot j of request b is row j % page of page
                  block_table[b, j // page]. Entries past the keys that a request sees are not read
    seq_lens      [requests]  int32: keys of a request in the cache, including those of the tokens in q
    cu_seqlens_q  [requests + 1]  int32: request b has the tokens from cu_seqlens_q[b] to
                  cu_seqlens_q[b + 1] - 1
    max_seqlen_q  the most tokens of a request, or more. CUDA: chooses the kernel, and is not checked
    scale         of the dot products. None: 1 / sqrt(head_dim)
    causal        The last token of a request has position seq_lens - 1 and sees all keys; the token before it
                  one less. False: every token sees all keys
    window        (left, right): of these keys, those from left before to right after the token's position;
                  -1 is no limit. None: (-1, -1)
    softcap       x becomes softcap * tanh(x / softcap) after the scale. 0: none
    alibi_slopes  [heads] or [requests, heads]  f32: adds -slope * |position of the token - that of the key|
    sinks         [heads]  f32: adds exp(sink) to the sum of weights by which the result is divided
    tree_mask     [tokens, words]  int32: the last tree_len tokens of a request are nodes of a tree of drafts.
                  Node i sees all keys before the tree, and node j if bit j % 32 of word j // 32 of its row is
                  set (its own too); `causal` is not applied to nodes. Rows of other tokens are not read
    tree_len      [requests]  int32: nodes of each request, 0 for no tree. With tree_mask
    tree_depth    [tokens]  int32: a node's position is seq_lens - tree_len + depth. None: the number of other
                  nodes that the node sees
    k_scale       f32, with an int8 or float8 cache: 1 element, or [pages, page, kv_heads] with any strides, a
                  scale per token and head. int8 needs it; None means 1
    v_scale       as k_scale
    out_dtype     f32 | f16 | bf16. None: dtype of q
    return_lse    also return the logarithm of the sum of weights, without the sink
    batch_invariant  CUDA: the bits of a row depend on its query and the keys that it sees alone, as they
                  always do on a CPU. Without it they also depend on where the work is cut, so on the lengths
                  in the batch
    returns       out [tokens, heads, head_dim of v], or (out, lse) with lse [heads, tokens] f32, the natural
                  logarithm. A token that sees no key has out = 0 and lse = -inf
    Error    Per element, with w the exact weights (they sum to 1, less the sink's part), s the exact scores,
             u = 2^-24, e = max_j u ((head_dim + 4) |scale| sum_i |q_i k_ji| + 6 |s_j| + 4 |bias_j| +
             8 softcap) over the c keys seen, and g = min(c, 512) + 4 ceil(c / 512) + 40:
             |out - r| <= exp(2 e) (2 e + g u) sum_j w_j |v_j| + u_out |r| + tiny, where r is exact and u_out
             = 0 | 2^-11 | 2^-8 for f32 | f16 | bf16.  |lse - exact| <= e + u (560 + 4 |exact|). Weights below
             2^-125 of the largest of 512 keys count as 0.
             bf16 q and caches on a CPU with avx512_bf16 or amx_int8: 2^-8 more than 2 e + g u, because
             weights are rounded to bf16; subnormal numbers count as 0.
             int8 caches on a CPU with avx512_vnni or above: q and weights are rounded to 16-bit integers, so
             e gains |scale| k_scale_j (max_i |q_i| / 64000) sum_i |k_ji| and out gains
             max_j (w_j v_scale_j) / 128000 sum_j |v_j|, where k and v are the stored integers. A NaN or Inf
             in q, or a v_scale that is NaN, Inf or negative, makes the row NaN.
             CUDA: weights are rounded to the dtype of the cache, or to bf16 for float8 and int8 (with their
             v_scale), where they multiply values and where they are summed. With w = 2^-11 | 2^-8 for f16 |
             bf16 weights 2 e + g u becomes 2 e + (c + 64) u + 2 w, and weights below 2^-28 of the largest
             count as 0 in f16; the bound of lse gains w + c u. The tests use these expressions
    NaN, Inf propagate from the keys that a token sees, and from no others, whatever unused slots hold. An Inf
             in v whose weight counts as 0 may give NaN, as 0 * Inf does, where the exact result is Inf
    Raises   ValueError that names the argument, its value and the allowed values, on a CPU also for a block,
             length, offset or tree that is out of range; TypeError for an argument of a wrong Python type
             (docs/errors.md lists both). CUDA: lamina.check_errors() reports the first such index. A request
             with a bad length, offset or tree counts as empty: its tokens have out = 0 and lse = -inf; a bad
             block holds zeros. Negative depths count as 0 and are reported where positions matter
    Devices  CPU (generic, avx2, avx512_vnni, avx512_bf16, amx_int8), CUDA sm_80+, sm_90a. All tensors are on
             one device. On a CPU, and on CUDA with batch_invariant, a row depends on its query and on the
             keys that it sees, bit for bit: not on the batch, the threads, the page size or the order of
             pages. A node of a tree then has the bits that it has as the last token of its path. All
             instruction sets of CPUs give the same bits where all compute in f32. CUDA: two launches, up to
             four with a tree; the host reads no length, so a graph that is replayed with other lengths,
             tables and trees is right
    Source   csrc/ops/paged_attention/paged_attention.h
    """
    require_tensors(
        OP, q=q, k_cache=k_cache, v_cache=v_cache, block_table=block_table, seq_lens=seq_lens,
        cu_seqlens_q=cu_seqlens_q,
    )  # fmt: skip
    require_optional_tensors(
        OP, alibi_slopes=alibi_slopes, sinks=sinks, tree_mask=tree_mask, tree_len=tree_len,
        tree_depth=tree_depth, k_scale=k_scale, v_scale=v_scale,
    )  # fmt: skip
    require_int(OP, "max_seqlen_q", max_seqlen_q)
    for name, value in (("causal", causal), ("return_lse", return_lse), ("batch_invariant", batch_invariant)):
        require_bool(OP, name, value)
    left, right = _window(window)
    out, lse = call(
        torch.ops.lamina.paged_attention, q, k_cache, v_cache, block_table, seq_lens, cu_seqlens_q,
        max_seqlen_q=max_seqlen_q, scale=scale, causal=causal, window_left=left, window_right=right,
        softcap=softcap, alibi_slopes=alibi_slopes, sinks=sinks, tree_mask=tree_mask, tree_len=tree_len,
        tree_depth=tree_depth, k_scale=k_scale, v_scale=v_scale, out_dtype=out_dtype, return_lse=return_lse,
        batch_invariant=batch_invariant,
    )  # fmt: skip
    return (out, lse) if return_lse else out


def _window(window: tuple[int, int] | None) -> tuple[int, int]:
    if window is None:
        return -1, -1
    if not isinstance(window, tuple) or len(window) != 2:
        raise TypeError(f"lamina::{OP}: window must be a tuple (left, right) or None, got {window!r}")
    for name, side in zip(("window[0]", "window[1]"), window, strict=True):
        require_int(OP, name, side)
    return window


@fake(OP)
def _fake_paged_attention(given: Arguments) -> tuple[Tensor, Tensor]:
    if given.q.dim() != 3:
        raise ValueError(f"lamina::{OP}: q must be 3-D [tokens, heads, head_dim], got {list(given.q.shape)}")
    if given.v_cache.dim() != 4:
        shape = list(given.v_cache.shape)
        raise ValueError(f"lamina::{OP}: v_cache must be 4-D [pages, page, kv_heads, head_dim], got {shape}")
    require_one_device(OP, vars(given))
    tokens, heads, _ = given.q.shape
    out = given.q.new_empty((tokens, heads, given.v_cache.shape[3]), dtype=given.out_dtype or given.q.dtype)
    lse = given.q.new_empty((heads, tokens if given.return_lse else 0), dtype=torch.float32)
    return out, lse
