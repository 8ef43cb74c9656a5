"""take_over: from_pretrained of checkpoints of other quantisers gives lamina's layers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")

from transformers.quantizers import auto  # noqa: E402

from lamina.integrations.transformers import give_back, take_over  # noqa: E402
from lamina.nn import Int4Linear  # noqa: E402
from lamina.nn.packed_linear import PackedLinear  # noqa: E402
from tests.python.test_load_checkpoint import compressed_tensors, words  # noqa: E402
from tests.support.cases import generator  # noqa: E402

SIZES: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2,
}  # fmt: skip
GROUP = 32
AWQ_ORDER = tuple((0, 2, 4, 6, 1, 3, 5, 7).index(i) for i in range(8))
METHODS = ["gptq", "awq", "compressed-tensors"]
IDS = torch.arange(1, 12)[None]


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    give_back(*METHODS)


def layer_tensors(method: str, q: Tensor, scale: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Codes [n, k] and scales [n, groups] as a checkpoint has them, and the weight, symmetric about 8."""
    w = (q - 8).float() * scale.float().repeat_interleave(GROUP, 1)
    n, groups = scale.shape
    if method == "compressed-tensors":
        return {"weight_packed": words(q, 4), "weight_scale": scale, "weight_shape": torch.tensor(q.shape)}, w
    columns = scale.T.contiguous()
    if method == "awq":
        return {"qweight": words(q.T, 4, AWQ_ORDER), "scales": columns}, w
    sevens = torch.full((groups, n // 8), 0x77777777, dtype=torch.int32)  # the zero point 8, less one
    index = torch.arange(q.shape[1], dtype=torch.int32) // GROUP
    return {"qweight": words(q, 4).T, "qzeros": sevens, "scales": columns, "g_idx": index}, w


def config_of(method: str) -> dict[str, Any]:
    if method == "gptq":
        return {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True}
    if method == "awq":
        return {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": False}
    weights = {"num_bits": 4, "symmetric": True, "strategy": "group", "group_size": GROUP, "type": "int"}
    return compressed_tensors(weights, "pack-quantized")


def checkpoint(method: str, folder: Path) -> nn.Module:
    """Writes a checkpoint; returns the float model with the weights that it holds."""
    torch.manual_seed(2)
    model: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).eval()
    g = generator(method)
    tensors = {name: t for name, t in model.state_dict().items() if "_proj" not in name}
    for name, module in model.model.named_modules():
        if isinstance(module, nn.Linear):
            n, k = module.weight.shape
            q, scale = (
                torch.randint(0, 16, (n, k), generator=g),
                torch.rand(n, k // GROUP, generator=g) * 0.05,
            )
            made, w = layer_tensors(method, q, scale.half())
            tensors |= {f"model.{name}.{part}": t for part, t in made.items()}
            module.weight.data.copy_(w)
    save_file({name: t.contiguous().clone() for name, t in tensors.items()}, folder / "model.safetensors")
    config = {**model.config.to_dict(), "quantization_config": config_of(method)}
    (folder / "config.json").write_text(json.dumps(config, default=str))
    return model


def logits(model: nn.Module) -> Tensor:
    with torch.inference_mode():
        out: Tensor = model(IDS).logits
    return out


@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_becomes_packed_layers(method: str, tmp_path: Path) -> None:
    want = checkpoint(method, tmp_path)
    take_over(method)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    names = [name for name, module in model.named_modules() if isinstance(module, PackedLinear)]
    assert len(names) == 7
    for name in names:
        layer = model.get_submodule(name)
        assert isinstance(layer, Int4Linear) and layer.activations == "float"
        assert torch.equal(layer.dequantize_weight(), want.get_submodule(name).weight)
    exact = logits(want)
    assert (logits(model) - exact).abs().max() < 1e-4 * exact.abs().max()

    model.save_pretrained(tmp_path / "packed")  # as a model of lamina
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "packed")
    assert torch.equal(logits(again), logits(model))


def test_options_go_to_load_checkpoint(tmp_path: Path) -> None:
    checkpoint("gptq", tmp_path)
    take_over("gptq", "awq", activations="int8")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.model.layers[0].mlp.up_proj.activations == "int8"


def test_what_the_model_lacks_is_named(tmp_path: Path) -> None:
    checkpoint("gptq", tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_hidden_layers": 0}))
    take_over("gptq")
    with pytest.raises(
        ValueError, match=r"holds the quantised layer 'model\.layers\.0.*', which the model lacks"
    ):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)


def test_it_is_explicit_and_can_be_undone() -> None:
    before = {method: auto.AUTO_QUANTIZER_MAPPING[method] for method in METHODS}
    configs = {method: auto.AUTO_QUANTIZATION_CONFIG_MAPPING[method] for method in METHODS}
    assert not any("lamina" in kind.__module__ for kind in (*before.values(), *configs.values()))
    take_over("gptq")
    take_over("gptq", "awq")
    changed = [method for method in METHODS if auto.AUTO_QUANTIZER_MAPPING[method] is not before[method]]
    assert changed == ["gptq", "awq"]
    give_back(*METHODS)
    give_back("gptq")
    assert {method: auto.AUTO_QUANTIZER_MAPPING[method] for method in METHODS} == before
    assert {method: auto.AUTO_QUANTIZATION_CONFIG_MAPPING[method] for method in METHODS} == configs


@pytest.mark.parametrize("function", [take_over, give_back])
def test_other_methods_are_refused(function: Any) -> None:
    for methods, got in ((("gptq", "bnb"), "'bnb'"), ((), "None")):
        with pytest.raises(ValueError, match=f"method = {got}; allowed: 'gptq', 'awq', 'compressed-tensors'"):
            function(*methods)
    assert "lamina" not in auto.AUTO_QUANTIZER_MAPPING["gptq"].__module__
