"""vLLM's CPU engine with linear layers of lamina, on SmolLM2-135M: tokens, exact layers and perplexity."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import LlamaForCausalLM

from lamina.integrations.vllm.linear import LaminaInt4LinearKernel, LaminaInt8LinearKernel
from lamina.testing.compare import error_over_bound
from lamina.testing.reference import Expected, gemm_int4_int8, gemm_int8, quantize_int8
from tests.vllm.checkpoints import GROUP, Scheme, save_float, save_quantized, tiny
from tests.vllm.engine import PROMPTS, counted, engine, english, generate, model_of, perplexity

LAYERS, LINEARS = 30, 4  # vLLM fuses q, k and v, and gate and up
W4, W8 = Scheme(bits=4), Scheme(bits=8)


@pytest.fixture(scope="session")
def texts() -> list[list[int]]:
    return english()


@pytest.fixture(scope="session")
def float_perplexity(float_model: Path, texts: list[list[int]]) -> float:
    """By the stock engine."""
    with engine(float_model) as llm:
        return perplexity(llm, texts)


def kernels(llm: Any, kernel: type) -> dict[str, Any]:
    """The linear layers of the model that `kernel` computes, by name."""
    found = {}
    for name, module in model_of(llm).named_modules():
        scheme = getattr(module, "scheme", None)
        if isinstance(getattr(scheme, "kernel", None), kernel):
            found[name] = module
    return found


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zero points"])
def test_w4a16_tokens_are_those_of_the_dequantised_model(
    smollm2: LlamaForCausalLM, folder: Path, symmetric: bool
) -> None:
    name = f"w4_{symmetric}"
    meant = save_quantized(smollm2, Scheme(4, symmetric), folder / name)
    with engine(save_float(smollm2, folder / f"{name}_float", meant)) as llm, counted() as calls:
        expected = generate(llm)
    assert not calls
    with engine(folder / name) as llm, counted() as calls:
        assert len(kernels(llm, LaminaInt4LinearKernel)) == LAYERS * LINEARS
        calls.clear()
        assert generate(llm) == expected
    assert len(set(map(tuple, expected))) == len(PROMPTS)
    assert set(calls) == {"gemm_int4"}
    assert calls["gemm_int4"] >= 24 * LAYERS * LINEARS
    assert calls["gemm_int4"] % (LAYERS * LINEARS) == 0


class Observed:
    """The inputs and outputs of layers in one call of the engine."""

    def __init__(self, layers: dict[str, Any]) -> None:
        self.seen: dict[str, tuple[Tensor, Tensor]] = {}
        self.handles = [layer.register_forward_hook(self._hook(name)) for name, layer in layers.items()]

    def _hook(self, name: str) -> Callable[..., None]:
        def keep(_: Any, given: tuple[Tensor, ...], made: Any) -> None:
            out = made[0] if isinstance(made, tuple) else made
            self.seen.setdefault(name, (given[0].clone(), out.clone()))

        return keep


FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


def of_file(folder: Path, layer: str, part: str) -> Tensor:
    """A tensor of the checkpoint for a layer of vLLM, whose parts are one below the other."""
    stem, _, last = layer.rpartition(".")
    with safe_open(folder / "model.safetensors", "pt") as file:
        return torch.cat([file.get_tensor(f"{stem}.{name}.{part}") for name in FUSED.get(last, (last,))])


def check_layers(
    folder: Path, seen: dict[str, tuple[Tensor, Tensor]], exact: Callable[..., Expected]
) -> None:
    assert seen
    for name, (x, out) in seen.items():
        expected = exact(lambda part, name=name: of_file(folder, name, part), x.flatten(0, -2))
        assert error_over_bound(out.flatten(0, -2), expected) <= 1, name


def test_w8a8_layers_are_exact_and_keep_the_perplexity(
    smollm2: LlamaForCausalLM, folder: Path, texts: list[list[int]], float_perplexity: float
) -> None:
    save_quantized(smollm2, W8, folder / "w8")

    def exact(get: Callable[[str], Tensor], x: Tensor) -> Expected:
        a, a_scale, _ = quantize_int8(x)
        return gemm_int8(a, get("weight"), a_scale, get("weight_scale").T, torch.float32)

    with engine(folder / "w8") as llm, counted() as calls:
        layers = kernels(llm, LaminaInt8LinearKernel)
        assert len(layers) == LAYERS * LINEARS
        observed = Observed({name: layer for name, layer in layers.items() if ".17." in name})
        calls.clear()
        got = perplexity(llm, texts)
    assert set(calls) == {"gemm_int8"}
    assert calls["gemm_int8"] % (LAYERS * LINEARS) == 0
    assert len(observed.seen) == LINEARS
    check_layers(folder / "w8", observed.seen, exact)
    assert abs(got / float_perplexity - 1) < 0.04


def test_w4a8_comes_from_the_same_checkpoint(
    smollm2: LlamaForCausalLM, folder: Path, texts: list[list[int]]
) -> None:
    save_quantized(smollm2, Scheme(4, symmetric=False), folder / "w4a8")

    def exact(get: Callable[[str], Tensor], x: Tensor) -> Expected:
        a, a_scale, _ = quantize_int8(x)
        scale = get("weight_scale").T
        q, zero = (nibbles(words) for words in (get("weight_packed"), get("weight_zero_point").T))
        return gemm_int4_int8(a, q, scale, GROUP, a_scale, torch.float32, w_zero_point=zero)

    with engine(folder / "w4a8") as llm:
        of_float_activations = perplexity(llm, texts)
    with engine(folder / "w4a8", {"LAMINA_VLLM_ACTIVATIONS": "int8"}) as llm, counted() as calls:
        layers = kernels(llm, LaminaInt4LinearKernel)
        observed = Observed({name: layer for name, layer in layers.items() if ".4." in name})
        calls.clear()
        got = perplexity(llm, texts)
    assert set(calls) == {"gemm_int4_int8"}
    assert len(observed.seen) == LINEARS
    check_layers(folder / "w4a8", observed.seen, exact)
    assert abs(got / of_float_activations - 1) < 0.08


def nibbles(words: Tensor) -> Tensor:
    """int32 [rows, columns] as codes [rows, 8 columns], the low bits first."""
    return ((words.unsqueeze(-1).long() >> torch.arange(0, 32, 4)) & 15).flatten(1).to(torch.uint8)


@pytest.mark.parametrize(
    "scheme",
    [Scheme(8, symmetric=False), Scheme(8, static=True), Scheme(8, symmetric=False, static=True)],
    ids=["dynamic, zero points", "static", "static, zero points"],
)
def test_other_w8a8_schemes(folder: Path, scheme: Scheme) -> None:
    """On a small model with biases; fused layers get the input scale of one of their parts."""
    target = folder / f"tiny_{scheme.symmetric}_{scheme.static}"
    save_quantized(tiny(), scheme, target)

    def exact(get: Callable[[str], Tensor], x: Tensor) -> Expected:
        scale = zero = None
        if scheme.static:
            scale = get("input_scale")[-1].expand(len(x), 1)
            zero = None if scheme.symmetric else get("input_zero_point")[-1].expand(len(x), 1)
        a, a_scale, a_zero = quantize_int8(x, scale, zero, scheme.symmetric)
        return gemm_int8(
            a, get("weight"), a_scale, get("weight_scale").T, torch.float32,
            a_zero_point=None if scheme.symmetric else a_zero,
        )  # fmt: skip

    with engine(target) as llm, counted() as calls:
        layers = kernels(llm, LaminaInt8LinearKernel)
        observed = Observed({name: layer for name, layer in layers.items() if layer.bias is None})
        calls.clear()
        generate(llm, [[5, 9, 77, 140], [3]], tokens=2)
    assert set(calls) == {"gemm_int8"}
    assert len(observed.seen) == 2 * 2  # gate_up_proj and down_proj of two blocks; attention has biases
    check_layers(target, observed.seen, exact)
