"""MiniLM pruned to 2:4 and int8, before and after distillation: python -m bench.prune_and_distill [--json F].

Embeddings of the 32 sentences of `lamina demo`, compared with those of the f32 model. Calibration and
distillation see other text: sentences that are made of frames and words of the tokenizer and mean nothing,
and sentences of Python's documentation with some words replaced. The prose of the demo, which is in
neither, served to choose the recipe.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor, nn

import lamina
from bench.documentation import documentation_sentences
from bench.machine import Noise, describe
from bench.made_text import alike_in_length, made_batches, made_sentences, with_other_words
from lamina.cli.demo.encoder import Encoder, embed, load_encoder
from lamina.cli.demo.prose import PROSE
from lamina.cli.demo.sentences import SENTENCES


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scheme", default="sparse24-w8a8")
    parser.add_argument("--steps", type=int, default=1000, help="of 16 sentences")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    encoder = load_encoder("cpu")
    teacher = encoder.model
    judge, prose = Judge(encoder, SENTENCES), Judge(encoder, prose_sentences())

    def measure(model: nn.Module, scheme: str) -> dict[str, float]:
        compressed = copy.deepcopy(model)
        lamina.compress(compressed, scheme)
        return judge.measure(compressed) | {"prose_cosine_mean": prose.measure(compressed)["cosine_mean"]}

    rows = {"w8a8": measure(teacher, "w8a8")}
    student = copy.deepcopy(teacher)
    pruned = lamina.prune(student, calibration=made_batches(encoder, 24, seed=0))
    print(str(pruned).splitlines()[-1], flush=True)
    rows[f"{options.scheme}, pruned"] = before = measure(student, options.scheme)
    data = training_batches(encoder, options.steps)
    noise = Noise()
    report = lamina.distill(student, teacher, data, learning_rate=options.learning_rate)
    noise_of_steps = noise.to_json()
    print(report, flush=True)
    rows[f"{options.scheme}, distilled"] = after = measure(student, options.scheme)
    print(
        "| model | cosine, mean | cosine, least | nearest kept | pairs found | cosine of prose, mean |\n"
        "|---|---:|---:|---:|---:|---:|"
    )
    for name, row in rows.items():
        print(
            f"| {name} | {row['cosine_mean']:.4f} | {row['cosine_min']:.4f} | "
            f"{row['nearest_kept']:.0f}/{len(SENTENCES)} | {row['pairs_found']:.0f}/{len(SENTENCES)} | "
            f"{row['prose_cosine_mean']:.4f} |"
        )
    recovered, of_prose = (
        (after[key] - before[key]) / (1 - before[key]) for key in ("cosine_mean", "prose_cosine_mean")
    )
    print(f"\nDistillation recovers {recovered:.0%} of the cosine lost, {of_prose:.0%} in the prose.")
    if options.json:
        found = {
            "machine": describe() | {"noise": noise_of_steps},
            "rows": [{"model": name} | row for name, row in rows.items()],
            "recovered": recovered,
            "recovered_of_prose": of_prose,
            "steps": len(report.losses),
            "learning_rate": options.learning_rate,
            "seconds": report.seconds,
            "losses": report.losses,
        }
        options.json.write_text(json.dumps(found, indent=2) + "\n")


def training_batches(encoder: Encoder, steps: int) -> list[Mapping[str, Tensor]]:
    """Batches of 16: half of the sentences made, half of the documentation, some of its words replaced."""
    half = 8 * steps
    documentation = documentation_sentences()
    order = random.Random(1)
    chosen: list[str] = []
    while len(chosen) < half:
        chosen += order.sample(documentation, min(half - len(chosen), len(documentation)))
    sentences = [*with_other_words(encoder, chosen, 0.4, seed=1), *made_sentences(encoder, half, seed=1)]
    if seen := {*chosen, *sentences} & {*SENTENCES, *prose_sentences()}:
        raise RuntimeError(f"the text for distillation has sentences that are judged: {seen}")
    return alike_in_length(encoder, sentences, seed=1)


def prose_sentences() -> list[str]:
    """The sentences of the prose with which the demo judges its language model."""
    return re.split(r"(?<=[.]) ", re.sub(r"\s+", " ", PROSE).strip())


class Judge:
    """Compares embeddings of sentences with those of the f32 model."""

    def __init__(self, encoder: Encoder, sentences: Sequence[str]) -> None:
        self._batch = encoder.tokenize(sentences)
        self._wanted = embed(encoder.model, self._batch)

    def measure(self, model: nn.Module) -> dict[str, float]:
        """Cosines and neighbours of a compressed model."""
        got = embed(model, self._batch)
        cosines = (got * self._wanted).sum(1).tolist()
        nearest = _nearest(got)
        return {
            "cosine_mean": mean(cosines),
            "cosine_min": min(cosines),
            "nearest_kept": float((nearest == _nearest(self._wanted)).sum()),
            "pairs_found": float((nearest == torch.arange(len(got)) ^ 1).sum()),
        }


def _nearest(embeddings: Tensor) -> Tensor:
    return (embeddings @ embeddings.T).fill_diagonal_(-2).argmax(1)


if __name__ == "__main__":
    main()
