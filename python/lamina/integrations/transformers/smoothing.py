"""smooth(model, ...): moves outliers of activations into the weights of a float model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lamina.integrations.transformers.fused import unknown_layer
from lamina.nn import RMSNorm
from lamina.ops import quantize_int8
from lamina.quant import quantize_weight_int8
from lamina.quant.calibration import Calibration, Tokenizer, checked_batches, run_model, text_batches

OP = "lamina: smooth"
STRENGTHS = (0.25, 0.5, 0.75)
SAMPLE, CALLS = 32, 8  # tokens of a call that are kept, and calls of which some are kept


@dataclass(frozen=True)
class Seam:
    """A module, and the linear layers that multiply its outputs, feature by feature."""

    source: str
    layers: tuple[str, ...]


def smooth(
    model: PreTrainedModel,
    calibration: Calibration | Sequence[str],
    *,
    tokenizer: Tokenizer | None = None,
    strength: float | None = None,
) -> dict[str, str]:
    """SmoothQuant: makes the activations of a float model easier to round to int8, in place.

    model        of transformers, with decoder layers that accelerate knows, whose linear layers are float
    calibration  typical inputs, or with a tokenizer texts, as in lamina.compress; the model runs once
    strength     from 0 to 1: how much of the range of a feature moves from activations to weights. None: for
                 each input none of it or what 1/4, 1/2 or 3/4 moves, whichever loses least in W8A8 on a
                 sample of the calibration's tokens
    returns      name of a decoder layer -> the reason why it was left
    Raises       ValueError for a strength out of range, and if no input reaches a layer; TypeError as
                 lamina.compress for a calibration that is none

    A feature of the input x [..., k] of layers with weights w [n, k] is divided by s = max |x|^strength /
    max |w|^(1 - strength), and the columns of w are multiplied by s. The module before the layers divides:
    the weight of the norm before q, k and v and before gate and up, the rows of v before o, where the heads
    that share a KV head share s, and the rows of up before down. In exact arithmetic the model computes the
    same function.

    Source       Xiao et al., SmoothQuant, arXiv:2211.10438
    """
    if strength is not None and not 0 <= strength <= 1:
        raise ValueError(f"{OP}: strength = {strength}; must be from 0 to 1")
    if tokenizer is not None:
        calibration = text_batches(model, calibration, tokenizer)
    elif not callable(calibration):
        calibration = checked_batches(model, calibration, f"{OP}: calibration")
    found = {name: m for name, m in model.named_modules() if type(m).__name__.endswith("DecoderLayer")}
    left = {name: reason for name, layer in found.items() if (reason := _problem(layer))}
    blocks = {name: layer for name, layer in found.items() if name not in left}
    seen: dict[nn.Module, Inputs] = {}

    def note(linear: nn.Module, args: tuple[Any, ...]) -> None:
        seen.setdefault(linear, Inputs()).add(args[0].detach().flatten(0, -2))

    hooks = [
        layer.get_submodule(seam.layers[0]).register_forward_pre_hook(note)
        for layer in blocks.values()
        for seam in _seams(layer)
    ]
    try:
        run_model(model, calibration)
    finally:
        for hook in hooks:
            hook.remove()
    for name, layer in blocks.items():
        for seam in _seams(layer):
            linear = layer.get_submodule(seam.layers[0])
            if linear not in seen:
                raise ValueError(f"{OP}: no calibration input reaches layer '{name}.{seam.layers[0]}'")
            _move(layer, seam, seen[linear], strength)
    return left


class Inputs:
    """The largest absolute value of each feature of the inputs of a layer, and some of its tokens."""

    def __init__(self) -> None:
        self.largest, self.rows = torch.zeros(()), list[Tensor]()

    def add(self, rows: Tensor) -> None:
        """Adds the tokens [m, k] of a call, and keeps SAMPLE of them as long as there are few."""
        self.largest = torch.maximum(self.largest.to(rows.device), rows.abs().amax(0).float())
        if len(self.rows) < CALLS:
            self.rows.append(rows[:: -(-len(rows) // SAMPLE)].float())


def _problem(layer: nn.Module) -> str | None:
    if reason := unknown_layer(layer):
        return reason
    for seam in _seams(layer):
        for name in seam.layers:
            if type(layer.get_submodule(name)) is not nn.Linear:
                return f"{name}: {type(layer.get_submodule(name)).__name__} is no nn.Linear"
        try:
            if "norm" in seam.source:
                RMSNorm.from_module(layer.get_submodule(seam.source))
        except ValueError as error:
            return str(error)
    return None


def _seams(layer: nn.Module) -> tuple[Seam, ...]:
    has_more_norms = hasattr(layer, "pre_feedforward_layernorm")
    before_mlp = "pre_feedforward_layernorm" if has_more_norms else "post_attention_layernorm"
    return (
        Seam("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
        Seam(before_mlp, ("mlp.gate_proj", "mlp.up_proj")),
        Seam("self_attn.v_proj", ("self_attn.o_proj",)),
        Seam("mlp.up_proj", ("mlp.down_proj",)),
    )


@torch.no_grad()
def _move(layer: Any, seam: Seam, inputs: Inputs, strength: float | None) -> None:
    source = layer.get_submodule(seam.source)
    weights = [layer.get_submodule(name).weight for name in seam.layers]
    x = inputs.largest
    w = torch.stack([weight.abs().amax(0).float() for weight in weights]).amax(0)
    heads, dim = 1, len(w)  # heads that read one head of the source, and their features
    if isinstance(source, nn.Linear) and source.out_features < len(w):
        heads, dim = len(w) // source.out_features, layer.self_attn.head_dim
        x, w = (most.view(-1, heads, dim).amax(1).flatten() for most in (x, w))
    moves = [
        (x.pow(share) / w.pow(1 - share)).where((x > 0) & (w > 0), 1.0)
        for share in (STRENGTHS if strength is None else (strength,))
    ]
    if strength is None:
        rows, weight = torch.cat(inputs.rows), torch.cat(weights).float()
        moves = [torch.ones_like(x), *moves]
        moves = [min(moves, key=lambda s: _loss(rows, weight, _repeated(s, heads, dim)))]
    s = moves[0]
    if isinstance(source, nn.Linear):
        source.weight.div_(s[:, None])
        if source.bias is not None:
            source.bias.div_(s)
    else:  # a norm, whose weight lacks 1 in a Gemma
        full = RMSNorm.from_module(source).weight
        source.weight.copy_(full / s - (full - source.weight))
    for weight in weights:
        weight.mul_(_repeated(s, heads, dim))


def _repeated(s: Tensor, heads: int, dim: int) -> Tensor:
    """s for each of the heads that share it."""
    return s.view(-1, 1, dim).expand(-1, heads, dim).flatten()


def _loss(x: Tensor, w: Tensor, s: Tensor) -> float:
    """The squared error of W8A8 for inputs x / s and a weight w * s."""
    a, (q, scale) = quantize_int8(x / s), quantize_weight_int8(w * s)
    return float(((a.q * a.scale) @ (q * scale[:, None]).T - x @ w.T).square().sum())
