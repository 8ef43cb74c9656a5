"""flash_attn_with_kvcache and flash_attn_varlen_func with the signatures of Dao-AILab's flash-attn 2.7.

The keyword-only arguments are those that flash-attn 3 and vLLM's fork add. Arguments that only choose how a
kernel works (num_splits, deterministic, pack_gqa, sm_margin, scheduler_metadata) are accepted and ignored:
lamina's results never depend on such choices.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lamina.integrations._attention import (
    Keys,
    Options,
    attend,
    one_scale,
    refuse,
    refuse_gradients,
    unit_stride,
    varlen_keys,
)
from lamina.ops import append_paged_kv


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor | None,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Sequence[int] | None = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
    *,
    seqused_q: Tensor | None = None,
    seqused_k: Tensor | None = None,
    qv: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    s_aux: Tensor | None = None,
    attention_chunk: int = 0,
    return_softmax_lse: bool = False,
    num_splits: int = 0,
    pack_gqa: bool | None = None,
    sm_margin: int = 0,
    scheduler_metadata: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention over sequences that stand one after the other.

    q                   [total_q, heads, head_dim]  f32 | f16 | bf16
    k, v                [total_k, kv_heads, head_dim], read in place; with block_table [pages, page, kv_heads,
                        head_dim], any page size
    cu_seqlens_k        [batch + 1] int32. None where seqused_k and block_table are given
    seqused_k           [batch] int32: keys in use of each sequence. None: the differences of cu_seqlens_k
    causal, window_size aligned to the last query and the last key of a sequence
    s_aux               [heads]: attention sinks, in the denominator only
    k_descale, v_descale  one scale of a float8_e4m3fn or int8 cache, or one expanded to any shape
    return_softmax_lse  also return the logarithms, [heads, total_q] f32; +inf for a row that sees no key
    returns             out [total_q, heads, head_dim], zeros for a row that sees no key
    Raises              NotImplementedError that names the argument for dropout_p, return_attn_probs,
                        seqused_q, qv, q_descale and attention_chunk; RuntimeError if an input requires grad;
                        what lamina.paged_attention raises
    """
    function = "flash_attn_varlen_func"
    refuse(
        function,
        dropout_p=dropout_p > 0,
        return_attn_probs=return_attn_probs,
        seqused_q=seqused_q is not None,
        qv=qv is not None,
        q_descale=q_descale is not None,
        attention_chunk=attention_chunk != 0,
    )
    refuse_gradients(function, q=q, k=k, v=v)
    keys = varlen_keys(function, k, v, cu_seqlens_k, max_seqlen_k, seqused_k, block_table)
    options = Options(
        softmax_scale, causal, window_size, softcap, alibi_slopes, s_aux,
        one_scale("k_descale", k_descale), one_scale("v_descale", v_descale),
    )  # fmt: skip
    out, lse = attend(q, keys, cu_seqlens_q, max_seqlen_q, options)
    return (out, lse) if return_softmax_lse else out


def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    cache_seqlens: int | Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    block_table: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Sequence[int] | None = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: Tensor | None = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
    *,
    page_table: Tensor | None = None,
    qv: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k_new: Tensor | None = None,
    rotary_seqlens: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    s_aux: Tensor | None = None,
    attention_chunk: int = 0,
    pack_gqa: bool | None = None,
    sm_margin: int = 0,
    scheduler_metadata: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of new tokens over a KV cache, to which k and v are appended first if they are given.

    q                   [batch, seqlen, heads, head_dim]  f32 | f16 | bf16, unchanged
    k_cache, v_cache    [batch_cache, seqlen_cache, kv_heads, head_dim]; with block_table [pages, page,
                        kv_heads, head_dim], any page size. Rows of head_dim are contiguous
    k, v                [batch, seqlen_new, kv_heads, head_dim]: written behind the cache_seqlens rows
    rotary_cos, rotary_sin  [positions, rotary_dim / 2], with k and v: k is rotated by the positions
                        cache_seqlens, cache_seqlens + 1, ...; q too if causal or local, else by cache_seqlens
    cache_seqlens       int or [batch] int32: keys in the cache, without k. None: all rows of the cache
    cache_batch_idx     [batch] int32: the batch entry of the cache of each sequence, without block_table
    block_table         [batch, max_pages] int32; page_table is its name in flash-attn 3
    causal, window_size aligned to the last query and the last key, those of k included
    rotary_interleaved  True: pairs x[2i], x[2i + 1]. False: x[i], x[i + rotary_dim / 2]
    s_aux               [heads]: attention sinks, in the denominator only
    k_descale, v_descale  one scale of a float8_e4m3fn or int8 cache, or one expanded to any shape
    return_softmax_lse  also return the logarithms, [batch, heads, seqlen] f32; +inf where no key is seen
    returns             out [batch, seqlen, heads, head_dim], zeros for a row that sees no key
    Raises              NotImplementedError that names the argument for cache_leftpad, qv, cu_seqlens_q,
                        cu_seqlens_k_new, rotary_seqlens, q_descale and attention_chunk; RuntimeError if an
                        input requires grad; ValueError for arguments that exclude each other, and what
                        lamina.append_paged_kv and lamina.paged_attention raise
    """
    function = "flash_attn_with_kvcache"
    refuse(
        function,
        cache_leftpad=cache_leftpad is not None,
        qv=qv is not None,
        cu_seqlens_q=cu_seqlens_q is not None,
        cu_seqlens_k_new=cu_seqlens_k_new is not None,
        rotary_seqlens=rotary_seqlens is not None,
        q_descale=q_descale is not None,
        attention_chunk=attention_chunk != 0,
    )
    refuse_gradients(function, q=q, k_cache=k_cache, v_cache=v_cache, k=k, v=v)
    if (k is None) != (v is None) or (rotary_cos is None) != (rotary_sin is None):
        raise ValueError(f"lamina: {function} takes k with v, and rotary_cos with rotary_sin")
    if k is None and rotary_cos is not None:
        raise ValueError(f"lamina: {function} takes rotary_cos and rotary_sin with k and v only")
    if k is not None and cache_seqlens is None:
        raise ValueError(f"lamina: {function} needs cache_seqlens with k and v")
    batch, seqlen = q.shape[:2]
    table = _table(function, q, page_table if block_table is None else block_table, cache_batch_idx)
    if cache_seqlens is None:
        cache_seqlens = table.shape[1] * k_cache.shape[1]
    if isinstance(cache_seqlens, int):
        cache_seqlens = torch.full((batch,), cache_seqlens, device=q.device)
    cache_seqlens = cache_seqlens.to(torch.int32)
    options = Options(
        softmax_scale, causal, window_size, softcap, alibi_slopes, s_aux,
        one_scale("k_descale", k_descale), one_scale("v_descale", v_descale),
    )  # fmt: skip
    keys = Keys(k_cache, v_cache, table, cache_seqlens)
    flat = unit_stride(q.flatten(0, 1))
    if k is not None and v is not None:
        flat = _append(function, flat, keys, k, v, rotary_cos, rotary_sin, rotary_interleaved, options)
        keys = Keys(k_cache, v_cache, table, cache_seqlens + k.shape[1])
    starts = torch.arange(batch + 1, dtype=torch.int32, device=q.device) * seqlen
    out, lse = attend(flat, keys, starts, seqlen, options)
    out = out.view(batch, seqlen, *out.shape[1:])
    if not return_softmax_lse:
        return out
    return out, lse.view(-1, batch, seqlen).transpose(0, 1).contiguous()


def _table(function: str, q: Tensor, table: Tensor | None, cache_batch_idx: Tensor | None) -> Tensor:
    """The block table; a cache without one is a paged cache with one page for each batch entry."""
    if table is None:
        if cache_batch_idx is None:
            cache_batch_idx = torch.arange(q.shape[0], dtype=torch.int32, device=q.device)
        return cache_batch_idx.to(torch.int32).unsqueeze(1)
    if cache_batch_idx is not None:
        raise ValueError(f"lamina: {function} takes cache_batch_idx without block_table only")
    return table


def _append(
    function: str,
    q: Tensor,
    keys: Keys,
    k: Tensor,
    v: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    interleaved: bool,
    options: Options,
) -> Tensor:
    """Writes k and v behind the keys and returns q [tokens, heads, head_dim], rotated with cos and sin."""
    batch, new = k.shape[:2]
    page, capacity = keys.k_cache.shape[1], keys.block_table.shape[1] * keys.k_cache.shape[1]
    first = keys.seq_lens.long().unsqueeze(1)
    # On a GPU the lengths stay on the device: an engine that replays a graph may not wait for them.
    if (
        first.device.type == "cpu"
        and k.numel()
        and not 0 <= int(first.min()) <= int(first.max()) <= capacity - new
    ):
        raise ValueError(
            f"lamina: {function}: cache_seqlens = {first.flatten().tolist()} with {new} new tokens; "
            f"a sequence has room for {capacity}"
        )

    def write(k: Tensor, v: Tensor, slots: Tensor, positions: Tensor, q: Tensor | None = None) -> None:
        append_paged_kv(
            k, v, keys.k_cache, keys.v_cache, slots.flatten(), k_scale=options.k_scale,
            v_scale=options.v_scale, cos=cos, sin=sin, interleaved=cos is not None and interleaved, q=q,
            positions=None if cos is None else positions.flatten(),
        )  # fmt: skip

    positions = first + torch.arange(new, device=q.device)
    slots = keys.block_table.gather(1, positions // page).long() * page + positions % page
    k, v = unit_stride(k.flatten(0, 1)), unit_stride(v.flatten(0, 1))
    if cos is None:
        write(k, v, slots, positions)
        return q
    q = q.clone(memory_format=torch.contiguous_format)
    seqlen = len(q) // batch if batch else 0
    if seqlen == new and (new == 1 or options.is_local()):
        write(k, v, slots, positions, q)
        return q
    write(k, v, slots, positions)
    own = first + torch.arange(seqlen, device=q.device) * options.is_local()
    no_k, no_v = (q.new_empty(len(q), *cache.shape[2:]) for cache in (keys.k_cache, keys.v_cache))
    write(no_k, no_v, torch.full_like(own, -1), own, q)
    return q
