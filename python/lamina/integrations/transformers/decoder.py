"""Decoder layers whose products share their inputs and add the residuals, for accelerate.

A layer is a chain on rows [tokens, features]: norm, product, attention, product + residual, norm, product,
gate, product + residual. Norms and gates write int8 where the product after them multiplies int8.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, eager_attention_forward

from lamina.integrations.transformers.attention import as_mask, attend, paged_keys
from lamina.integrations.transformers.cache import PagedKVCache
from lamina.nn import RMSNorm
from lamina.nn.packed_linear import TOKENWISE, Activations, PackedLinear
from lamina.ops import DecoderLayer, silu_mul, silu_mul_int8
from lamina.ops.decoder_layers import arguments


class FusedDecoderLayer(nn.Module):
    """The layer of Llama: x + attention(norm(x)), and then that + mlp(norm(that))."""

    input_layernorm: RMSNorm
    post_attention_layernorm: RMSNorm
    self_attn: FusedAttention
    mlp: FusedMlp

    def forward(self, hidden_states: Tensor, **options: Any) -> Tensor:
        if (whole := in_one_call([self], hidden_states, **options)) is not None:
            return whole
        attention, mlp = self.self_attn, self.mlp
        x = hidden_states.flatten(0, 1)
        a = self.input_layernorm.input_of(attention.qkv_proj, x)
        x, _ = attention(a, x, like=hidden_states, **options)
        a = self.post_attention_layernorm.input_of(mlp.gate_up_proj, x)
        out: Tensor = mlp(a, x, like=hidden_states)
        return out.view(hidden_states.shape)

    @property
    def parts(self) -> DecoderLayer | None:
        """This layer as lamina.ops.decoder_layers takes it, or None where it has another form."""
        attention, mlp = self.self_attn, self.mlp
        if attention.q_norm is not None or not mlp.is_silu:
            return None
        qkv, o = attention.qkv_proj.operands, attention.o_proj.operands
        gate_up, down = mlp.gate_up_proj.operands, mlp.down_proj.operands
        if qkv is None or o is None or gate_up is None or down is None:
            return None
        first, second = self.input_layernorm, self.post_attention_layernorm
        return DecoderLayer(
            (first.weight, second.weight), (first.variance_epsilon, second.variance_epsilon),
            (qkv, o, gate_up, down),
        )  # fmt: skip


def in_one_call(
    layers: Sequence[FusedDecoderLayer],
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    attention_mask: Any = None,
    past_key_values: Any = None,
    **_: Any,
) -> Tensor | None:
    """The layers by lamina.ops.decoder_layers, or None where they, the cache or the mask have another form.

    All layers have the heads, the scale, the window and the softcap of the first.
    """
    attention, cache, x = layers[0].self_attn, past_key_values, hidden_states.flatten(0, 1)
    if not (isinstance(cache, PagedKVCache) and cache.has_pages and x.device.type == "cpu"):
        return None
    if attention.config._attn_implementation != "lamina" or (x.requires_grad and torch.is_grad_enabled()):
        return None
    parts = [part for layer in layers if (part := layer.parts) is not None]
    batch, count, _features = hidden_states.shape
    mask = as_mask(attention_mask, attention, count, attention.window)
    if len(parts) < len(layers) or mask.selection is not None:
        return None
    at = [layer.self_attn.layer_idx for layer in layers]
    slots, *_same = (cache.grow(layer, count, batch) for layer in at)
    pool, tables, rotary = cache.pool, cache.tables, cache.rotary(position_embeddings, batch)
    tree = {} if cache.tree is None else cache.tree._asdict()
    out: Tensor = torch.ops.lamina.decoder_layers(
        x, *arguments(parts), *([] if of is None else [of[i] for i in at] for of in pool.lists), slots,
        tables.block_table, tables.seq_lens, tables.cu_seqlens_q, rotary["cos"], rotary["sin"],
        rotary["positions"], heads=attention.heads[0], max_seqlen_q=tables.max_seqlen_q,
        scale=attention.scaling, causal=mask.causal, window_left=mask.window[0],
        window_right=mask.window[1], softcap=attention.softcap or 0.0, **tree,
    )  # fmt: skip
    return out.view(hidden_states.shape)


class FusedLayers(nn.ModuleList):
    """The decoder layers of a model, which its forward calls at once where they can be one call.

    Their order, names and indices are those of any ModuleList. The slice of all layers, which transformers
    iterates over, has one item, which calls all of them.
    """

    def __getitem__(self, index: Any) -> Any:
        if index == slice(None, len(self)):
            return [self._call]
        return super().__getitem__(index)

    def _call(self, hidden_states: Tensor, **options: Any) -> Tensor:
        layers: list[Any] = list(self)
        out = None
        if not any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers):
            out = in_one_call(layers, hidden_states, **options)
        if out is not None:
            return out
        for layer in layers:
            hidden_states = layer(hidden_states, **options)
        return hidden_states


class FusedSandwichLayer(nn.Module):
    """The layer of Gemma 2 and 3, which also has norms between the products and the residuals."""

    input_layernorm: RMSNorm
    post_attention_layernorm: RMSNorm
    pre_feedforward_layernorm: RMSNorm
    post_feedforward_layernorm: RMSNorm
    self_attn: FusedAttention
    mlp: FusedMlp

    def forward(self, hidden_states: Tensor, **options: Any) -> Tensor:
        attention, mlp = self.self_attn, self.mlp
        x = hidden_states.flatten(0, 1)
        a = self.input_layernorm.input_of(attention.qkv_proj, x)
        attended, _ = attention(a, None, like=hidden_states, **options)
        x = x + self.post_attention_layernorm(attended)
        a = self.pre_feedforward_layernorm.input_of(mlp.gate_up_proj, x)
        out: Tensor = x + self.post_feedforward_layernorm(mlp(a, None, like=hidden_states))
        return out.view(hidden_states.shape)


class FusedMlp(nn.Module):
    """down(act(gate) * up) + residual, with gate and up from one product."""

    gate_up_proj: PackedLinear
    down_proj: PackedLinear
    act_fn: Callable[[Tensor], Tensor]
    is_silu: bool

    def forward(self, a: Activations, residual: Tensor | None, like: Tensor) -> Tensor:
        gate_up = self.gate_up_proj.multiply(a, like.dtype)
        down = self.down_proj
        if not self.is_silu:
            gate, up = gate_up.chunk(2, dim=-1)
            hidden: Activations = self.act_fn(gate) * up
        elif down.quantizes in TOKENWISE:
            hidden = silu_mul_int8(gate_up, symmetric=down.quantizes == "symmetric")
        else:
            hidden = silu_mul(gate_up)
        return down.multiply(hidden, like.dtype, residual)


class FusedAttention(nn.Module):
    """o(attention(q, k, v)) + residual, with q, k and v from one product."""

    config: Any
    layer_idx: int
    head_dim: int
    scaling: float
    qkv_proj: PackedLinear
    o_proj: PackedLinear
    q_norm: Any
    k_norm: Any
    heads: list[int]  # of queries, keys and values
    window: int | None
    softcap: float | None

    def forward(
        self,
        a: Activations,
        residual: Tensor | None,
        like: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Any = None,
        past_key_values: Any = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Rows of activations, of which `like` [batch, tokens, features] has the extents and the dtype."""
        rows = self.qkv_proj.multiply(a, like.dtype)
        query, key, value = torch.split(rows.view(len(rows), -1, self.head_dim), self.heads, dim=1)
        if self.q_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        batch, queries, _ = like.shape
        cache, weights = past_key_values, None
        if isinstance(cache, PagedKVCache) and self.config._attn_implementation == "lamina":
            cache.write_rotated(self.layer_idx, query, key, value, position_embeddings)
            mask = as_mask(attention_mask, self, queries, self.window)
            keys = partial(paged_keys, cache, self.layer_idx)
            out = attend(query, batch, mask, keys, scale=self.scaling, softcap=self.softcap or 0.0)
        else:
            query, key, value = (
                x.view(batch, queries, *x.shape[1:]).transpose(1, 2) for x in (query, key, value)
            )
            query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
            if cache is not None:
                key, value = cache.update(key, value, self.layer_idx)
            attention: Callable[..., tuple[Tensor, Tensor | None]] = ALL_ATTENTION_FUNCTIONS.get_interface(
                self.config._attn_implementation, eager_attention_forward
            )
            out, weights = attention(
                self, query, key, value, attention_mask, dropout=0.0, scaling=self.scaling,
                sliding_window=self.window, softcap=self.softcap, **options,
            )  # fmt: skip
        return self.o_proj.multiply(out.reshape(batch * queries, -1), like.dtype, residual), weights

    def get_extra_state(self) -> Any:
        """Raises ValueError: a state dict of merged layers fits no model."""
        raise ValueError("lamina: an accelerated model cannot be saved; save it before accelerate(model)")
