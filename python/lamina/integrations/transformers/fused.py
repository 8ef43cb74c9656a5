"""accelerate(model): decoder layers of transformers with merged products."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaDecoderLayer,
    apply_rotary_pos_emb,
    eager_attention_forward,
)
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from lamina.integrations.transformers.cache import PagedKVCache
from lamina.nn.merged import merge_problem, merge_rows
from lamina.nn.packed_linear import PackedLinear

# Decoder layers whose forward this file repeats. Their attentions differ: norms of heads, biases, a window.
KNOWN = (LlamaDecoderLayer, MistralDecoderLayer, Qwen2DecoderLayer, Qwen3DecoderLayer)


@dataclass(frozen=True)
class AccelerateReport:
    """Result of accelerate; print it.

    fused  the number of decoder layers that were changed
    left   name of a decoder layer -> the reason why it was left
    """

    fused: int = 0
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        reasons = Counter(self.left.values())
        return "\n".join(
            [f"fused {self.fused} of {self.fused + len(self.left)} decoder layers"]
            + [f"left {count}: {reason}" for reason, count in reasons.items()]
        )


def accelerate(model: PreTrainedModel) -> AccelerateReport:
    """Makes a model with packed layers faster, in place: fewer and larger calls compute the same function.

    model    of transformers, packed by lamina.compress, load_checkpoint or from_pretrained, whose decoder
             layers are those of Llama, Mistral, Qwen2 or Qwen3. Its attention becomes "lamina"
    returns  AccelerateReport. A decoder layer of another class, or whose layers cannot be merged, is left as
             it is, with a reason
    Raises   TypeError if model is no PreTrainedModel

    q, k and v become one product, and so do gate and up. With a PagedKVCache the keys are rotated while they
    are written. The results are those of the model with the attention "lamina". Nothing
    has gradients afterwards, and the model cannot be saved: save it before.
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"lamina: accelerate: model must be a PreTrainedModel, got {type(model).__name__}")
    model.requires_grad_(False)
    model.set_attn_implementation("lamina")
    left: dict[str, str] = {}
    fused = 0
    found = [(name, module) for name, module in model.named_modules() if _is_decoder_layer(module)]
    for name, layer in found:
        if reason := _problem(layer):
            left[name] = reason
        else:
            _fuse(layer)
            fused += 1
    return AccelerateReport(fused, left)


def _is_decoder_layer(module: nn.Module) -> bool:
    is_fused = isinstance(getattr(module, "self_attn", None), _FusedAttention)
    return type(module).__name__.endswith("DecoderLayer") and not is_fused


def _problem(layer: Any) -> str | None:
    """Why a decoder layer cannot be fused, or None."""
    if type(layer) not in KNOWN:
        allowed = ", ".join(known.__name__ for known in KNOWN)
        return f"{type(layer).__name__} is not one of {allowed}"
    attention, mlp = layer.self_attn, layer.mlp
    for module in (attention, mlp):
        if "forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks:
            return f"{type(module).__name__} has hooks or a forward of its own"
    for names, of in ((("q_proj", "k_proj", "v_proj"), attention), (("gate_proj", "up_proj"), mlp)):
        if problem := merge_problem([getattr(of, name) for name in names]):
            return f"{', '.join(names)}: {problem}"
    for name, single in (("o_proj", attention.o_proj), ("down_proj", mlp.down_proj)):
        if not isinstance(single, PackedLinear):
            return f"{name}: {type(single).__name__} is no packed layer"
    return None


def _fuse(layer: Any) -> None:
    attention, mlp = layer.self_attn, layer.mlp
    attention.qkv_proj = merge_rows_of(attention, "q_proj", "k_proj", "v_proj")
    mlp.gate_up_proj = merge_rows_of(mlp, "gate_proj", "up_proj")
    for name in ("q_norm", "k_norm"):
        setattr(attention, name, getattr(attention, name, None))
    kinds: list[Any] = [type(attention), type(mlp)]
    attention.__class__ = _with(_FusedAttention, kinds[0])
    mlp.__class__ = _with(_FusedMlp, kinds[1])


def merge_rows_of(parent: nn.Module, *names: str) -> PackedLinear:
    """The merged layer of these children, which the parent loses."""
    merged = merge_rows([parent.get_submodule(name) for name in names])  # type: ignore[misc]
    for name in names:
        delattr(parent, name)
    return merged


@cache
def _with(mixin: Any, kind: Any) -> type[Any]:
    """A subclass of the class of a module, so that transformers still finds modules by their class."""
    return type(f"Fused{kind.__name__}", (mixin, kind), {"__module__": __name__})


class _FusedMlp(nn.Module):
    gate_up_proj: PackedLinear
    down_proj: PackedLinear
    act_fn: Callable[[Tensor], Tensor]

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        product: Tensor = self.down_proj(self.act_fn(gate) * up)
        return product


class _FusedAttention(nn.Module):
    config: Any
    layer_idx: int
    head_dim: int
    scaling: float
    qkv_proj: PackedLinear
    o_proj: PackedLinear
    q_norm: Any
    k_norm: Any

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Any = None,
        past_key_values: Any = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        shape = hidden_states.shape[:-1]
        heads = self.qkv_proj(hidden_states).view(*shape, -1, self.head_dim)
        kv_heads: int = self.config.num_key_value_heads
        sizes = [heads.shape[-2] - 2 * kv_heads, kv_heads, kv_heads]
        query, key, value = torch.split(heads, sizes, dim=-2)
        if self.q_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        if isinstance(past_key_values, PagedKVCache):
            query, key, value = past_key_values.rotate_and_write(
                self.layer_idx, query, key, value, position_embeddings
            )
        else:
            query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
            if past_key_values is not None:
                key, value = past_key_values.update(key, value, self.layer_idx)
        attend: Callable[..., tuple[Tensor, Tensor | None]] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        window = getattr(self, "sliding_window", getattr(self.config, "sliding_window", None))
        out, weights = attend(
            self, query, key, value, attention_mask, dropout=0.0, scaling=self.scaling,
            sliding_window=window, **options,
        )  # fmt: skip
        product: Tensor = self.o_proj(out.reshape(*shape, -1))
        return product, weights

    def get_extra_state(self) -> Any:
        """Raises ValueError: a state dict of merged layers fits no model."""
        raise ValueError("lamina: an accelerated model cannot be saved; save it before accelerate(model)")
