"""lamina.integrations.transformers.smooth: the same function, with activations that lose less in int8."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")

import lamina
from lamina.integrations.transformers import smooth, smoothing
from tests.python.test_accelerate import MODELS, make

IDS = [torch.randint(1, 97, (2, 16), generator=torch.Generator().manual_seed(seed)) for seed in (1, 2, 3)]


def logits(model: Any) -> Tensor:
    with torch.inference_mode():
        return torch.cat([model(ids).logits for ids in IDS])


@pytest.mark.parametrize("strength", [0.6, None])
@pytest.mark.parametrize("name", MODELS)
def test_the_function_stays(name: str, strength: float | None) -> None:
    model: Any = make(name)
    before, weights = logits(model), copy.deepcopy(model.state_dict())
    assert smooth(model, IDS, strength=strength) == {}
    torch.testing.assert_close(logits(model), before, rtol=0, atol=2e-4)
    if strength is None:
        return
    changed = {name for name, weight in model.state_dict().items() if not torch.equal(weight, weights[name])}
    assert {n for n in changed if ".1." in n and n.endswith("proj.weight")} == {
        f"model.layers.1.{n}.weight"
        for n in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
    } | {f"model.layers.1.mlp.{n}_proj.weight" for n in ("gate", "up", "down")}


def test_a_strength_of_one_makes_all_features_alike() -> None:
    model: Any = make("llama")
    smooth(model, IDS, strength=1.0)
    inputs: dict[str, Tensor] = {}

    def note(name: str) -> Any:
        return lambda _, args: inputs.update({name: args[0].abs().flatten(0, 1).amax(0)})

    for name in ("self_attn.q_proj", "mlp.up_proj", "mlp.down_proj"):
        model.model.layers[0].get_submodule(name).register_forward_pre_hook(note(name))
    with torch.inference_mode():
        model(torch.cat(IDS))
    for largest in inputs.values():  # of all calibration tokens
        torch.testing.assert_close(largest, torch.ones_like(largest), rtol=1e-4, atol=1e-4)


def test_outliers_of_features_lose_less_in_int8() -> None:
    """A few features of each norm and of up are 60 times the others, as in real models."""
    model: Any = make("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            for weight in (layer.input_layernorm.weight, layer.post_attention_layernorm.weight):
                weight[::20] *= 60
            layer.mlp.up_proj.weight[::20] *= 60
    exact = logits(model)
    errors = []
    for strength in (-1.0, 0.5, None):
        packed = copy.deepcopy(model)
        if strength != -1.0:
            smooth(packed, IDS, strength=strength)
        lamina.compress(packed, "w8a8")
        errors.append(float((logits(packed) - exact).norm()))
    assert errors[1] < 0.7 * errors[0]
    assert errors[2] < 0.7 * errors[0]


def test_a_layer_that_moving_would_make_worse_stays() -> None:
    """int8 holds these inputs and weights exactly, and no part of their ranges has to move."""
    g = torch.Generator().manual_seed(4)
    x, w = (torch.randint(-50, 51, (64, 96), generator=g).float() for _ in "xw")
    x[:, 0] = w[:, 1] = 127
    model: Any = make("llama")
    mlp = model.model.layers[0].mlp
    with torch.no_grad():
        mlp.down_proj.weight.copy_(w)
    inputs = smoothing.Inputs()
    inputs.add(x)
    before = mlp.up_proj.weight.clone()
    smoothing._move(model.model.layers[0], smoothing.Seam("mlp.up_proj", ("mlp.down_proj",)), inputs, None)
    assert torch.equal(mlp.up_proj.weight, before)


def test_texts_and_layers_that_are_left() -> None:
    def tokenizer(text: str, **_: Any) -> dict[str, Tensor]:
        return {"input_ids": torch.tensor([[ord(c) % 97 for c in text]])}

    model: Any = make("llama")
    lamina.compress(model, {"*.0.*.down_proj": "w8a8"})
    model.model.layers[1] = nn.Identity()
    before = model.model.layers[0].mlp.up_proj.weight.clone()
    model.model.layers = model.model.layers[::2]
    assert smooth(model, ["some text"], tokenizer=tokenizer) == {
        "model.layers.0": "mlp.down_proj: Int8Linear is no nn.Linear"
    }
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight, before)


def test_errors() -> None:
    model: Any = make("llama")
    with pytest.raises(ValueError, match=r"strength = 1\.5; must be from 0 to 1"):
        smooth(model, IDS, strength=1.5)
    with pytest.raises(
        ValueError, match=r"no calibration input reaches layer 'model\.layers\.0\.self_attn\.q_proj'"
    ):
        smooth(model, [])
    with pytest.raises(TypeError, match="smooth: calibration must hold batches"):
        smooth(model, IDS[0])
