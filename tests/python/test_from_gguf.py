"""lamina.integrations.transformers.from_gguf: config, weights and tokenizer of a small file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lamina
from lamina.checkpoint.formats.gguf_file import read_gguf
from lamina.nn import Int4Linear
from lamina.nn.packed_linear import PackedLinear
from tests.support.compare import assert_equal

gguf = pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")

from lamina.integrations.transformers import from_gguf  # noqa: E402
from tests.python.test_load_gguf import HEADS, HIDDEN, KV_HEADS, file_name, in_file, neighbours  # noqa: E402

Types = gguf.GGMLQuantizationType
# The letters of byte-level BPE: a space is written as this letter.
SPACE = "\u0120"
TOKENS = ["<end>", *(chr(code) for code in range(33, 127)), SPACE, "ab", f"{SPACE}c", "ab1", "12", "\u010a"]
MERGES = ["a b", f"{SPACE} c", "ab 1", "1 2"]
TEMPLATE = "{% for m in messages %}{{ m['content'] }}<end>{% endfor %}"
CONTROL = 3


def config(tied: bool) -> Any:
    return transformers.LlamaConfig(
        hidden_size=HIDDEN, intermediate_size=96, num_hidden_layers=2, num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS, vocab_size=len(TOKENS), tie_word_embeddings=tied, rms_norm_eps=1e-3,
        max_position_embeddings=77, rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
    )  # fmt: skip


def write(path: Path, state: dict[str, Tensor], **more: Any) -> dict[str, Tensor]:
    """Writes the model with matrices of Q4_1 and returns the values that the file holds."""
    writer = gguf.GGUFWriter(path, more.get("arch", "llama"))
    writer.add_block_count(2)
    writer.add_context_length(77)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(96)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-3)
    writer.add_rope_freq_base(5000.0)
    if "scaling" in more:
        writer.add_rope_scaling_type(more["scaling"])
    writer.add_tokenizer_model(more.get("tokenizer", "gpt2"))
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([CONTROL] + [1] * (len(TOKENS) - 1))
    writer.add_token_merges(MERGES)
    writer.add_eos_token_id(0)
    writer.add_chat_template(TEMPLATE)
    values: dict[str, Tensor] = {}
    for name, w in state.items():
        held, is_matrix = in_file(name, w), w.dim() == 2
        data = gguf.quantize(held, Types.Q4_1) if is_matrix else held
        writer.add_tensor(file_name(name), data, raw_dtype=Types.Q4_1 if is_matrix else Types.F32)
        back = torch.from_numpy((gguf.dequantize(data, Types.Q4_1) if is_matrix else held).copy())
        for part, heads in (("q_proj", HEADS), ("k_proj", KV_HEADS)):
            if f".{part}." in name:
                back = back[neighbours(torch.arange(len(back))[:, None], heads)[:, 0].argsort()]
        values[name] = back
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


def random_state(tied: bool) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(4)
    names = transformers.LlamaForCausalLM(config(tied)).state_dict()
    if tied:
        names.pop("lm_head.weight")
    return {name: torch.randn(t.shape, generator=g) * 0.2 for name, t in names.items()}


@pytest.mark.parametrize("tied", [False, True])
def test_the_model_of_a_file(tied: bool, tmp_path: Path) -> None:
    values = write(tmp_path / "m.gguf", random_state(tied))
    want = transformers.LlamaForCausalLM(config(tied)).eval()
    want.load_state_dict(values, strict=not tied)
    ids = torch.arange(9)[None] * 7 % len(TOKENS)

    model, _ = from_gguf(tmp_path / "m.gguf", dequantize=True)
    assert not any(isinstance(module, PackedLinear) for module in model.modules())
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied
    assert model.config.tie_word_embeddings is tied
    assert (model.config.max_position_embeddings, model.config.eos_token_id) == (77, 0)
    packed, _ = from_gguf(tmp_path / "m.gguf")
    assert sum(isinstance(module, Int4Linear) for module in packed.modules()) == 14 + (not tied)
    with torch.inference_mode():
        exact = want(ids).logits
        # The zero points of Q4_1, -m / d, are rounded to f32: some millionths of the largest output.
        for made in (model, packed):
            assert (made(ids).logits - exact).abs().max() < 2e-5 * exact.abs().max()
    for name, tensor in model.state_dict().items():
        if tensor.dim() == 1:
            assert_equal(tensor, values[name], name)


def test_activations_and_dtype_are_passed_on(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", random_state(True))
    model, _ = from_gguf(tmp_path / "m.gguf", activations="int8", dtype=torch.bfloat16)
    assert model.model.layers[0].mlp.up_proj.activations == "int8"
    assert model.model.embed_tokens.weight.dtype is torch.bfloat16


def test_the_tokenizer_of_a_file(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", random_state(True))
    _, tokenizer = from_gguf(tmp_path / "m.gguf")

    def tokens(text: str) -> list[str]:
        names: list[str] = tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])
        return names

    assert tokens("abab c") == ["ab", "ab", f"{SPACE}c"]
    assert tokens("ab12") == ["ab", "1", "2"]  # digits stand alone: neither "ab1" nor "12"
    assert tokens("x<end>y\n") == ["x", "<end>", "y", "\u010a"]
    assert tokenizer.decode(tokenizer("ab12 c\n")["input_ids"]) == "ab12 c\n"
    assert set(tokenizer("ab")) == {"input_ids", "attention_mask"}  # what every model takes
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<end>", 0)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], return_dict=False)
    assert ids == tokenizer("ab<end>")["input_ids"]


def test_arrays_of_the_file_are_lists(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", random_state(True))
    fields = read_gguf(tmp_path / "m.gguf").fields
    assert fields["tokenizer.ggml.tokens"] == TOKENS
    assert fields["tokenizer.ggml.token_type"] == [CONTROL] + [1] * (len(TOKENS) - 1)
    assert fields["tokenizer.ggml.merges"] == MERGES


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"arch": "mamba"}, "general.architecture of .* is 'mamba'; allowed: llama, qwen2, qwen3"),
        ({"scaling": gguf.RopeScalingType.YARN}, "llama.rope.scaling.type is 'yarn'"),
        (
            {"tokenizer": "llama"},
            "tokenizer.ggml.model and .pre of .* are 'llama' and 'smollm'; allowed: 'gpt2'",
        ),
    ],
)
def test_files_that_are_not_read_are_named(more: dict[str, Any], message: str, tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", random_state(True), **more)
    with pytest.raises(ValueError, match=message):
        from_gguf(tmp_path / "m.gguf")


def test_dequantize_excludes_what_says_how_to_pack(tmp_path: Path) -> None:
    for options in ({"activations": "int8"}, {"convert": "w8a8"}):
        with pytest.raises(ValueError, match=r"with dequantize=True; allowed: None"):
            lamina.load_checkpoint(nn.Module(), tmp_path, dequantize=True, **options)
