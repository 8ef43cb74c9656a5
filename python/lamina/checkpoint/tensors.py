"""The tensors of a model, named as in a state dict, and the places that hold them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Slot(NamedTuple):
    """A place for a tensor in a model. A module with several names has a slot for each of them."""

    name: str
    module: nn.Module
    attribute: str
    tensor: Tensor
    is_parameter: bool
    is_persistent: bool  # whether the tensor is in the state dict

    def put(self, tensor: Tensor) -> None:
        """Puts a tensor here; it becomes a parameter if this place holds a parameter."""
        if not self.is_parameter:
            self.module._buffers[self.attribute] = (
                tensor.detach() if isinstance(tensor, nn.Parameter) else tensor
            )
        elif isinstance(tensor, nn.Parameter):
            self.module._parameters[self.attribute] = tensor
        else:
            parameter = nn.Parameter(tensor, requires_grad=self.tensor.requires_grad)
            self.module._parameters[self.attribute] = parameter


def bare(model: nn.Module) -> nn.Module:
    """The model itself; if torch.compile returned `model`, the model inside."""
    inner = model._modules.get("_orig_mod")
    return model if inner is None else inner


def slots(model: nn.Module) -> Iterator[Slot]:
    """All parameters and buffers, under all their names, in the order of a state dict."""
    for prefix, module in model.named_modules(remove_duplicate=False):
        for tensors in (module._parameters, module._buffers):
            for attribute, tensor in tensors.items():
                if tensor is not None:
                    is_parameter = tensors is module._parameters
                    is_persistent = is_parameter or attribute not in module._non_persistent_buffers_set
                    name = f"{prefix}.{attribute}" if prefix else attribute
                    yield Slot(name, module, attribute, tensor, is_parameter, is_persistent)


def compute_buffers(model: nn.Module) -> None:
    """Computes buffers with persistent=False that are on the meta device, of a model of transformers.

    Such a model has _init_weights(module), which also writes constants: the frequencies of rotary embeddings.
    A buffer that stays without values, or a module that has parameters, is left on the meta device.
    """
    computed: Any = getattr(model, "_init_weights", None)
    for module in model.modules():
        held = {name: t for name, t in module._buffers.items() if t is not None and t.is_meta}
        is_constant = held.keys() <= module._non_persistent_buffers_set and not [*module.parameters()]
        if computed is None or not held or not is_constant:
            continue
        for name, buffer in held.items():
            module._buffers[name] = torch.full_like(buffer, torch.nan, device="cpu")
        computed(module)
        for name, buffer in held.items():
            if bool(module._buffers[name].isnan().any()):  # type: ignore[union-attr]
                module._buffers[name] = buffer
