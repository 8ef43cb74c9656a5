"""Int4 weights without zero points, with integers and with floats: python -m bench.zero_points [--json F].

Both models of `lamina demo`, their linear layers rounded to nearest, scales in f16. The weights of
SmolLM2-135M-Instruct lie on a grid of Q4_1 with groups of 32, which float zero points with such groups find
again; those of all-MiniLM-L6-v2 were never rounded to 4 bits.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.machine import describe
from lamina.cli.demo.encoder import MODEL_NAME as ENCODER
from lamina.cli.demo.encoder import embed, load_encoder
from lamina.cli.demo.llm import BASELINE, HEAD, load
from lamina.cli.demo.llm import MODEL_NAME as LLM
from lamina.cli.demo.llm_measure import judge, log_probabilities
from lamina.cli.demo.measure import with_int8_activations
from lamina.cli.demo.prose import PROSE
from lamina.cli.demo.sentences import SENTENCES
from lamina.compression import compress

WEIGHTS: dict[str, tuple[str, dict[str, Any]]] = {
    "symmetric": ("w4a16", {}),
    "integer zero points": ("w4a16_asymmetric", {"zero_point_dtype": torch.uint8}),
    "float zero points": ("w4a16_asymmetric", {"zero_point_dtype": torch.float16}),
}
GROUPS = (32, 128)
Judge = Callable[[nn.Module], dict[str, float]]


def main() -> None:
    """Prints a line for each way, and writes the file anew after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for row in chain(of_model(ENCODER, *encoder()), of_model(LLM, *language_model(), head=HEAD)):
        rows.append(row)
        print(
            " ".join(f"{value:.4f}" if isinstance(value, float) else str(value) for value in row.values()),
            flush=True,
        )
        if options.json:
            text = json.dumps({"machine": describe(), "rows": rows}, indent=2)
            options.json.write_text(text + "\n")


def of_model(name: str, model: nn.Module, judged: Judge, head: str | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a float model."""
    for group in GROUPS:
        for weights, (scheme, how) in WEIGHTS.items():
            packed = copy.deepcopy(model)
            report = compress(
                packed, scheme, group=group, head=head, scale_dtype=torch.float16, progress=False, **how
            )
            row = {"model": name, "weights": weights, "group": group, "linear_bytes": report.bytes_after}
            yield row | {"activations": "float"} | judged(packed)
            yield row | {"activations": "int8"} | judged(with_int8_activations(packed))


def encoder() -> tuple[nn.Module, Judge]:
    """The encoder, and the distance of its embeddings from those of the float model."""
    made = load_encoder("cpu")
    batch = made.tokenize(SENTENCES)
    want = embed(made.model, batch)

    def judged(model: nn.Module) -> dict[str, float]:
        cosines = (embed(model, batch) * want).sum(1)
        return {"cosine_mean": cosines.mean().item(), "cosine_min": cosines.min().item()}

    return made.model, judged


def language_model() -> tuple[nn.Module, Judge]:
    """The language model, and its perplexity and its distance from the float model on the demo's text."""
    ((_, model, tokenizer),) = load([BASELINE])
    ids = tokenizer(PROSE, return_tensors="pt")["input_ids"]
    want = log_probabilities(model, ids)
    return model, lambda packed: asdict(judge(log_probabilities(packed, ids), want, ids))


if __name__ == "__main__":
    main()
