"""lamina.load_checkpoint of .gguf files, written by the package gguf, for a small Llama of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import lamina
from lamina.nn import Int4Linear
from tests.support.cases import generator
from tests.support.compare import assert_equal

gguf = pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")

HEADS, KV_HEADS, HIDDEN = 4, 2, 64
Types = gguf.GGMLQuantizationType


def llama(tied: bool = False) -> Any:
    """The model on the meta device."""
    config = transformers.LlamaConfig(
        hidden_size=HIDDEN, intermediate_size=96, num_hidden_layers=2, num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS, vocab_size=100, tie_word_embeddings=tied,
    )  # fmt: skip
    with torch.device("meta"):
        return transformers.LlamaForCausalLM(config).eval()


def random_state(model: nn.Module) -> dict[str, Tensor]:
    g = generator("llama")
    return {name: torch.randn(t.shape, generator=g) * 0.2 for name, t in model.state_dict().items()}


def neighbours(w: Tensor, heads: int) -> Tensor:
    """llama.cpp's converter: of the two halves of each head, row i of both becomes neighbours."""
    half = len(w) // heads // 2
    rows = [
        head * 2 * half + which * half + i for head in range(heads) for i in range(half) for which in (0, 1)
    ]
    return w[rows]


def file_name(name: str) -> str:
    table = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    parts = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    stem, _, part = name.rpartition(".")
    if stem in table:
        return f"{table[stem]}.{part}"
    _, _, number, rest = stem.split(".", 3)
    return f"blk.{number}.{parts[rest]}.{part}"


def in_file(name: str, w: Tensor) -> NDArray[np.float32]:
    heads = {"q_proj": HEADS, "k_proj": KV_HEADS}.get(name.split(".")[-2])
    array: NDArray[np.float32] = (w if heads is None else neighbours(w, heads)).numpy()
    return array


def write(path: Path, state: dict[str, Tensor], kind: Any, arch: str = "llama") -> dict[str, Tensor]:
    """Writes the model, its matrices in blocks of `kind`. Returns the dequantised state, in its own order."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(2)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    values = {}
    for name, w in state.items():
        held = in_file(name, w)
        is_matrix = w.dim() == 2
        data = gguf.quantize(held, kind) if is_matrix else held
        writer.add_tensor(file_name(name), data, raw_dtype=kind if is_matrix else Types.F32)
        back = gguf.dequantize(data, kind) if is_matrix else held
        values[name] = torch.from_numpy(back.copy())
        for part, heads in (("q_proj", HEADS), ("k_proj", KV_HEADS)):
            if f".{part}." in name:
                order = neighbours(torch.arange(len(back))[:, None], heads)[:, 0]
                values[name] = values[name][order.argsort()]
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


@pytest.mark.parametrize("kind", [Types.F32, Types.F16, Types.BF16], ids=str)
def test_floats(kind: Any, tmp_path: Path) -> None:
    model, path = llama(), tmp_path / "m.gguf"
    want = write(path, random_state(model), kind)
    assert lamina.load_checkpoint(model, path).layers == {}
    for name, tensor in model.state_dict().items():
        assert_equal(tensor, want[name], name)
    assert model(torch.tensor([[1, 2, 3]])).logits.isfinite().all()


@pytest.mark.parametrize("activations", [None, "int8"])
def test_q4_0_is_taken_as_it_is(activations: str | None, tmp_path: Path) -> None:
    model, path = llama(), tmp_path / "m.gguf"
    want = write(path, random_state(model), Types.Q4_0)
    report = lamina.load_checkpoint(model, path, activations=activations)
    assert set(report.layers.values()) == {"w4a16" if activations is None else "w4a8"}
    assert len(report.layers) == 15
    for name in report.layers:
        layer = model.get_submodule(name)
        assert isinstance(layer, Int4Linear)
        assert_equal(layer.dequantize_weight(), want[f"{name}.weight"], name)
    assert_equal(model.model.embed_tokens.weight.detach(), want["model.embed_tokens.weight"])


def test_q4_1_has_float_zero_points(tmp_path: Path) -> None:
    """w = d q + m exactly becomes d (q + m / d), where m / d is rounded to f32."""
    model, path = llama(), tmp_path / "m.gguf"
    state = random_state(model)
    state["model.layers.0.mlp.up_proj.weight"][3, 32:64] = 0.125  # d = 0
    state["model.layers.0.mlp.up_proj.weight"][4] += 1000
    want = write(path, state, Types.Q4_1)
    report = lamina.load_checkpoint(model, path)
    assert set(report.layers.values()) == {"w4a16_asymmetric"}
    for name in report.layers:
        layer, w = model.get_submodule(name), want[f"{name}.weight"]
        difference = (layer.dequantize_weight().double() - w).abs()
        size = w.abs() + 2 * layer.weight_scale.T.repeat_interleave(32, 1) * 15
        least = layer.weight_scale * layer.weight_zero_point
        size += least.abs().T.repeat_interleave(32, 1)
        assert bool((difference <= 4 * 2.0**-24 * size).all()), name
        assert layer.half().weight_zero_point.dtype is torch.float32
    up = model.model.layers[0].mlp.up_proj
    assert_equal(up.dequantize_weight()[3, 32:64], torch.full((32,), 0.125))
    x = torch.randn(3, HIDDEN, generator=generator("x"))
    exact = x.double() @ up.dequantize_weight().double().T
    assert (up(x).double() - exact).abs().max() < 1e-6 * exact.abs().max()


@pytest.mark.parametrize("kind", [Types.Q8_0, Types.Q5_1], ids=str)
def test_other_types_are_converted_with_their_error(kind: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    want = write(path, random_state(llama()), kind)
    with pytest.raises(
        ValueError, match=rf"no product takes its weight, {kind.name} \(gguf\); pass convert="
    ):
        lamina.load_checkpoint(llama(), path)
    model = llama()
    report = lamina.load_checkpoint(model, path, convert="w8a8")
    assert len(report.converted) == 15
    assert all(
        stored == f"{kind.name} (gguf)" and 1e-3 < error < 2e-2 for stored, error in report.converted.values()
    )
    kept = llama()
    assert set(lamina.load_checkpoint(kept, path, convert="float").layers.values()) == {"float"}
    for name, tensor in kept.state_dict().items():
        assert_equal(tensor, want[name], name)


@pytest.mark.parametrize("kind", [Types.Q4_K, Types.Q6_K], ids=str)
def test_k_quants_are_converted(kind: Any, tmp_path: Path) -> None:
    """The package does not quantise to these types, so the blocks are random bytes with finite scales."""

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lm_head = nn.Linear(256, 8, bias=False)

    size = gguf.GGML_QUANT_SIZES[kind][1]
    blocks = torch.randint(0, 256, (8, size), generator=generator("blocks"), dtype=torch.uint8).numpy()
    place = slice(0, 4) if kind is Types.Q4_K else slice(size - 2, size)
    blocks[:, place] = np.tile(
        np.array([0.01, 0.02][: (place.stop - place.start) // 2], np.float16).view(np.uint8), (8, 1)
    )
    writer = gguf.GGUFWriter(tmp_path / "k.gguf", "llama")
    writer.add_block_count(1)
    writer.add_head_count(1)
    writer.add_tensor("output.weight", blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model = Wide()
    report = lamina.load_checkpoint(model, tmp_path / "k.gguf", convert="w8a8")
    (stored, error), want = report.converted["lm_head"], torch.from_numpy(gguf.dequantize(blocks, kind))
    assert stored == f"{kind.name} (gguf)"
    got = model.lm_head.dequantize_weight()
    assert error == pytest.approx(float((got - want).norm() / want.norm()), rel=1e-4)
    assert error < 0.02


def test_a_tied_head(tmp_path: Path) -> None:
    model, path = llama(tied=True), tmp_path / "m.gguf"
    state = random_state(model)
    state.pop("lm_head.weight", None)
    want = write(path, state, Types.Q4_0)
    lamina.load_checkpoint(model, path)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert_equal(model.lm_head.weight.detach(), want["model.embed_tokens.weight"])


def test_files_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    model, path = llama(), tmp_path / "m.gguf"
    state = random_state(model)
    write(path, state, Types.Q4_0, arch="mamba")
    with pytest.raises(ValueError, match=r"architecture of .* is 'mamba'; allowed: llama"):
        lamina.load_checkpoint(model, path)
    lacking = {name: w for name, w in state.items() if not name.endswith("1.mlp.up_proj.weight")}
    write(path, lacking, Types.Q4_0)
    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp\.up_proj\.weight is missing"):
        lamina.load_checkpoint(model, path)
    write(path, state, Types.Q4_0)
    smaller = llama()
    smaller.model.layers = smaller.model.layers[:1]
    with pytest.raises(
        ValueError, match=r"blk\.1\.attn_k\.weight .* is in the checkpoint, and the model lacks it"
    ):
        lamina.load_checkpoint(smaller, path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"m\.gguf is damaged or unknown: "):
        lamina.load_checkpoint(model, path)
    path.write_bytes(b"GGML" * 10)
    with pytest.raises(ValueError, match=r"m\.gguf is damaged or unknown: "):
        lamina.load_checkpoint(model, path)
