"""varlen_attn with the signature of torch.nn.attention.varlen.varlen_attn, which torch has on GPUs alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from lamina.integrations._attention import Options, attend, refuse_gradients, varlen_keys


class AuxRequest(Protocol):
    """torch.nn.attention.varlen.AuxRequest."""

    @property
    def lse(self) -> bool:
        """Whether the logarithms are wanted."""


def varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    *,
    return_aux: AuxRequest | None = None,
    scale: float | None = None,
    window_size: Sequence[int] = (-1, -1),
    enable_gqa: bool = False,
    seqused_k: Tensor | None = None,
    block_table: Tensor | None = None,
    num_splits: int | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention over sequences that stand one after the other.

    query        [total_q, heads, head_dim]  f32 | f16 | bf16
    key, value   [total_k, kv_heads, head_dim], read in place; with block_table [pages, page, kv_heads,
                 head_dim]
    cu_seq_k     [batch + 1] int32. None where seqused_k and block_table are given
    max_q, max_k the longest sequences, or more
    return_aux   with lse=True also the logarithms are returned, as torch 2.13 does: [heads, total_q] f32, and
                 +inf for a row that sees no key
    window_size  (left, right), -1 for no limit. (-1, 0) is causal, aligned to the last query and the last key
    enable_gqa   allows fewer heads of key than of query
    seqused_k    [batch] int32: keys in use of each sequence. None: the differences of cu_seq_k
    block_table  [batch, max_pages] int32; needs seqused_k
    num_splits   ignored: lamina's results do not depend on how the work is split
    returns      out [total_q, heads, head_dim], zeros for a row that sees no key
    Raises       ValueError for heads that do not fit enable_gqa and for block_table without seqused_k;
                 RuntimeError if an input requires grad; what lamina.paged_attention raises
    """
    heads, kv_heads = query.shape[1], key.shape[-2]
    if not enable_gqa and heads != kv_heads:
        raise ValueError(
            f"lamina: varlen_attn: query has {heads} heads and key {kv_heads}; enable_gqa=True allows that"
        )
    if block_table is not None and seqused_k is None:
        raise ValueError("lamina: varlen_attn: block_table needs seqused_k")
    refuse_gradients("varlen_attn", query=query, key=key, value=value)
    keys = varlen_keys("varlen_attn", key, value, cu_seq_k, max_k, seqused_k, block_table)
    out, lse = attend(query, keys, cu_seq_q, max_q, Options(scale, window=window_size))
    return (out, lse) if return_aux is not None and return_aux.lse else out
