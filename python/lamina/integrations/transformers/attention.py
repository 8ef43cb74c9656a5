"""The attention function and the mask function that transformers calls for attn_implementation="lamina"."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import masking_utils

from lamina.integrations._attention import refuse, refuse_gradients, unit_stride
from lamina.integrations.transformers.cache import PagedKVCache, PagedStates
from lamina.kv import Batch
from lamina.ops import TreeMask, paged_attention

NO_LIMIT = -1
FUNCTION = "transformers attention"


class Selection(NamedTuple):
    """The keys and queries of a batch that are not padding.

    order    [batch, most keys]  int32: the places of the keys of each row, in order
    lengths  [batch]  int32: how many there are
    queries  [batch * q_length]  bool, or None where all queries count
    """

    order: Tensor
    lengths: Tensor
    queries: Tensor | None


@dataclass(frozen=True)
class Mask:
    """Which keys a query sees, in place of a mask tensor. Attention layers get it as `attention_mask`.

    causal  whether keys after the query are hidden; the last query and the last key have the same position
    window  how many keys before and after the query are visible; -1 means no limit
    valid   [batch, keys]  bool: False for padding and for places of a cache not yet written. None: all True
    queries  the places of the queries of each row of the batch among the keys; only their number counts if
             the mask is not causal
    """

    causal: bool
    window: tuple[int, int]
    valid: Tensor | None
    queries: range

    @cached_property
    def selection(self) -> Selection | None:
        """The same for all layers of a model; None if every key is valid."""
        if self.valid is None:
            return None
        lengths = self.valid.sum(1, dtype=torch.int32)
        most = int(lengths.max()) if lengths.numel() else 0
        order = self.valid.logical_not().to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
        queries = None
        if self.causal:
            queries = self.valid[:, self.queries.start : self.queries.stop].flatten()
            queries = None if bool(queries.all()) else queries
        return Selection(order.to(torch.int32), lengths, queries)


def make_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = masking_utils.causal_mask_function,
    attention_mask: Tensor | None = None,
    device: torch.device | str = "cpu",
    **_: Any,
) -> Mask:
    """The mask of a batch, with the arguments that transformers gives to a mask function.

    attention_mask  [batch, seen tokens]  bool, False for padding
    Raises          NotImplementedError for a mask other than causal, bidirectional or one of these with a
                    sliding window, such as packed sequences, chunks, or blocks of image tokens
    """
    causal, window = _pattern(mask_function)
    valid = None
    if attention_mask is not None:
        given = attention_mask[:, kv_offset : kv_offset + kv_length]
        valid = torch.nn.functional.pad(given, (0, kv_length - given.shape[1]), value=False)
    first = int(q_offset) - kv_offset
    queries = range(first, first + q_length)
    if causal and queries.stop < kv_length:  # a static cache has places that are not written yet
        is_written = (torch.arange(kv_length, device=device) < queries.stop).expand(batch_size, kv_length)
        valid = is_written if valid is None else valid & is_written
    if valid is not None and bool(valid.all()):
        valid = None
    return Mask(causal, window, valid, queries)


def _pattern(mask_function: Callable[..., Any]) -> tuple[bool, tuple[int, int]]:
    """Whether a mask function of transformers is causal, and its window.

    The functions are closures, which do not say what they are: their names and the variables they close over
    do. A function that is not known is an error, because ignoring it would give wrong results silently.
    """
    if mask_function is masking_utils.causal_mask_function:
        return True, (NO_LIMIT, NO_LIMIT)
    if mask_function is masking_utils.bidirectional_mask_function:
        return False, (NO_LIMIT, NO_LIMIT)
    name = getattr(mask_function, "__qualname__", "")
    held = inspect.getclosurevars(mask_function).nonlocals
    if name.startswith("sliding_window_overlay."):
        return False, (held["sliding_window"] - 1, NO_LIMIT)
    if name.startswith("sliding_window_bidirectional_overlay."):
        return False, (held["sliding_window"], held["sliding_window"])
    if name.startswith("and_masks."):
        patterns = [_pattern(part) for part in held["mask_functions"]]
        sides = [
            [size for size in side if size != NO_LIMIT]
            for side in zip(*(p[1] for p in patterns), strict=True)
        ]
        left, right = (min(side, default=NO_LIMIT) for side in sides)
        return any(causal for causal, _ in patterns), (left, right)
    raise NotImplementedError(
        f"lamina: {FUNCTION} does not support the mask {name or mask_function!r}, only causal and "
        'bidirectional masks, also with a sliding window; attn_implementation="sdpa" may support it'
    )


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Mask | Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """paged_attention with the arguments that transformers gives to an attention function.

    query           [batch, heads, q_length, head_dim]  f32 | f16 | bf16
    key, value      [batch, kv_heads, keys, head_dim], read in place, or what PagedKVCache returns
    attention_mask  from make_mask; None: no padding, causal if is_causal, or the module's attribute, says so
    sliding_window  used only where attention_mask is None; a mask has its own window
    s_aux           [heads]: attention sinks
    returns         [batch, q_length, heads, v_head_dim] of the dtype of query, and None for the weights. Rows
                    of padding are 0 or what they see of the keys
    Raises          NotImplementedError that names the argument for dropout, a mask tensor, output_attentions
                    and position_bias; RuntimeError if an input requires grad; what lamina.paged_attention
                    raises
    """
    refuse(
        FUNCTION,
        dropout=dropout > 0,
        output_attentions=bool(kwargs.get("output_attentions")),
        position_bias=kwargs.get("position_bias") is not None,
        attention_mask=isinstance(attention_mask, Tensor),
    )
    refuse_gradients(FUNCTION, query=query, key=key, value=value)
    batch, _, queries, _ = query.shape
    rows = unit_stride(query.transpose(1, 2).flatten(0, 1))
    mask = as_mask(attention_mask, module, queries, sliding_window, is_causal)
    sinks = None if s_aux is None else s_aux.float()
    options = {"scale": scaling, "softcap": softcap or 0.0, "sinks": sinks}
    out = attend(rows, batch, mask, partial(_keys, key, value), **options)
    return out.view(batch, queries, *out.shape[1:]), None


def as_mask(
    given: Any,
    module: torch.nn.Module,
    queries: int,
    sliding_window: int | None,
    is_causal: bool | None = None,
) -> Mask:
    """The mask of make_mask, or the one that its absence means."""
    if isinstance(given, Mask):
        return given
    causal = queries > 1 and bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    left = NO_LIMIT if sliding_window is None else sliding_window - 1
    return Mask(causal, (left, NO_LIMIT if causal else left), None, range(queries))


def attend(
    rows: Tensor, batch: int, mask: Mask, find_keys: Callable[[Selection | None], Keys], **options: Any
) -> Tensor:
    """paged_attention of rows [batch * queries, heads, head_dim] on find_keys(the valid keys)."""
    chosen = mask.selection
    is_query = None if chosen is None else chosen.queries
    keys = find_keys(chosen)
    queries = len(rows) // batch
    total = len(rows)
    if is_query is not None:
        rows, counts = rows[is_query], is_query.view(batch, queries).sum(1)
        offsets = torch.nn.functional.pad(counts.cumsum(0, dtype=torch.int32), (1, 0))
    elif keys.batch is not None:
        offsets, queries = keys.batch.cu_seqlens_q, keys.batch.max_seqlen_q
    else:
        offsets = torch.arange(batch + 1, dtype=torch.int32, device=rows.device) * queries
    if keys.tree is not None:
        options |= keys.tree._asdict()
    out = paged_attention(
        rows, keys.k_cache, keys.v_cache, keys.block_table, keys.seq_lens, offsets, max_seqlen_q=queries,
        causal=mask.causal, window=mask.window, k_scale=keys.k_scale, v_scale=keys.v_scale, **options,
    )  # fmt: skip
    assert isinstance(out, Tensor)
    if is_query is None:
        return out
    all_rows = out.new_zeros(total, *out.shape[1:])
    all_rows[is_query] = out
    return all_rows


class Keys(NamedTuple):
    """A cache as paged_attention takes it."""

    k_cache: Tensor
    v_cache: Tensor
    block_table: Tensor
    seq_lens: Tensor
    k_scale: Tensor | None = None
    v_scale: Tensor | None = None
    batch: Batch | None = None  # without padding, if it is known
    tree: TreeMask | None = None  # of the new tokens, with `batch`


def _keys(key: Tensor, value: Tensor, chosen: Selection | None) -> Keys:
    """The keys of a call as a paged cache, without a copy."""
    if isinstance(key, PagedStates) and isinstance(value, PagedStates):
        return paged_keys(key.cache, key.layer, chosen)
    batch, _, length, _ = key.shape
    first = torch.arange(batch, dtype=torch.int32, device=key.device)[:, None]
    if chosen is None:  # a page for each row of the batch
        lengths = torch.full((batch,), length, dtype=torch.int32, device=key.device)
        return Keys(key.transpose(1, 2), value.transpose(1, 2), first, lengths)
    k_step, v_step = _step(key), _step(value)
    if k_step is None or k_step != v_step:
        key, value, k_step = key.contiguous(), value.contiguous(), key.shape[1] * length
    return Keys(_slots(key, k_step), _slots(value, k_step), chosen.order + first * k_step, chosen.lengths)


def _step(x: Tensor) -> int | None:
    """The distance of neighbouring rows of the batch of x [batch, heads, length, dim], in steps of length."""
    if x.shape[0] == 1 or x.shape[2] == 1:
        return None
    return None if x.stride(0) % x.stride(2) else x.stride(0) // x.stride(2)


def _slots(x: Tensor, step: int) -> Tensor:
    """x [batch, heads, length, dim] as pages of one slot: slot s of batch row b is page b * step + s."""
    batch, heads, length, dim = x.shape
    stride = x.stride(2)
    return x.as_strided(
        ((batch - 1) * step + length, 1, heads, dim), (stride, stride, x.stride(1), x.stride(3))
    )


def paged_keys(cache: PagedKVCache, layer: int, chosen: Selection | None) -> Keys:
    """The keys of a layer of a cache, without a copy."""
    pool = cache.pool
    k_scale, v_scale = (None if of is None else of[layer] for of in (pool.k_scale, pool.v_scale))
    if chosen is None:
        batch = cache.tables
        return Keys(
            pool.k[layer], pool.v[layer], batch.block_table, batch.seq_lens, k_scale, v_scale, batch,
            cache.tree,
        )  # fmt: skip
    blocks = cache.tables.block_table.gather(1, (chosen.order // pool.page).long())
    table = blocks * pool.page + chosen.order % pool.page
    k_cache, v_cache = (pages[layer].flatten(0, 1).unsqueeze(1) for pages in (pool.k, pool.v))
    return Keys(k_cache, v_cache, table, chosen.lengths, _slot_scales(k_scale), _slot_scales(v_scale))


def _slot_scales(scale: Tensor | None) -> Tensor | None:
    """Scales [pages, page, kv_heads] for pages of one slot."""
    return scale if scale is None or scale.numel() == 1 else scale.flatten(0, 1).unsqueeze(1)
