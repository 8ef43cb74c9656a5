"""SmolLM2 with and without drafts: the times of the steps, and the tokens, of each cell of a grid."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from rich.progress import Progress

from bench.machine import describe
from bench.results_file import save
from bench.study.formats import FORMATS, IN_FILE, PRUNED, load
from bench.study.texts import PROMPTS
from lamina.cli.demo import llm
from lamina.integrations.transformers import PagedModel
from lamina.speculate import (
    ClosedLoop,
    Decoded,
    Draft,
    DraftModel,
    FixedWidth,
    PromptLookup,
    Request,
    Step,
    Width,
    decode,
)

ANSWER = 48  # tokens of an answer
ALONE = 4  # prompts of each text that run in a batch of one
TREE = (0, 0, 0, 1, 1, 2, 4)
DRAFT_FORMAT = "w4a8"  # of the model that drafts for itself
LOOKUP_N = 3
MOST = 7
WIDTHS = (1, 2, 3, 5, 7)  # of prompt lookup
TOKENS = 4096  # room in a cache


class Cell(NamedTuple):
    """A cell of the grid.

    format  of the linear layers
    kv      dtype of the cache: that of the activations, or int8
    text    copy (the answer repeats its prompt) or answer
    batch   requests that run together
    draft   none, lookup, loop (lookup, and the closed loop chooses its width), self or tree
    width   drafts of a request in a step
    """

    format: str
    kv: str
    text: str
    batch: int
    draft: str
    width: int


def grid() -> list[Cell]:
    """The cells in the order of their importance."""
    drafts = [("none", 0), ("loop", MOST), *(("lookup", k) for k in WIDTHS)]
    own = [*(("self", k) for k in (1, 2, 3, 4, 6)), ("tree", len(TREE))]
    found = []
    for batch in (1, 4, 8):
        for text in PROMPTS:
            for name in IN_FILE:
                found += [Cell(name, own_kv(name), text, batch, *draft) for draft in drafts]
    for batch, text in ((1, "answer"), (1, "copy"), (4, "answer"), (8, "answer")):
        for name in IN_FILE:
            found += [Cell(name, own_kv(name), text, batch, *draft) for draft in own]
    for batch in (1, 8):
        for name in IN_FILE:
            some = [("none", 0), ("loop", MOST), ("lookup", 3), ("lookup", 7)]
            found += [Cell(name, "int8", "copy", batch, *draft) for draft in some]
    for text in PROMPTS:
        for name in PRUNED:
            found += [Cell(name, own_kv(name), text, 1, *draft) for draft in drafts]
    return found


def own_kv(name: str) -> str:
    """The dtype of the activations, which the cache has by default."""
    return "bf16" if FORMATS[name].dtype is torch.bfloat16 else "f32"


class Recorder:
    """A Width that keeps the steps of another one."""

    def __init__(self, width: Width) -> None:
        self.width, self.most, self.steps = width, width.most, list[Step]()

    def choose(self, requests: int, parents: Sequence[int]) -> int:
        """Leaves the choice to the other one."""
        return self.width.choose(requests, parents)

    def observe(self, step: Step) -> None:
        """Keeps the step, and passes it on."""
        self.steps.append(step)
        self.width.observe(step)


def measure(file: Path, minutes: float | None, rounds: int) -> None:
    """Adds measurements of the cells that the file lacks: the first of all cells, then the second of all."""
    content: dict[str, Any] = {"machine": describe(), "rows": []}
    if file.exists():
        content = json.loads(file.read_text())
    end = math.inf if minutes is None else time.monotonic() + 60 * minutes
    done = {(Cell(*row["cell"]), row["round"]) for row in content["rows"]}
    models = load((*IN_FILE, *PRUNED))
    prompts = tokenize(PROMPTS)
    left = [
        (number, cell) for number in range(rounds) for cell in in_turns(number) if (cell, number) not in done
    ]
    with Progress() as progress:
        task = progress.add_task("decoding", total=len(left))
        for number, cell in left:
            if time.monotonic() > end:
                break
            progress.update(task, advance=1, description=" ".join(map(str, cell)))
            row = {"cell": list(cell), "round": number, **run(cell, models, prompts[cell.text])}
            content["rows"].append(row)
            save(file, content)


def in_turns(number: int) -> list[Cell]:
    """The grid; cells that differ only in format and draft are in an order that is drawn for each round."""
    groups: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in grid():
        groups.setdefault((cell.batch, cell.text, cell.kv == "int8"), []).append(cell)
    shuffle = random.Random(number).shuffle
    for cells in groups.values():
        shuffle(cells)
    return [cell for cells in groups.values() for cell in cells]


def tokenize(texts: Mapping[str, Iterable[str]]) -> dict[str, list[list[int]]]:
    """The tokens of the prompts, each as a chat of one message."""
    _, _, tokenizer = next(iter(llm.load(["w4a16-file"])))

    def ids(text: str) -> list[int]:
        chat = [{"role": "user", "content": text}]
        found = tokenizer.apply_chat_template(chat, add_generation_prompt=True)
        return list(found["input_ids"] if isinstance(found, Mapping) else found)

    return {name: [ids(text) for text in some] for name, some in texts.items()}


def run(cell: Cell, models: Mapping[str, Any], prompts: Sequence[list[int]]) -> dict[str, Any]:
    """Decodes the prompts of a cell. No token stops an answer, so that all cells have as many tokens."""
    requests = [Request(prompt, ANSWER) for prompt in prompts]
    batches = [[one] for one in requests[:ALONE]] if cell.batch == 1 else [requests[: cell.batch]]
    kv = {"f32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}[cell.kv]
    paged = PagedModel(models[cell.format], TOKENS, dtype=kv)
    make_draft = draft_of(cell, models)
    found: list[Decoded] = []
    width = Recorder(ClosedLoop(MOST) if cell.draft == "loop" else FixedWidth(cell.width))
    for batch in batches:
        found.append(decode(paged, batch, make_draft(), width=width))
    return {
        "tokens": [
            sum(len(answer) - 1 for answer in one.tokens) for one in found
        ],  # the prompt's pass made one
        "steps": [one.steps for one in found],
        "drafted": [one.drafted for one in found],
        "accepted": [one.accepted for one in found],
        "draft_s": [one.draft_s for one in found],
        "verify_s": [one.verify_s for one in found],
        "context": sum(len(r.prompt) for b in batches for r in b) / sum(map(len, batches)) + ANSWER / 2,
        "by_rows": by_rows(width.steps),
    }


def draft_of(cell: Cell, models: Mapping[str, Any]) -> Callable[[], Draft | None]:
    """Makes the draft of a cell."""
    if cell.draft == "none":
        return lambda: None
    if cell.draft in ("lookup", "loop"):
        return lambda: PromptLookup(LOOKUP_N)
    parents = TREE if cell.draft == "tree" else None
    return lambda: DraftModel(PagedModel(models[DRAFT_FORMAT], TOKENS, dtype=torch.int8), parents)


def by_rows(steps: Sequence[Step]) -> list[dict[str, float]]:
    """For each number of rows and requests: how many steps had it, and their median seconds."""
    groups: dict[tuple[int, int], list[Step]] = {}
    for step in steps:
        groups.setdefault((step.rows, len(step.parents)), []).append(step)
    return [
        {
            "rows": rows,
            "requests": requests,
            "count": len(some),
            "verify_s": median(step.verify_s for step in some),
            "draft_s": median(step.draft_s for step in some),
        }
        for (rows, requests), some in sorted(groups.items())
    ]
