"""Calls of paged_attention in the conventions of FlashAttention, which several libraries share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lamina.ops import paged_attention


@dataclass(frozen=True)
class Options:
    """The options of a call, by lamina's names; None and 0.0 mean none."""

    scale: float | None = None
    causal: bool = False
    window: Sequence[int] | None = None
    softcap: float = 0.0
    alibi_slopes: Tensor | None = None
    sinks: Tensor | None = None
    k_scale: Tensor | None = None
    v_scale: Tensor | None = None

    def is_local(self) -> bool:
        """Whether causality or a window hides keys."""
        return self.causal or self.sides() != (-1, -1)

    def sides(self) -> tuple[int, int]:
        """The window as lamina takes it; any negative number is no limit for FlashAttention."""
        if self.window is None:
            return -1, -1
        left, right = self.window
        return max(int(left), -1), max(int(right), -1)


@dataclass(frozen=True)
class Keys:
    """The paged cache of a call, and how much of it each request has."""

    k_cache: Tensor
    v_cache: Tensor
    block_table: Tensor
    seq_lens: Tensor


def refuse(function: str, **given: bool) -> None:
    """Raises NotImplementedError that names the first argument whose value is True: it is given."""
    for name, is_given in given.items():
        if is_given:
            raise NotImplementedError(f"lamina: {function} does not support {name}")


def refuse_gradients(function: str, **tensors: Tensor | None) -> None:
    """Raises RuntimeError that names a tensor that requires grad, as no op has a backward pass."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                f"lamina: {function} has no backward pass, and {name} requires grad; "
                "call it under torch.inference_mode() or torch.no_grad()"
            )


def unit_stride(x: Tensor) -> Tensor:
    """x, copied unless its last dimension is contiguous."""
    return x if x.stride(-1) == 1 or x.shape[-1] <= 1 else x.contiguous()


def one_scale(name: str, descale: Tensor | None) -> Tensor | None:
    """A descale as the single scale that lamina takes. vLLM expands one scale to [requests, kv_heads].

    Raises   ValueError unless all elements are one element
    """
    if descale is None or descale.numel() == 1:
        return descale
    if any(stride != 0 for stride, size in zip(descale.stride(), descale.shape, strict=True) if size != 1):
        raise ValueError(
            f"lamina: {name} must have 1 element, or be one element expanded, got {list(descale.shape)}"
        )
    return descale.flatten()[:1]


def attend(
    q: Tensor, keys: Keys, cu_seqlens_q: Tensor, max_seqlen_q: int, options: Options
) -> tuple[Tensor, Tensor]:
    """out [tokens, heads, v_head_dim] and lse [heads, tokens], +inf for empty rows as in FlashAttention 2."""
    out, lse = paged_attention(
        unit_stride(q),
        keys.k_cache,
        keys.v_cache,
        keys.block_table,
        keys.seq_lens,
        cu_seqlens_q,
        max_seqlen_q=max_seqlen_q,
        scale=options.scale,
        causal=options.causal,
        window=options.sides(),
        softcap=options.softcap,
        alibi_slopes=options.alibi_slopes,
        sinks=None if options.sinks is None else options.sinks.float(),
        k_scale=options.k_scale,
        v_scale=options.v_scale,
        return_lse=True,
    )
    return out, lse.masked_fill(lse == -math.inf, math.inf)


def varlen_keys(
    function: str,
    k: Tensor,
    v: Tensor,
    cu_seqlens_k: Tensor | None,
    max_seqlen_k: int,
    seqused_k: Tensor | None,
    block_table: Tensor | None,
) -> Keys:
    """The keys of a call with ragged sequences, without a copy.

    With a block table, k and v are paged caches. Without one they are [total, kv_heads, head_dim], which is a
    cache of pages of one row, and the table counts the rows of each sequence.
    """
    if cu_seqlens_k is None and (seqused_k is None or block_table is None):
        raise ValueError(f"lamina: {function} needs cu_seqlens_k, or both seqused_k and block_table")
    if seqused_k is not None:
        lengths = seqused_k
    else:
        assert cu_seqlens_k is not None
        lengths = cu_seqlens_k.diff()
    if block_table is None:
        assert cu_seqlens_k is not None
        rows = torch.arange(max_seqlen_k, dtype=torch.int32, device=k.device)
        block_table = cu_seqlens_k[:-1, None] + rows
        k, v = unit_stride(k).unsqueeze(1), unit_stride(v).unsqueeze(1)
    return Keys(k, v, block_table.to(torch.int32), lengths.to(torch.int32))
