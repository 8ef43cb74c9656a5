"""lamina.compress, save_compressed and load_compressed on models of transformers, tiny and random."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lamina
from lamina.nn import Int4Linear, Int8Linear
from lamina.quant import gptq, hessian, quantize_weight_int8
from tests.python.test_compress import model_bytes, reasons

transformers = pytest.importorskip("transformers")
auto = pytest.importorskip("transformers.quantizers.auto")
load_file = pytest.importorskip("safetensors.torch").load_file
IDS = torch.arange(12).reshape(2, 6)
SIZES = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1}
TOKENS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}


def llama() -> Any:
    config = transformers.LlamaConfig(**SIZES, **HEADS, **TOKENS, tie_word_embeddings=True)
    return transformers.LlamaForCausalLM(config)


def gpt2() -> Any:
    sizes = {"vocab_size": 96, "n_positions": 32, "n_embd": 64, "n_layer": 2, "n_head": 2}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **TOKENS))


def mixtral() -> Any:
    config = transformers.MixtralConfig(**SIZES, **HEADS, **TOKENS, num_local_experts=4)
    return transformers.MixtralForCausalLM(config)


def t5() -> Any:
    sizes = {"vocab_size": 96, "d_model": 64, "d_kv": 32, "d_ff": 128, "num_layers": 1, "num_heads": 2}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, decoder_start_token_id=0))


def made(architecture: Callable[[], Any]) -> Any:
    torch.manual_seed(5)
    return architecture().eval()


def logits(model: Any) -> Tensor:
    decoder = {"decoder_input_ids": IDS} if isinstance(model, transformers.T5ForConditionalGeneration) else {}
    with torch.inference_mode():
        found: Tensor = model(input_ids=IDS, **decoder).logits
    return found


# T5's feed-forward layer reads the dtype of `wo.weight`.
ARCHITECTURES = {"llama": (llama, ()), "gpt2": (gpt2, ()), "mixtral": (mixtral, ()), "t5": (t5, ("*.wo",))}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_saved_models_load_into_a_skeleton_on_meta(name: str, tmp_path: Path) -> None:
    architecture, skip = ARCHITECTURES[name]
    model = made(architecture)
    exact = logits(model)
    before = model_bytes(model)
    report = lamina.compress(model, "w4a8", group=32, skip=skip)
    assert (report.model_bytes_before, report.model_bytes_after) == (before, model_bytes(model))
    want = logits(model)
    # Four bits a weight in two blocks change the logits, by less than a quarter of the largest one.
    assert 0 < (want - exact).abs().max() < 0.25 * exact.abs().max()
    lamina.save_compressed(model, tmp_path, max_shard_bytes=100_000)
    with torch.device("meta"):
        skeleton = architecture().eval()
    assert lamina.load_compressed(skeleton, tmp_path) is skeleton
    assert torch.equal(logits(skeleton), want)
    assert str(skeleton) == str(model)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == [type(model).__name__]
    assert config["model_type"] == model.config.model_type
    again = type(model.config).from_pretrained(tmp_path)
    assert again.quantization_config["quant_method"] == "lamina"
    owners = {alias: owner for alias, owner in config["quantization_config"]["ties"].items()}
    assert owners == {} if name == "mixtral" else set(owners) >= {"lm_head.weight"}
    for alias, owner in owners.items():
        assert skeleton.get_parameter(alias) is skeleton.get_parameter(owner)


def test_a_loaded_model_generates_the_same_tokens(tmp_path: Path) -> None:
    model = made(llama)
    lamina.compress(model)
    lamina.save_compressed(model, tmp_path)
    with torch.device("meta"):
        skeleton = llama().eval()
    lamina.load_compressed(skeleton, tmp_path)
    tokens = [m.generate(IDS, max_new_tokens=5, do_sample=False) for m in (model, skeleton)]
    assert torch.equal(*tokens)


@pytest.mark.parametrize("kind", ["LlamaForCausalLM", "LlamaModel", "AutoModelForCausalLM"])
def test_transformers_without_lamina_refuses_what_is_saved(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For an unknown quantisation method transformers itself only warns, and loads random weights."""
    for known in (auto.AUTO_QUANTIZER_MAPPING, auto.AUTO_QUANTIZATION_CONFIG_MAPPING):
        monkeypatch.delitem(known, "lamina", raising=False)  # another test may have registered it
    model = made(llama)
    lamina.compress(model, "w4a16")
    lamina.save_compressed(model, tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        getattr(transformers, kind).from_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="size mismatch"):
        llama().load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)


def test_conv1d_becomes_a_packed_layer_of_its_transposed_weight() -> None:
    model = made(gpt2)
    layer = model.transformer.h[1].mlp.c_fc
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    lamina.compress(model)
    packed = model.transformer.h[1].mlp.c_fc
    assert isinstance(packed, Int8Linear)
    assert (packed.out_features, packed.in_features) == (256, 64)
    q, scale = quantize_weight_int8(weight.t())
    assert torch.equal(packed.packed_weight.unpack(), q)
    assert torch.equal(packed.weight_scale, scale)
    assert torch.equal(packed.bias, bias)
    assert not any("Conv1D" in type(module).__name__ for module in model.modules())


def test_calibration_sees_the_inputs_of_conv1d() -> None:
    model = made(gpt2)
    layer, seen = model.transformer.h[1].attn.c_attn, []
    handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    logits(model)
    handle.remove()
    want = gptq(layer.weight.detach().t(), hessian(seen), 32)
    lamina.compress(model, "w4a16", group=32, calibration=[IDS])
    packed = model.transformer.h[1].attn.c_attn
    assert isinstance(packed, Int4Linear)
    assert torch.equal(packed.packed_weight.unpack(), want.q)
    assert not layer._forward_pre_hooks


def test_conv1d_is_calibrated_by_keyword_and_keeps_its_mode() -> None:
    class Named(nn.Module):
        def __init__(self, layer: Any) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layer(x=x)
            return y

    conv, x = transformers.pytorch_utils.Conv1D(64, 48).eval(), torch.randn(80, 48)
    model = Named(conv)
    want = gptq(conv.weight.detach().t(), hessian(x), 16)
    lamina.compress(model, "w4a16", group=16, calibration=[x])
    assert torch.equal(model.layer.packed_weight.unpack(), want.q)
    assert model.training
    assert not model.layer.training


def test_conv1d_is_left_for_the_reasons_of_a_linear_layer() -> None:
    model = made(gpt2)
    block = model.transformer.h[0]
    block.attn.c_attn.register_forward_hook(lambda *_: None)
    block.mlp.c_fc.weight = block.mlp.c_proj.weight  # both are [256, 64], as [k, n]
    tied = reasons(model, skip=["lm_head", "transformer.h.1.*", "transformer.h.0.mlp.c_proj"])
    assert tied["transformer.h.0.attn.c_attn"] == "it has forward hooks, which would be lost"
    assert tied["transformer.h.0.mlp.c_fc"].startswith("its weight is also transformer.h.0.mlp.c_proj.weight")
    with pytest.raises(ValueError, match=r"itself an nn\.Linear or Conv1D"):
        lamina.compress(block.attn.c_attn)


def test_experts_that_stay_are_named_with_their_bytes() -> None:
    model = made(mixtral)
    report = lamina.compress(model, "w4a16")
    experts = {t.name: t for t in report.kept if t.module == "MixtralExperts"}
    tensor = experts["model.layers.1.mlp.experts.gate_up_proj"]
    assert (len(experts), tensor.shape, tensor.dtype, tensor.bytes) == (4, (4, 256, 64), "float32", 262144)
    text = str(report)
    assert "model.layers.*.mlp.experts.gate_up_proj  2" in text
    assert "float32 [4, 256, 64] of MixtralExperts, which is no linear layer" in text
    assert "input_layernorm" not in text, "too small to be worth a line"
    # Rows and kept tensors count every floating-point tensor.
    others = sum(b.nbytes for b in model.buffers() if not b.is_floating_point() and b.dim() == 0)
    total = report.bytes_before + sum(t.bytes for t in report.kept) + others
    assert total == report.model_bytes_before
    ratio = report.model_bytes_before / report.model_bytes_after
    assert ratio < 1.2
    assert f"({ratio:.2f}x)" in report.summary()
    assert report.summary().count("x)") == 1
    assert json.loads(json.dumps(report.as_dict()))["kept"][0]["name"] == report.kept[0].name


def test_a_model_without_linear_layers_says_what_it_is_made_of() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Parameter(torch.zeros(4, 64, 64))

    report = lamina.compress(nn.Sequential(Experts(), Experts()))
    line = next(line for line in str(report).splitlines() if line.startswith("*.up "))
    assert line.split()[:6] == ["*.up", "2", "keep", "131.07", "kB", "131.07"]
    assert line.endswith("float32 [4, 64, 64] of Experts, which is no linear layer")
    assert report.summary() == "w8a8: the model, 131.07 kB, has no linear layers"


def test_peft_adapters_are_left_and_go_on_working() -> None:
    peft = pytest.importorskip("peft")
    logging.getLogger("peft").setLevel(logging.ERROR)
    config = peft.LoraConfig(
        r=16, target_modules=["q_proj", "down_proj"], init_lora_weights=False, lora_alpha=64
    )
    model = peft.get_peft_model(made(llama), config).eval()
    exact = logits(model)
    with model.disable_adapter():
        without = logits(model)
    report = lamina.compress(model, "w8a8", skip_growing=False, skip="*lm_head")
    left = [row for row in report.skipped if ".lora_" in row.name]
    assert len(left) == 8
    assert {row.reason.partition(" of ")[0] for row in left} == {"it is the lora_A", "it is the lora_B"}
    assert isinstance(model.model.model.layers[0].self_attn.q_proj.base_layer, Int8Linear)
    found = logits(model)
    # The adapters still act: int8 changes the logits far less than removing the adapters does.
    assert (found - exact).abs().max() < 0.1 * (without - exact).abs().max()
