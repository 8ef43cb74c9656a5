"""bench.speculate_exact: it goes on after an interruption, and it sees a token that differs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

import lamina  # noqa: E402
from bench import speculate_exact  # noqa: E402
from lamina.integrations.transformers import accelerate  # noqa: E402
from lamina.speculate import Decoded  # noqa: E402


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small model in place of SmolLM2, and prompts of a few tokens."""

    def load(schemes: list[str]) -> tuple[dict[str, Any], Any]:
        torch.manual_seed(1)
        sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = transformers.LlamaConfig(**sizes, vocab_size=60, initializer_range=0.3)
        model = transformers.LlamaForCausalLM(config).eval()
        lamina.compress(model, "w8a8", head="w8a8")
        accelerate(model)
        return {name: model for name in [*schemes, speculate_exact.DRAFT]}, lambda text: {
            "input_ids": [ord(letter) % 60 for letter in text[:400]]
        }

    monkeypatch.setattr(speculate_exact, "load_models", load)
    monkeypatch.setattr(speculate_exact, "LENGTHS", (3, 5, 4))


def run(monkeypatch: pytest.MonkeyPatch, file: Path, tokens: int) -> int:
    options = ["--json", str(file), "--tokens", str(tokens), "--answer", "5", "--scheme", "w8a8+head"]
    monkeypatch.setattr(sys, "argv", ["speculate_exact", *options])
    return speculate_exact.main()


@pytest.mark.usefixtures("tiny")
def test_a_run_that_was_stopped_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole.json", tmp_path / "stopped.json"
    assert run(monkeypatch, whole, 100) == 0
    assert run(monkeypatch, stopped, 30) == 0
    assert 30 <= sum(row["tokens"] for row in json.loads(stopped.read_text())["rows"]) < 60
    assert run(monkeypatch, stopped, 100) == 0
    rows = [[speculate_exact.key(row) for row in json.loads(f.read_text())["rows"]] for f in (whole, stopped)]
    assert rows[0] == rows[1] and len(set(rows[0])) == len(rows[0]) >= 7


@pytest.mark.usefixtures("tiny")
def test_a_token_that_differs_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    decode = speculate_exact.decode

    def wrong(*given: Any, **options: Any) -> Decoded:
        found = decode(*given, **options)
        if options:
            found.tokens[0][3] += 1
        return found

    monkeypatch.setattr(speculate_exact, "decode", wrong)
    assert run(monkeypatch, tmp_path / "found.json", 10) == 1
    row = json.loads((tmp_path / "found.json").read_text())["rows"][0]
    assert (row["differing"], row["first"], row["tokens"]) == (1, [3], 4)
