"""Decoder layers whose products share their inputs and add the residuals, for accelerate.

A layer is a chain on rows [tokens, features]: norm, product, attention, product + residual, norm, product,
gate, product + residual. Norms and gates write int8 where the product after them multiplies int8.
"""

from __future__ import annotations

from collections.abc import Callable
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
from lamina.ops import silu_mul, silu_mul_int8


class FusedDecoderLayer(nn.Module):
    """The layer of Llama: x + attention(norm(x)), and then that + mlp(norm(that))."""

    input_layernorm: RMSNorm
    post_attention_layernorm: RMSNorm
    self_attn: FusedAttention
    mlp: FusedMlp

    def forward(self, hidden_states: Tensor, **options: Any) -> Tensor:
        attention, mlp = self.self_attn, self.mlp
        x = hidden_states.flatten(0, 1)
        a = self.input_layernorm.input_of(attention.qkv_proj, x)
        x, _ = attention(a, x, like=hidden_states, **options)
        a = self.post_attention_layernorm.input_of(mlp.gate_up_proj, x)
        out: Tensor = mlp(a, x, like=hidden_states)
        return out.view(hidden_states.shape)


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
