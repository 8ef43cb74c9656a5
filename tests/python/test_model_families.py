"""Models of transformers whose modules read the `.weight` of linear layers run after compression."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lamina
from lamina.nn.packed_linear import PackedLinear
from tests.python.test_int8_linear import seeded
from tests.support.cases import generator

transformers = pytest.importorskip("transformers")
WIDTHS = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "vocab_size": 128}


def tokens(name: str, length: int) -> Tensor:
    return torch.randint(0, 128, (2, length), generator=generator(name))


def t5() -> nn.Module:
    config = transformers.T5Config(**WIDTHS, decoder_start_token_id=0, feed_forward_proj="gated-gelu")
    model: nn.Module = transformers.T5ForConditionalGeneration(config)
    return model


def switch() -> nn.Module:
    experts = {"num_experts": 4, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1}
    config = transformers.SwitchTransformersConfig(
        **WIDTHS, **experts, num_decoder_layers=2, decoder_start_token_id=0
    )
    model: nn.Module = transformers.SwitchTransformersForConditionalGeneration(config)
    return model


def wavlm() -> nn.Module:
    config = transformers.WavLMConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, conv_dim=(32, 32),
        conv_stride=(5, 2), conv_kernel=(10, 3), num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
    )  # fmt: skip
    model: nn.Module = transformers.WavLMModel(config)
    return model


def mobilebert() -> nn.Module:
    config = transformers.MobileBertConfig(
        hidden_size=64, embedding_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        intra_bottleneck_size=64, true_hidden_size=64, vocab_size=128, max_position_embeddings=64,
    )  # fmt: skip
    model: nn.Module = transformers.MobileBertForMaskedLM(config)
    return model


SEQUENCES = {"input_ids": tokens("encoder", 9), "decoder_input_ids": tokens("decoder", 5)}
MODELS: dict[str, tuple[Callable[[], nn.Module], dict[str, Tensor], str]] = {
    # The last element names a layer whose weight the model reads.
    "t5": (t5, SEQUENCES, "encoder.block.0.layer.1.DenseReluDense.wo"),
    "switch": (switch, SEQUENCES, "encoder.block.1.layer.1.mlp.experts.expert_0.wo"),
    "wavlm": (wavlm, {"input_values": seeded(2, 800)}, "encoder.layers.1.attention.out_proj"),
    "mobilebert": (mobilebert, {"input_ids": tokens("mobile", 9)}, "cls.predictions.dense"),
}


def made(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(3)
    return MODELS[name][0]().to(dtype).eval()


def outputs(model: Any, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
    inputs = {key: x.to(dtype) if x.is_floating_point() else x for key, x in MODELS[name][1].items()}
    with torch.no_grad():
        out: Tensor = model(**inputs)[0]
    return out


@pytest.mark.parametrize("name", MODELS)
def test_it_is_the_float_model_of_its_dequantised_weights(name: str) -> None:
    model = made(name)
    rounded = copy.deepcopy(model)
    lamina.compress(model, "w4a16", group=32, skip_growing=False)
    assert isinstance(model.get_submodule(MODELS[name][2]), PackedLinear)
    for path, module in model.named_modules():
        if isinstance(module, PackedLinear):
            rounded.get_submodule(path).weight.data = module.dequantize_weight()  # type: ignore[union-attr]
    want, plain = outputs(rounded, name), outputs(made(name), name)
    assert not torch.allclose(plain, want, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(outputs(model, name), want, rtol=1e-4, atol=1e-5 * float(want.abs().max()))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, torch.float32) for name in MODELS), ("t5", torch.bfloat16), ("wavlm", torch.bfloat16)],
    ids=str,
)
def test_int8_is_near_the_float_model(name: str, dtype: torch.dtype) -> None:
    model = made(name, dtype)
    want = outputs(model, name, dtype)
    lamina.compress(model, "w8a8", skip_growing=False)
    layer = model.get_submodule(MODELS[name][2])
    assert isinstance(layer, PackedLinear)
    assert layer.weight.dtype is dtype
    got = outputs(model, name, dtype)
    assert got.dtype is want.dtype
    assert (got - want).norm() < 0.06 * want.norm()
