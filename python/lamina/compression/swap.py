"""Puts packed layers in the places of linear layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from lamina.compression.candidates import Candidate
from lamina.compression.reasons import extra_attributes
from lamina.compression.schemes import Rounded, Scheme
from lamina.nn.packed_linear import PackedLinear, checked_bias


def replace_layers(
    model: nn.Module,
    packed: Iterable[Candidate],
    schemes: Mapping[str, Scheme],
    rounded: Mapping[str, Rounded],
) -> None:
    """Packs each weight once, and drops the float weight of a layer before the next layer is packed.

    schemes  by the name of each layer
    rounded  the weights that were rounded beforehand, by the first layer that has the weight
    """
    weights: dict[str, PackedLinear] = {}  # by the first layer that has the weight
    biases: dict[str, PackedLinear] = {}  # by the first layer that has the bias
    # load_state_dict cannot write to buffers that are made inside torch.inference_mode().
    with torch.inference_mode(False), torch.no_grad():
        for candidate in packed:
            weight = rounded.get(candidate.weight_owner)
            scheme = schemes[candidate.name]
            module = _convert(candidate, scheme, weight, weights.get(candidate.weight_owner))
            weights.setdefault(candidate.weight_owner, module)
            module.bias = biases.setdefault(candidate.bias_owner, module).bias
            for name, value in extra_attributes(candidate.module).items():
                setattr(module, name, value)
            set_everywhere(model, candidate.names, module)
            candidate.release()


def _convert(
    candidate: Candidate, scheme: Scheme, rounded: Rounded | None, tied: PackedLinear | None
) -> PackedLinear:
    """The packed layer, which shares its weight with `tied`, a layer that has the weight already."""
    linear = candidate.linear
    try:
        if tied is None and not linear.weight.is_meta:
            return scheme.convert(linear, rounded)
        module = scheme.blank(linear).train(linear.training)
        if tied is not None:
            module.share_weight(tied)
        if not linear.weight.is_meta:
            module.bias = checked_bias(type(module).__name__, linear.bias)
        return module
    except (ValueError, RuntimeError) as error:
        raise type(error)(f"compress: layer {candidate.name!r}: {error}") from error


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
