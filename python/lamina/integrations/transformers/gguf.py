"""A .gguf file as a model and a tokenizer of transformers; lamina itself reads the file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from lamina.checkpoint import load_checkpoint
from lamina.checkpoint.formats.gguf_file import GgufFile, read_gguf

OP = "from_gguf"
CONFIGS: dict[str, type[PreTrainedConfig]] = {
    "llama": LlamaConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
}
# Names of a config of transformers, and the fields of a file that hold their values.
FIELDS = {
    "num_hidden_layers": "block_count", "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length", "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count", "num_key_value_heads": "attention.head_count_kv",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}  # fmt: skip
CONTROL = 3  # type of the tokens that are no text
TOKENS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def from_gguf(
    path: str | os.PathLike[str],
    *,
    activations: str | None = None,
    convert: str | None = None,
    dequantize: bool = False,
    dtype: torch.dtype = torch.float32,
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The model of a .gguf file with lamina's packed layers, and its tokenizer.

    path        a file of the architecture llama, qwen2 or qwen3, whose tokenizer is a byte-level BPE of the
                kinds "gpt-2" and "smollm"
    activations, convert, dequantize   as in lamina.load_checkpoint, which takes the weights as they are
    dtype       of the tensors that are not packed
    returns     the model in eval mode on the CPU, and its tokenizer with the chat template of the file
    Raises      ValueError for a file that is damaged, of another architecture, with scaled rotary positions
                or another tokenizer; the message names the field. Also the errors of lamina.load_checkpoint

    transformers needs the package gguf for from_pretrained(..., gguf_file=...), and dequantises all weights.
    """
    file = read_gguf(Path(path))
    config = _config(Path(path), file)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    load_checkpoint(model, path, activations=activations, convert=convert, dequantize=dequantize)
    return model, _tokenizer(Path(path), file)


def _config(path: Path, file: GgufFile) -> PreTrainedConfig:
    arch = file.fields.get("general.architecture")
    if arch not in CONFIGS:
        raise ValueError(f"{OP}: general.architecture of {path} is {arch!r}; allowed: {', '.join(CONFIGS)}")
    scaling = file.fields.get(f"{arch}.rope.scaling.type", "none")
    if scaling != "none" or "rope_freqs.weight" in file.tensors:
        raise ValueError(
            f"{OP}: rotary positions of {path} are scaled, {arch}.rope.scaling.type is {scaling!r}; "
            "allowed: none"
        )

    def field(name: str, default: Any = None) -> Any:
        value = file.fields.get(f"{arch}.{name}", default)
        if value is None or isinstance(value, list):
            raise ValueError(f"{OP}: {path} must have one value in {arch}.{name}, got {value!r}")
        return value

    heads = field("attention.head_count")
    options = {name: field(at, heads if at.endswith("_kv") else None) for name, at in FIELDS.items()}
    head_dim = field("attention.key_length", options["hidden_size"] // heads)
    if arch != "qwen2":  # which derives it
        options["head_dim"] = head_dim
    tokens = {f"{name}_id": file.fields.get(f"tokenizer.ggml.{at}_token_id") for name, at in TOKENS.items()}
    return CONFIGS[arch](
        **options,
        **{name: value for name, value in tokens.items() if value is not None},
        vocab_size=len(file.fields.get("tokenizer.ggml.tokens", ())),
        tie_word_embeddings="output.weight" not in file.tensors,
        rope_parameters={"rope_type": "default", "rope_theta": field("rope.freq_base", 10000.0)},
        architectures=[f"{CONFIGS[arch].__name__.removesuffix('Config')}ForCausalLM"],
    )


def _tokenizer(path: Path, file: GgufFile) -> PreTrainedTokenizerFast:
    def field(name: str) -> Any:
        return file.fields.get(f"tokenizer.{name}")

    splits: dict[str, list[Any]] = {
        "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
        "smollm": [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ],
    }
    if field("ggml.model") != "gpt2" or field("ggml.pre") not in splits:
        raise ValueError(
            f"{OP}: tokenizer.ggml.model and .pre of {path} are {field('ggml.model')!r} and "
            f"{field('ggml.pre')!r}; allowed: 'gpt2' with {', '.join(map(repr, splits))}"
        )
    tokens: list[str] = field("ggml.tokens") or []
    merges = [tuple(merge.split(" ", 1)) for merge in field("ggml.merges") or []]
    own = Tokenizer(models.BPE({token: at for at, token in enumerate(tokens)}, merges))
    own.pre_tokenizer = pre_tokenizers.Sequence(splits[field("ggml.pre")])
    own.decoder = decoders.ByteLevel()
    kinds = field("ggml.token_type") or []
    own.add_special_tokens(
        [
            AddedToken(token, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind == CONTROL
        ]
    )
    numbers = {name: field(f"ggml.{at}_token_id") for name, at in TOKENS.items()}
    named = {name: tokens[number] for name, number in numbers.items() if number is not None}
    return PreTrainedTokenizerFast(
        tokenizer_object=own,
        chat_template=field("chat_template"),
        model_input_names=["input_ids", "attention_mask"],
        **named,
    )
