"""Continuous batching of transformers (model.generate_batch) over paged_attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.generation.continuous_batching import PagedAttentionCache

from lamina.integrations._attention import refuse, unit_stride
from lamina.integrations.transformers.attention import FUNCTION, NO_LIMIT, Mask, attention, make_mask
from lamina.ops import append_paged_kv, paged_attention

NAME = "lamina_flash"


def use_continuous_batching(model: PreTrainedModel) -> None:
    """Lets model.generate_batch and its kin call paged_attention. Other calls of the model work as before.

    transformers admits to continuous batching "sdpa", "paged|eager" and attentions with "flash" in their
    name. For such a name set_attn_implementation would load a package, so this function sets the name in the
    config.
    """
    model.config._attn_implementation = NAME


def make_batched_mask(*given: Any, **options: Any) -> Mask | None:
    """make_mask; None for a pattern that it does not support, such as the requests of a batch.

    batched_attention knows where requests begin, and refuses None in other calls.
    """
    try:
        return make_mask(*given, **options)
    except NotImplementedError:
        return None


def batched_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    cache: PagedAttentionCache | None = None,
    **batch: Any,
) -> tuple[Tensor, None]:
    """The attention "lamina"; with `cache` that of a batch whose requests stand one after the other.

    query       [1, heads, tokens, head_dim]
    key, value  [1, kv_heads, tokens, head_dim]: written to the pages of `cache` and read where they lie.
                Layers with a sliding window have rings for pages, and read a copy of their windows
    batch       cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k, read_index and write_index
    returns     [1, tokens, heads, head_dim], and None for the weights
    Raises      as the attention "lamina"
    """
    if cache is None:
        refuse(FUNCTION, attention_mask=attention_mask is None)
        return attention(
            module, query, key, value, attention_mask, scaling=scaling, sliding_window=sliding_window,
            softcap=softcap, s_aux=s_aux, **batch,
        )  # fmt: skip
    layer = module.layer_idx
    allocator = cache.layer_to_allocator[layer]
    offsets = batch["cu_seq_lens_k"][allocator.layer_type]
    if allocator.supports_block_table:
        k_cache, v_cache = allocator.get_cache_for_block_table(layer)
        slots = batch["write_index"][allocator.index]
        k, v = (unit_stride(x[0].transpose(0, 1)) for x in (key, value))
        append_paged_kv(k, v, k_cache, v_cache, slots)
        table = _table(cache, batch, allocator)
    else:
        k, v = cache.update(key, value, layer, dict(batch))
        k_cache, v_cache = (x.transpose(1, 2).view(-1, 1, *x.shape[1::2]) for x in (k, v))
        most = batch["max_length_k"][allocator.layer_type]
        table = offsets[:-1, None] + torch.arange(most, dtype=torch.int32, device=offsets.device)
    out = paged_attention(
        unit_stride(query[0].transpose(0, 1)), k_cache, v_cache, table, offsets.diff(),
        batch["cu_seq_lens_q"], max_seqlen_q=batch["max_length_q"], scale=scaling,
        window=(NO_LIMIT if sliding_window is None else sliding_window - 1, NO_LIMIT),
        softcap=softcap or 0.0, sinks=None if s_aux is None else s_aux.float(),
    )  # fmt: skip
    assert isinstance(out, Tensor)
    return out[None], None


def _table(cache: Any, batch: dict[str, Any], allocator: Any) -> Tensor:
    """The block table [requests, most blocks] of a batch, made once for all layers.

    transformers lists the slot of each key of each request; every page begins at a multiple of its size.
    """
    lengths = batch["cu_seq_lens_k"]  # made anew for each batch
    offsets, page = lengths[allocator.layer_type], allocator.tokens_per_page
    made: tuple[Any, Tensor] = getattr(cache, "lamina_table", (None, offsets))
    if made[0] is lengths:
        return made[1]
    slots = batch["read_index"][allocator.index]
    if not len(slots):  # no request has keys of an earlier batch
        slots = batch["write_index"][allocator.index]
    most = -(-batch["max_length_k"][allocator.layer_type] // page)
    first = offsets[:-1, None] + torch.arange(most, device=offsets.device) * page
    table: Tensor = (slots[first.clamp(max=len(slots) - 1)] // page).to(torch.int32)
    cache.lamina_table = lengths, table
    return table
