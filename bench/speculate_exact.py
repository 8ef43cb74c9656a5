"""Speculative against plain decoding of SmolLM2, token by token: python -m bench.speculate_exact --json F.

Every scheme answers the same prompts greedily, plainly in a batch of one and with each draft in batches of
one and of eight, with float and with int8 keys. Where all linear layers are lamina's, every token must be the
same. With torch's linear layers, whose results depend on the number of rows, the divergences are reported.
The file is written after each comparison; a run that is started again goes on where the last one ended.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.machine import describe
from bench.results_file import save
from lamina.cli.demo import llm
from lamina.cli.demo.prose import PROSE
from lamina.integrations.transformers import PagedModel
from lamina.speculate import ClosedLoop, Decoded, Draft, DraftModel, PromptLookup, Request, Width, decode

EXACT = ("w8a8+head", "w4a16-file", "w4a8-file")
REPORTED = ("torch f32", "torch bf16")
DRAFT = "w4a8-file"
TREE = (0, 0, 0, 1, 1, 2, 4)
LENGTHS = (24, 48, 96, 32, 64, 40, 80, 56)  # tokens of the prompts of a round
Row = dict[str, Any]


def main() -> int:
    """Compares until the file has `--tokens` tokens; 1 if a scheme that must be exact is not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=100_000, help="compared tokens of all rows together")
    parser.add_argument("--answer", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--scheme", action="append", choices=(*EXACT, *REPORTED), help="default: all")
    options = parser.parse_args()
    schemes = options.scheme or [*EXACT, *REPORTED]
    rows: list[Row] = json.loads(options.json.read_text())["rows"] if options.json.exists() else []
    if sum(row["tokens"] for row in rows) < options.tokens:
        machine = describe()
        for row in compared(schemes, options.answer, options.tokens, rows):
            rows.append(row)
            save(options.json, {"machine": machine, "rows": rows})
            print(*(f"{name}={value}" for name, value in row.items()), flush=True)
    print(table(rows))
    return int(any(row["differing"] for row in rows if row["scheme"] in EXACT))


def compared(schemes: Sequence[str], answer: int, tokens: int, rows: Sequence[Row]) -> Iterator[Row]:
    """Yields comparisons that `rows` lacks until there are so many tokens; a round has new prompts."""
    models, tokenizer = load_models(schemes)
    prose = tokenizer(PROSE)["input_ids"]
    done = {key(row) for row in rows}
    total, number = sum(row["tokens"] for row in rows), 0
    while total < tokens:
        requests = prompts(prose, number, answer)
        for scheme in schemes:
            model = models[scheme]
            for kv in (model.dtype, torch.int8):
                plain: list[list[int]] = []
                for name, (make_draft, width) in drafts(models[DRAFT]).items():
                    for batch in ([0], list(range(len(LENGTHS)))):
                        row: Row = {"scheme": scheme, "kv": str(kv), "draft": name}
                        row |= {"batch": len(batch), "round": number, "answer": answer}
                        if key(row) in done:
                            continue
                        plain = plain or [decode(paged(model, kv), [one]).tokens[0] for one in requests]
                        found = decode(
                            paged(model, kv), [requests[i] for i in batch], make_draft(), width=width()
                        )
                        row |= difference([plain[i] for i in batch], found)
                        yield row
                        total += row["tokens"]
                        if total >= tokens:
                            return
        number += 1


def key(row: Row) -> tuple[Any, ...]:
    """The identity of a comparison."""
    return tuple(row[name] for name in ("scheme", "kv", "draft", "batch", "round", "answer"))


def load_models(schemes: Sequence[str]) -> tuple[dict[str, Any], Any]:
    """The models with the attention "lamina", those of the schemes and of the draft, and the tokenizer."""
    models: dict[str, Any] = {}
    tokenizer: Any = None
    for name, model, found in llm.load(list(dict.fromkeys([*schemes, DRAFT]))):
        tokenizer = found
        model.set_attn_implementation("lamina")
        models[name] = model.requires_grad_(False)
    return models, tokenizer


def paged(model: Any, kv: torch.dtype) -> PagedModel:
    """The model over a cache that has room for all prompts of a round, their answers and drafts."""
    return PagedModel(model, 2048, dtype=kv)


def prompts(prose: Sequence[int], number: int, answer: int) -> list[Request]:
    """The prompts of a round: parts of the prose."""
    begins = [(number * 101 + 37 * i) % (len(prose) - max(LENGTHS)) for i in range(len(LENGTHS))]
    return [Request(prose[at : at + n], answer) for at, n in zip(begins, LENGTHS, strict=True)]


def drafts(model: Any) -> dict[str, tuple[Callable[[], Draft], Callable[[], int | Width]]]:
    """The drafts and their widths, by name; the draft model has int8 keys."""
    return {
        "prompt lookup, chain": (lambda: PromptLookup(3), lambda: 4),
        "prompt lookup, closed loop": (lambda: PromptLookup(3), lambda: ClosedLoop(6, retry=8)),
        "int4, chain": (lambda: DraftModel(paged(model, torch.int8)), lambda: 4),
        "int4, tree": (lambda: DraftModel(paged(model, torch.int8), TREE), lambda: len(TREE)),
    }


def difference(plain: Sequence[Sequence[int]], found: Decoded) -> Row:
    """The tokens that were compared, and where answers differ.

    tokens     the tokens of the answers, up to and with the first that differs
    differing  how many answers differ
    first      for each of them the index of its first other token
    """
    tokens, first = 0, []
    for want, got in zip(plain, found.tokens, strict=True):
        at = next((i for i, (a, b) in enumerate(zip(want, got, strict=False)) if a != b), None)
        if at is None and len(want) != len(got):
            at = min(len(want), len(got))
        tokens += len(want) if at is None else at + 1
        first += [] if at is None else [at]
    counts = {"steps": found.steps, "drafted": found.drafted, "accepted": found.accepted}
    return {"tokens": tokens, "differing": len(first), "first": first, **counts}


def table(rows: Sequence[Row]) -> str:
    """The sums of each scheme, keys and draft as a table of Markdown."""
    sums: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0] * 4)
    for row in rows:
        of = sums[row["scheme"], row["kv"], row["draft"]]
        for i, name in enumerate(("tokens", "differing", "drafted", "accepted")):
            of[i] += row[name]
    lines = [
        "| scheme | keys | draft | tokens | answers that differ | accepted |",
        "|---|---|---|---:|---:|---:|",
    ]
    for names, (tokens, differing, drafted, accepted) in sums.items():
        share = f"{accepted / drafted:.0%}" if drafted else "-"
        lines.append(f"| {' | '.join(names)} | {tokens} | {differing} | {share} |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
