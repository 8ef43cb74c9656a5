"""MiniLM pruned to 2:4 and int8, before and after distillation: python -m bench.prune_and_distill [--json F].

Embeddings of the 32 sentences of `lamina demo`, compared with those of the f32 model. Calibration and
distillation see other text: the documentation that every Python installs.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
from collections.abc import Mapping
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor, nn

import lamina
from bench.machine import describe
from lamina.cli.demo.encoder import Encoder, embed, load_encoder
from lamina.cli.demo.sentences import SENTENCES, calibration_sentences


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scheme", default="sparse24-w8a8")
    parser.add_argument("--steps", type=int, default=320)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    encoder = load_encoder("cpu")
    teacher = encoder.model
    judge = Judge(encoder)
    rows = {"w8a8": judge.measure(teacher, "w8a8")}
    student = copy.deepcopy(teacher)
    sentences = calibration_sentences()
    calibration = [encoder.tokenize(sentences[at : at + 16]) for at in range(0, len(sentences), 16)]
    pruned = lamina.prune(student, calibration=calibration)
    print(str(pruned).splitlines()[-1], flush=True)
    rows[f"{options.scheme}, pruned"] = judge.measure(student, options.scheme)
    print(rows, flush=True)
    data = training_batches(encoder, options.steps)
    report = lamina.distill(student, teacher, data, learning_rate=options.learning_rate)
    print(report, flush=True)
    rows[f"{options.scheme}, distilled"] = judge.measure(student, options.scheme)
    before, after = (row["cosine_mean"] for row in list(rows.values())[1:])
    recovered = (after - before) / (1 - before)
    print("| model | cosine, mean | cosine, least | nearest kept | pairs found |\n|---|---:|---:|---:|---:|")
    for name, row in rows.items():
        print(
            f"| {name} | {row['cosine_mean']:.4f} | {row['cosine_min']:.4f} | "
            f"{row['nearest_kept']:.0f}/{len(SENTENCES)} | {row['pairs_found']:.0f}/{len(SENTENCES)} |"
        )
    print(f"\nDistillation recovers {recovered:.0%} of the cosine that pruning lost.")
    if options.json:
        found = {
            "machine": describe(),
            "rows": [{"model": name} | row for name, row in rows.items()],
            "recovered": recovered,
            "steps": len(report.losses),
            "learning_rate": options.learning_rate,
            "seconds": report.seconds,
            "losses": report.losses,
        }
        options.json.write_text(json.dumps(found, indent=2) + "\n")


class Judge:
    """Compares embeddings with those of the f32 model."""

    def __init__(self, encoder: Encoder) -> None:
        self._batch = encoder.tokenize(SENTENCES)
        self._wanted = embed(encoder.model, self._batch)

    def measure(self, model: nn.Module, scheme: str) -> dict[str, float]:
        """Cosines and neighbours of a compressed copy."""
        compressed = copy.deepcopy(model)
        lamina.compress(compressed, scheme)
        got = embed(compressed, self._batch)
        cosines = (got * self._wanted).sum(1).tolist()
        nearest = _nearest(got)
        return {
            "cosine_mean": mean(cosines),
            "cosine_min": min(cosines),
            "nearest_kept": float((nearest == _nearest(self._wanted)).sum()),
            "pairs_found": float((nearest == torch.arange(len(SENTENCES)) ^ 1).sum()),
        }


def _nearest(embeddings: Tensor) -> Tensor:
    return (embeddings @ embeddings.T).fill_diagonal_(-2).argmax(1)


def training_batches(encoder: Encoder, steps: int) -> list[Mapping[str, Tensor]]:
    """Windows of 14 words of Python's documentation, 16 in a batch, always in the same random order."""
    from pydoc_data.topics import topics

    words = re.sub(r"[*`_=\-]{2,}|\s+", " ", " ".join(topics.values())).split()
    windows = [" ".join(words[at : at + 14]) for at in range(0, len(words), 14)]
    generator = torch.Generator().manual_seed(0)
    order = [int(i) for i in torch.randperm(len(windows), generator=generator)]
    order *= -(-16 * steps // len(order))
    return [encoder.tokenize([windows[i] for i in order[at : at + 16]]) for at in range(0, 16 * steps, 16)]


if __name__ == "__main__":
    main()
