"""accelerate(model): decoder layers of transformers become those of decoder.py."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.activations import SiLUActivation
from transformers.models.gemma.modeling_gemma import GemmaDecoderLayer
from transformers.models.gemma2.modeling_gemma2 import Gemma2DecoderLayer
from transformers.models.gemma3.modeling_gemma3 import Gemma3DecoderLayer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from lamina.integrations.transformers.decoder import (
    FusedAttention,
    FusedDecoderLayer,
    FusedLayers,
    FusedMlp,
    FusedSandwichLayer,
)
from lamina.nn import RMSNorm
from lamina.nn.merged import merge_problem, merge_rows
from lamina.nn.packed_linear import PackedLinear

# Decoder layers, and the class with their forward. Their attentions differ: norms of heads, biases, a window.
KNOWN: dict[type[nn.Module], type[nn.Module]] = {
    LlamaDecoderLayer: FusedDecoderLayer,
    MistralDecoderLayer: FusedDecoderLayer,
    Qwen2DecoderLayer: FusedDecoderLayer,
    Qwen3DecoderLayer: FusedDecoderLayer,
    GemmaDecoderLayer: FusedDecoderLayer,
    Gemma2DecoderLayer: FusedSandwichLayer,
    Gemma3DecoderLayer: FusedSandwichLayer,
}


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
             layers are those of Llama, Mistral, Qwen2, Qwen3 or Gemma 1 to 3 (in f32). Its attention becomes
             "lamina"
    returns  AccelerateReport. A decoder layer of another class, or whose layers cannot be merged, is left as
             it is, with a reason
    Raises   TypeError if model is no PreTrainedModel

    q, k and v become one product, and so do gate and up. RMS norms, also the one behind the layers, and
    silu(gate) * up are lamina's ops, which write int8 for products that multiply int8. The products before a
    residual add it. With a PagedKVCache the keys are rotated while they are written. In f32 the result has
    the bits of the packed layers called one by one with lamina.rms_norm, lamina.silu_mul and the attention
    "lamina". Nothing has gradients afterwards, torch.autocast has no effect on the layers, and the model
    cannot be saved: save it before.
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
            continue
        try:
            norms = {at: RMSNorm.from_module(norm) for at, norm in _norms(layer).items()}
        except ValueError as error:
            left[name] = str(error)
            continue
        _fuse(layer, norms)
        fused += 1
    for module in list(model.modules()):
        layers = getattr(module, "layers", None)
        if type(layers) is nn.ModuleList and any(_is_fused(layer) for layer in layers):
            _fuse_around(module, layers)
    return AccelerateReport(fused, left)


def _are_alike(layers: list[Any]) -> bool:
    """Whether these are layers of Llama whose attention has the same options, and so the same mask."""
    if not all(isinstance(layer, FusedDecoderLayer) for layer in layers):
        return False
    first = layers[0].self_attn
    return all(
        getattr(layer.self_attn, name) == getattr(first, name)
        for layer in layers
        for name in ("heads", "scaling", "window", "softcap")
    )


def _fuse_around(parent: Any, layers: nn.ModuleList) -> None:
    """Makes one call of the layers, if they allow it, and replaces the norm behind them, if it is known."""
    if _are_alike(list(layers)):
        layers.__class__ = FusedLayers
    norm = getattr(parent, "norm", None)
    if isinstance(norm, nn.Module) and not _is_changed(norm):
        with suppress(ValueError):
            parent.norm = RMSNorm.from_module(norm)


def _is_changed(module: nn.Module) -> bool:
    """Whether a module has hooks or a forward of its own, which another module would not call."""
    return bool("forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks)


def _is_fused(module: nn.Module) -> bool:
    return isinstance(getattr(module, "self_attn", None), FusedAttention)


def _is_decoder_layer(module: nn.Module) -> bool:
    return type(module).__name__.endswith("DecoderLayer") and not _is_fused(module)


def unknown_layer(layer: nn.Module) -> str | None:
    """Why a decoder layer is none of those whose forward is known, or None."""
    if type(layer) in KNOWN:
        return None
    return f"{type(layer).__name__} is not one of {', '.join(known.__name__ for known in KNOWN)}"


def _problem(layer: Any) -> str | None:
    """Why a decoder layer cannot be fused, or None."""
    if reason := unknown_layer(layer):
        return reason
    attention, mlp = layer.self_attn, layer.mlp
    for module in (layer, attention, mlp, *_norms(layer).values()):
        if _is_changed(module):
            return f"{type(module).__name__} has hooks or a forward of its own"
    for names, of in ((("q_proj", "k_proj", "v_proj"), attention), (("gate_proj", "up_proj"), mlp)):
        if problem := merge_problem([getattr(of, name) for name in names]):
            return f"{', '.join(names)}: {problem}"
    for name, single in (("o_proj", attention.o_proj), ("down_proj", mlp.down_proj)):
        if not isinstance(single, PackedLinear):
            return f"{name}: {type(single).__name__} is no packed layer"
    return None


def _norms(layer: nn.Module) -> dict[str, nn.Module]:
    """The norms of a decoder layer and of its attention, by their names in the layer."""
    return {name: module for name, module in layer.named_modules() if name.endswith("norm")}


def _fuse(layer: Any, norms: dict[str, RMSNorm]) -> None:
    attention, mlp = layer.self_attn, layer.mlp
    attention.qkv_proj = merge_rows_of(attention, "q_proj", "k_proj", "v_proj")
    mlp.gate_up_proj = merge_rows_of(mlp, "gate_proj", "up_proj")
    mlp.is_silu = isinstance(mlp.act_fn, nn.SiLU | SiLUActivation)
    for name, norm in norms.items():
        layer.set_submodule(name, norm)
    for name in ("q_norm", "k_norm"):
        setattr(attention, name, getattr(attention, name, None))
    config, kv_heads = attention.config, attention.config.num_key_value_heads
    attention.heads = [config.num_attention_heads, kv_heads, kv_heads]
    attention.window = getattr(attention, "sliding_window", getattr(config, "sliding_window", None))
    attention.softcap = getattr(attention, "attn_logit_softcapping", None)
    for module, mixin in ((attention, FusedAttention), (mlp, FusedMlp), (layer, KNOWN[type(layer)])):
        kinds: list[Any] = [mixin, type(module)]
        module.__class__ = _with(*kinds)


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
