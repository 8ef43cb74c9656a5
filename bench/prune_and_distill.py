"""MiniLM pruned to 2:4 and int8, before and after distillation: python -m bench.prune_and_distill [--json F].

Embeddings of the 32 sentences of `lamina demo`, compared with those of the f32 model. Calibration and
distillation see other text, which is made of frames and words of the tokenizer and means nothing.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor, nn

import lamina
from bench.machine import describe
from bench.made_text import made_batches
from lamina.cli.demo.encoder import Encoder, embed, load_encoder
from lamina.cli.demo.sentences import SENTENCES


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scheme", default="sparse24-w8a8")
    parser.add_argument("--steps", type=int, default=320)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--save", type=Path, help="writes the state dict of the distilled float model")
    parser.add_argument("--resume", type=Path, help="distils on from such a state dict, on other text")
    parser.add_argument("--seed", type=int, default=1, help="of the text")
    options = parser.parse_args()
    encoder = load_encoder("cpu")
    teacher = encoder.model
    judge = Judge(encoder)
    rows = {"w8a8": judge.measure(teacher, "w8a8")}
    student = copy.deepcopy(teacher)
    pruned = lamina.prune(student, calibration=made_batches(encoder, 24, seed=0))
    print(str(pruned).splitlines()[-1], flush=True)
    rows[f"{options.scheme}, pruned"] = judge.measure(student, options.scheme)
    print(rows, flush=True)
    if options.resume:
        student.load_state_dict(torch.load(options.resume))
    data = made_batches(encoder, options.steps, options.seed)
    report = lamina.distill(student, teacher, data, learning_rate=options.learning_rate)
    print(report, flush=True)
    if options.save:
        torch.save(student.state_dict(), options.save)
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
            "resumed": options.resume is not None,
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


if __name__ == "__main__":
    main()
