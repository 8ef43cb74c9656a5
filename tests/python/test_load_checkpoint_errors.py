"""lamina.load_checkpoint of files that do not fit: the error names the tensor, what it is, what is right."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

import lamina
from tests.python.test_load_checkpoint import K, N, one_layer, write, written
from tests.support.cases import generator
from tests.support.compare import assert_equal

Change = Callable[[dict[str, Tensor], dict[str, Any]], object]
WRONG: dict[str, tuple[Change, str]] = {
    "missing": (lambda t, c: t.pop("layer.weight_scale"), "layer.weight_scale is missing"),
    "missing float": (lambda t, c: t.pop("norm.weight"), "norm.weight is missing"),
    "extra": (
        lambda t, c: t.update(odd=torch.ones(2)),
        r"odd \(float32 \[2\]\) is in the checkpoint, and the model",
    ),
    "extra of a layer": (
        lambda t, c: t.update({"layer.smooth": torch.ones(2)}),
        "layer.smooth is not a tensor of such a layer; allowed: weight_packed, weight_scale",
    ),
    "shape": (
        lambda t, c: t.update({"layer.weight_packed": torch.zeros(N, 9).int()}),
        r"layer.weight_packed is int32 \[24, 9\]; allowed: int32 \[24, 10\] for a layer of \[24, 80\]",
    ),
    "dtype": (
        lambda t, c: t.update({"layer.weight_scale": torch.ones(N, 5).double()}),
        r"layer.weight_scale is float64 \[24, 5\]; allowed: float32 or float16 or bfloat16 \[24, 5\]",
    ),
    "float shape": (
        lambda t, c: t.update({"norm.weight": torch.ones(3)}),
        r"norm.weight is float32 \[3\]; allowed: float32 \[24\], of any float dtype",
    ),
    "float dtype": (
        lambda t, c: t.update({"norm.weight": torch.ones(N).int()}),
        r"norm.weight is int32 \[24\]",
    ),
    "another layer": (
        lambda t, c: t.update({"other.weight_packed": torch.ones(2, 2).int()}),
        "other is a quantised layer of the checkpoint, and the model has no such layer",
    ),
    "no linear layer": (
        lambda t, c: t.update({"norm.weight_packed": torch.ones(2, 2).int()}),
        "norm is a quantised linear layer; in the model it is LayerNorm",
    ),
    "bias": (
        lambda t, c: t.update({"layer.bias": torch.ones(N)}),
        "layer has a bias in the checkpoint alone",
    ),
    "method": (
        lambda t, c: c.update(quant_method="hqq"),
        "quant_method in .* is 'hqq'; allowed: 'compressed-tensors'",
    ),
    "format": (
        lambda t, c: c.update(format="nvfp4-pack-quantized"),
        "format is 'nvfp4-pack-quantized'; allowed: dense",
    ),
    "own": (lambda t, c: c.update(quant_method="lamina"), "use lamina.load_compressed"),
    "bits": (
        lambda t, c: c["config_groups"]["group_0"]["weights"].update(num_bits=3),
        "layer: its weights are int of 3 bits; allowed: int of 4 or 8, float of 8",
    ),
    "strategy": (
        lambda t, c: c["config_groups"]["group_0"]["weights"].update(strategy="block"),
        "layer: strategy is 'block'; allowed: 'tensor', 'channel', 'group'",
    ),
    "target": (
        lambda t, c: c["config_groups"]["group_0"].update(targets=["re:lay$", "Conv2d"]),
        "layer: no group of quantization_config.config_groups targets it",
    ),
    "weight_shape": (
        lambda t, c: t.update({"layer.weight_shape": torch.tensor([N, K - 1])}),
        r"layer 'layer': weight_shape is \[24, 79\]; the model's layer is \[24, 80\]",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(case: str, tmp_path: Path) -> None:
    folder, _ = written("w4", tmp_path)
    with safe_open(folder / "model.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    tensors |= {"norm.weight": torch.ones(N), "norm.bias": torch.ones(N)}
    change, message = WRONG[case]
    change(tensors, config)
    write(folder, tensors, config)
    model = nn.ModuleDict({"layer": nn.Linear(K, N, bias=False), "norm": nn.LayerNorm(N)})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=f"load_checkpoint: .*{message}"):
        lamina.load_checkpoint(model, folder)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.state_dict().keys() == before.keys()


def test_other_gptq_and_awq_formats_are_refused_by_name(tmp_path: Path) -> None:
    for config, message in (
        ({"quant_method": "gptq", "bits": 3}, "bits is 3; allowed: 4, 8"),
        (
            {"quant_method": "gptq", "checkpoint_format": "marlin"},
            "checkpoint_format is 'marlin'; allowed: 'gptq'",
        ),
        ({"quant_method": "awq", "version": "gemv"}, "version is 'gemv'; allowed: 'gemm'"),
        ({"quant_method": "awq", "bits": 8}, "bits is 8; allowed: 4"),
    ):
        with pytest.raises(ValueError, match=message):
            lamina.load_checkpoint(one_layer(), write(tmp_path, {"layer.weight": torch.ones(2)}, config))


def test_arguments(tmp_path: Path) -> None:
    for changed, message in (
        ({"activations": "fp8"}, "activations = 'fp8'; allowed: None"),
        ({"convert": "w2"}, "convert = 'w2'; allowed: None, float, w8a8"),
    ):
        with pytest.raises(ValueError, match=message):
            lamina.load_checkpoint(one_layer(), tmp_path, **changed)
    with pytest.raises(FileNotFoundError, match=r"is neither a folder nor a \.gguf file"):
        lamina.load_checkpoint(one_layer(), tmp_path / "none")
    with pytest.raises(TypeError, match="model must be a"):
        lamina.load_checkpoint(tmp_path, tmp_path)  # type: ignore[arg-type]


def test_extra_tensors_may_be_ignored(tmp_path: Path) -> None:
    w = torch.randn(N, K, generator=generator("ignore"))
    folder = write(tmp_path, {"layer.weight": w, "odd.one": torch.ones(2)})
    model = one_layer()
    lamina.load_checkpoint(model, folder, ignore=["odd.*"])
    assert_equal(model["layer"].weight.detach(), w)
