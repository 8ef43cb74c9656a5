"""LoRA adapters of peft on compressed models: added before or after compression."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lamina
from lamina.nn import Int4Linear, Int8Linear
from lamina.nn.packed_linear import PackedLinear
from tests.python.test_int8_linear import seeded

peft = pytest.importorskip("peft")
SCHEMES = ("w8a8", "w4a16", "w4a8")


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(64)
        self.up, self.down = nn.Linear(64, 128), nn.Linear(128, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.gelu(self.up(self.norm(x))))  # type: ignore[no-any-return]


def mlp() -> Mlp:
    torch.manual_seed(5)
    return Mlp()


def config(*, for_packed: bool = False, **options: Any) -> Any:
    made = peft.LoraConfig(r=4, target_modules=["up", "down"], init_lora_weights=False, **options)
    if for_packed:
        made._register_custom_module(dict.fromkeys((Int4Linear, Int8Linear), peft.tuners.lora.Linear))
    return made


def with_adapters(model: nn.Module, **options: Any) -> Any:
    torch.manual_seed(6)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Unsupported layer type")  # peft warns about packed layers
        return peft.get_peft_model(model, config(**options)).eval()


def packed(model: nn.Module) -> list[PackedLinear]:
    return [module for module in model.modules() if isinstance(module, PackedLinear)]


def adapters(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for name, parameter in model.named_parameters() if "lora_" in name]


X = seeded(6, 64)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_adapters_first(scheme: str) -> None:
    model = with_adapters(mlp())
    want = model(X).detach()
    lamina.compress(model, scheme, skip="*lora_*")
    assert len(packed(model)) == 2
    assert len(adapters(model)) == 4
    with torch.no_grad():
        got = model(X)
        assert 0 < (got - want).norm() < (0.02 if scheme == "w8a8" else 0.2) * want.norm()
        with model.disable_adapter():
            alone = mlp()
            lamina.compress(alone, scheme)
            assert torch.equal(model(X), alone(X))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_adapters_after(scheme: str, tmp_path: Path) -> None:
    base = mlp()
    lamina.compress(base, scheme)
    with torch.no_grad():
        plain = base(X)
        model = with_adapters(base, for_packed=True)
        assert len(packed(model)) == 2
        other = with_adapters(mlp())
        lamina.compress(other, scheme, skip="*lora_*")
        assert torch.equal(model(X), other(X))  # the order does not matter
        with model.disable_adapter():
            assert torch.equal(model(X), plain)
        model.save_pretrained(tmp_path)
        again = mlp()
        lamina.compress(again, scheme)
        saved = peft.LoraConfig.from_pretrained(tmp_path)
        saved._register_custom_module(dict.fromkeys((Int4Linear, Int8Linear), peft.tuners.lora.Linear))
        assert torch.equal(peft.PeftModel.from_pretrained(again, tmp_path, config=saved)(X), model(X))


@pytest.mark.parametrize("order", ["adapters first", "adapters after"])
def test_adapters_train_over_float_activations(order: str) -> None:
    model = mlp()
    if order == "adapters first":
        model = with_adapters(model)
        lamina.compress(model, "w4a16", skip="*lora_*")
    else:
        lamina.compress(model, "w4a16")
        model = with_adapters(model, for_packed=True)
    # A float model with the dequantised weights must have the same gradients.
    emulated = with_adapters(mlp())
    for (name, module), other in zip(model.named_modules(), emulated.modules(), strict=True):
        if isinstance(module, PackedLinear):
            other.weight.data = module.dequantize_weight()
        assert type(other) is type(module) or isinstance(module, PackedLinear), name
    for each in (model, emulated):
        each.train()
        each(X).square().sum().backward()
    for got, want in zip(adapters(model), adapters(emulated), strict=True):
        assert got.grad is not None
        torch.testing.assert_close(got.grad, want.grad, rtol=1e-4, atol=1e-3)
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == [
        name for name, _ in model.named_parameters() if "lora_" in name
    ]


def test_what_peft_cannot_do_with_packed_layers_says_so() -> None:
    model = with_adapters(mlp())
    lamina.compress(model, "w4a16", skip="*lora_*")
    before = [module.dequantize_weight() for module in packed(model)]
    with pytest.raises(AttributeError, match=r"Int4Linear is read-only; dequantize_weight\(\)"):
        model.merge_adapter()
    for module, weight in zip(packed(model), before, strict=True):
        assert torch.equal(module.dequantize_weight(), weight)
    base = mlp()
    lamina.compress(base, "w4a16")
    with pytest.raises(ValueError, match=r"Target module Int4Linear\(.*is not supported"):
        peft.get_peft_model(base, config())


def test_dora_reads_the_weight() -> None:
    model = with_adapters(mlp(), use_dora=True)
    want = model(X).detach()
    lamina.compress(model, "w8a8", skip="*lora_*")
    with torch.no_grad():
        assert 0 < (model(X) - want).norm() < 0.02 * want.norm()
