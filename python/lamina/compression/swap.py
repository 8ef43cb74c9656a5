"""Puts packed layers in the places of linear layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from lamina.compression.candidates import Candidate
from lamina.compression.reasons import extra_attributes
from lamina.compression.schemes import Scheme
from lamina.nn.packed_linear import PackedLinear
from lamina.quant import QuantizedInt4


def replace_layers(
    model: nn.Module, packed: Iterable[Candidate], scheme: Scheme, quantized: Mapping[str, QuantizedInt4]
) -> None:
    """Packs one layer after the other, and drops its float weight before the next one."""
    weights: dict[str, nn.Module] = {}  # by the first layer that has the weight
    biases: dict[str, nn.Module] = {}  # by the first layer that has the bias
    # load_state_dict cannot write to buffers that are made inside torch.inference_mode().
    with torch.inference_mode(False), torch.no_grad():
        for candidate in packed:
            module = _convert(candidate, scheme, quantized.get(candidate.weight_owner))
            _share(module, weights.setdefault(candidate.weight_owner, module), scheme.weight_buffers)
            _share(module, biases.setdefault(candidate.bias_owner, module), ("bias",))
            for name, value in extra_attributes(candidate.module).items():
                setattr(module, name, value)
            set_everywhere(model, candidate.names, module)
            candidate.release()


def _convert(candidate: Candidate, scheme: Scheme, quantized: QuantizedInt4 | None) -> nn.Module:
    linear = candidate.linear
    try:
        if linear.weight.is_meta:
            return scheme.blank(linear).train(linear.training)
        return scheme.convert(linear, quantized)
    except (ValueError, RuntimeError) as error:
        raise type(error)(f"compress: layer {candidate.name!r}: {error}") from error


def _share(module: nn.Module, first: nn.Module, buffers: Sequence[str]) -> None:
    for name in buffers:
        setattr(module, name, getattr(first, name))


def set_everywhere(model: nn.Module, names: Sequence[str], module: nn.Module) -> None:
    """Puts a module into a model under each of these names."""
    for name in names:
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, module)


def leave_fused_paths(model: nn.Module) -> None:
    """Keeps torch's own encoder off its fused inference path, which reads the float weights of its layers."""
    packed = PackedLinear
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and (
            isinstance(module.linear1, packed) or isinstance(module.linear2, packed)
        ):
            module.activation_relu_or_gelu = 0
        if isinstance(module, nn.TransformerEncoder) and any(isinstance(m, packed) for m in module.modules()):
            module.use_nested_tensor = False
