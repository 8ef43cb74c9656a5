"""The formats of the study, as linear layers: those of SmolLM2, and random ones of larger models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import lamina
from bench.models import MODELS
from lamina.cli.demo import llm
from lamina.integrations.transformers import accelerate
from lamina.nn.packed_linear import PackedLinear


class Format(NamedTuple):
    """A format of the linear layers.

    scheme   of lamina.compress, or None for torch's own layers
    dtype    of the activations
    variant  of the demo that has it (lamina.cli.demo.llm.VARIANTS), or None
    """

    scheme: str | None
    dtype: torch.dtype = torch.float32
    variant: str | None = None


FORMATS = {
    "f32": Format(None, variant="torch f32"),
    "bf16": Format(None, torch.bfloat16, "torch bf16"),
    "w8a8": Format("w8a8", variant="w8a8+head"),
    "w4a16": Format("w4a16", variant="w4a16-file"),
    "w4a8": Format("w4a8", variant="w4a8-file"),
    "sparse24-bf16": Format("sparse24-bf16"),
    "sparse24-w8a8": Format("sparse24-w8a8"),
    "sparse24-w4a16": Format("sparse24-w4a16"),
    "sparse24-w4a8": Format("sparse24-w4a8"),
}
IN_FILE = {name: of.variant for name, of in FORMATS.items() if of.variant is not None}
# 2:4 formats of SmolLM2, whose weights are pruned by magnitude alone: its answers have lost their sense.
PRUNED = ("sparse24-w8a8", "sparse24-w4a16", "sparse24-w4a8")
GROUP = 128
PRUNED_GROUP = 32
# [out_features, in_features] of the layers of a decoder layer, or of the head.
LAYERS = {
    "llama3-8b": tuple(MODELS["llama3-8b"].weights().values()),
    "llama3-8b head": (MODELS["llama3-8b"].head(),),
    "llama3-70b": tuple(MODELS["llama3-70b"].weights().values()),
}


Layer = nn.Linear | PackedLinear


class Stack(NamedTuple):
    """Linear layers that are called one after the other, with the same number of rows."""

    layers: Sequence[Layer]
    dtype: torch.dtype

    def inputs(self, rows: int) -> dict[int, Tensor]:
        """Rows for the layers, by their in_features."""
        widths = sorted({layer.in_features for layer in self.layers})
        return {k: torch.randn(rows, k, dtype=self.dtype) for k in widths}

    def __call__(self, inputs: Mapping[int, Tensor]) -> None:
        for layer in self.layers:
            layer(inputs[layer.in_features])

    def wake(self, inputs: Mapping[int, Tensor]) -> None:
        """Calls one layer: threads that will multiply are awake then."""
        self.layers[0](inputs[self.layers[0].in_features])


def stacks_of(shape: str) -> dict[str, Stack]:
    """The stacks by format: of "smollm2", all of its linear layers, else those of LAYERS[shape].

    SmolLM2 has no 2:4 formats here: its layers are those of the demo. The head of a compressed model is w8a8,
    as in the demo.
    """
    if shape == "smollm2":
        return {name: stack_of(model) for name, model in load(tuple(IN_FILE)).items()}
    found: dict[str, Stack] = {}
    for name, of in FORMATS.items():
        if shape.endswith("head") and "w8a8" in found:
            found[name] = found["w8a8"]
        else:
            found[name] = Stack(random_layers(shape, of), of.dtype)
    return found


def load(names: tuple[str, ...]) -> dict[str, Any]:
    """SmolLM2 in some formats, with the attention "lamina"."""
    wanted = {IN_FILE[name]: name for name in names if name not in PRUNED}
    models: dict[str, Any] = {}
    for variant, model, _ in llm.load(list(wanted)):
        model.set_attn_implementation("lamina")
        models[wanted[variant]] = model.requires_grad_(False)
    for name in [name for name in names if name in PRUNED]:
        (_, model, _), *_rest = llm.load([llm.BASELINE])
        group = PRUNED_GROUP if "w4" in name else None
        lamina.compress(model, name, group=group, head="w8a8", progress=False)
        accelerate(model)
        models[name] = model.requires_grad_(False)
    return models


def stack_of(model: Any) -> Stack:
    """The linear layers of a model, in its order."""
    layers = [m for m in model.modules() if isinstance(m, Layer)]
    return Stack(layers, model.dtype)


def random_layers(shape: str, of: Format) -> list[Layer]:
    """Layers with random weights."""
    some = torch.randn(64, max(k for _, k in LAYERS[shape]), generator=torch.Generator().manual_seed(0))
    found: list[Layer] = []
    for n, k in LAYERS[shape]:
        linear = nn.Linear(k, n, bias=False, device="meta").to_empty(device="cpu").requires_grad_(False)
        for begin in range(0, n, 64):  # few random rows, many times: the generator is slow
            part = linear.weight[begin : begin + 64]
            part.copy_(some[: len(part), :k])
        layer = nn.Sequential(linear.to(of.dtype))
        if of.scheme is not None:
            group = GROUP if "w4" in of.scheme else None
            lamina.compress(layer, of.scheme, group=group)
        made = layer[0]
        assert isinstance(made, Layer)
        found.append(made)
    return found
