"""MiniLM pruned to 2:4 and int8, before and after distillation: python -m bench.prune_and_distill [--json F].

Embeddings of the 32 sentences of `lamina demo`, compared with those of the f32 model. Calibration and
distillation see other text, which is made of frames and words of the tokenizer and means nothing.
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
from lamina.cli.demo.sentences import SENTENCES

# Frames of sentences, none of them from the sentences that are judged; words of the tokenizer fill the gaps.
TEMPLATES = (
    "My _ told me that the _ was _ and the _ had _.", "Why do _ _ when the _ is so _?",
    "There is a _ _ in the _ near the _.", "They _ the _ with a _ because it was too _.",
    "If you _ your _, the _ will _ you.", "_ and _ are the two most _ _ of the _.",
    "Nobody _ how the _ _ came to the _.", "I would rather _ a _ than _ another _.",
    "In _, the _ of _ _ was _ by a _.", "This _ is made of _, _ and a little _.",
    "He said that his _ could _ any _ within an hour.", "It was the _ _ we had ever _.",
    "Some _ _ while others _ in the _.", "Could you _ me the _ to the _ _?",
    "The _, which _ last year, is now _ again.", "Without _, a _ can not _ its _.",
    "Scientists _ that _ _ makes _ more _.", "You should _ the _ as soon as the _ _.",
    "Many _ in _ still _ their _ by hand.", "Its _ was _, but its _ was _.",
    "_ _ _ _ _ _ _ _ _ _.", "the _ of _ and _ _ for _ _", "_: a _ guide to _ and _",
)  # fmt: skip


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scheme", default="sparse24-w8a8")
    parser.add_argument("--steps", type=int, default=320)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--save", type=Path, help="the state dict of the distilled float model")
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
    data = made_batches(encoder, options.steps, seed=1)
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


def made_batches(encoder: Encoder, count: int, seed: int) -> list[Mapping[str, Tensor]]:
    """Batches of 16 made sentences: a template each, its gaps filled with words of the tokenizer."""
    words = _words(encoder)
    generator = torch.Generator().manual_seed(seed)

    def sentence() -> str:
        template = TEMPLATES[int(torch.randint(len(TEMPLATES), (), generator=generator))]
        # The tokenizer lists common words first: the square prefers them.
        places = torch.rand(template.count("_"), generator=generator).square() * len(words)
        for place in places.tolist():
            template = template.replace("_", words[int(place)], 1)
        return template

    return [encoder.tokenize([sentence() for _ in range(16)]) for _ in range(count)]


def _words(encoder: Encoder) -> list[str]:
    """The words of three letters or more that are one token, common ones first."""
    return [word for word in encoder.tokens if re.fullmatch("[a-z]{3,}", word)]


if __name__ == "__main__":
    main()
