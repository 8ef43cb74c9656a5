"""The measured cells of the study, and what follows from them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean, quantiles
from typing import Any

from bench.growth import Line
from bench.models import MODELS
from bench.study.decode import DRAFT_FORMAT, TREE, Cell
from bench.study.formats import IN_FILE
from bench.study.step_time import Attention, Linear, StepTime

FOLDER = Path(__file__).resolve().parents[1] / "results" / "epyc-zen4-2core"
KERNELS, DECODE, EXACT = (
    FOLDER / f"{name}.json" for name in ("study_kernels", "study_decode", "speculate_exact")
)
RESAMPLES = 2000


class Decoding:
    """The cells that were measured: the sums of their rounds."""

    def __init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self.rows: dict[Cell, list[Mapping[str, Any]]] = {}
        for row in rows:
            self.rows.setdefault(Cell(*row["cell"]), []).append(row)

    @property
    def of_tables(self) -> dict[Cell, list[Mapping[str, Any]]]:
        """Those of formats that are in the tables of kernels."""
        return {cell: rows for cell, rows in self.rows.items() if cell.format in IN_FILE}

    def tokens_per_s(self, cell: Cell) -> float:
        """Tokens of all requests for each second after the prompts, at the median time of steps of a kind."""
        rows = self.rows[cell]
        return sum(sum(row["tokens"]) for row in rows) / sum(map(seconds, rows))

    def gain(self, cell: Cell) -> float:
        """The speed relative to plain decoding of the same format."""
        return self.tokens_per_s(cell) / self.tokens_per_s(cell._replace(draft="none", width=0))

    def tokens_a_step(self, cell: Cell) -> float:
        """The tokens of all prompts over their steps, which bounds the gain."""
        rows = self.rows[cell]
        return sum(sum(row["tokens"]) for row in rows) / sum(sum(row["steps"]) for row in rows)

    def best(self, cell: Cell) -> Cell:
        """The fastest cell that differs from this one in its width alone."""
        return max(
            (other for other in self.rows if other._replace(width=cell.width) == cell), key=self.tokens_per_s
        )

    def tokens_per_step(self, cell: Cell) -> list[float]:
        """The mean tokens of a step, for each prompt of a batch of one."""
        row = self.rows[cell][0]
        return [tokens / steps for tokens, steps in zip(row["tokens"], row["steps"], strict=True)]


def seconds(row: Mapping[str, Any]) -> float:
    """The seconds of all steps of a measurement, each at the median of the steps with as many rows.

    The median keeps a moment of a busy neighbour out.
    """
    return float(sum(of["count"] * (of["verify_s"] + of["draft_s"]) for of in row["by_rows"]))


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """The mean, and the bounds of its 95 % interval by resampling."""
    draw = random.Random(seed)
    means = [mean(draw.choices(values, k=len(values))) for _ in range(RESAMPLES)]
    cuts = quantiles(means, n=40)
    return mean(values), cuts[0], cuts[-1]


def kind_of(cell: Cell) -> str:
    """The dtypes of queries and cache, as the tables of attention name them: int8 caches with f32 queries."""
    return "f32/int8" if cell.kv == "int8" else f"{cell.kv}/{cell.kv}"


class Measured:
    """A measured step and its place: what a prediction is compared with."""

    def __init__(self, cell: Cell, group: Mapping[str, float], context: float) -> None:
        self.cell, self.context = cell, context
        self.rows, self.requests = group["rows"], int(group["requests"])
        self.drafts = max(0.0, self.rows / self.requests - 1)
        self.verify_s, self.draft_s, self.count = group["verify_s"], group["draft_s"], group["count"]


def steps(decoding: Decoding) -> Iterator[Measured]:
    """All groups of steps with as many rows and requests."""
    for cell, rows in decoding.of_tables.items():
        for row in rows:
            for group in row["by_rows"]:
                yield Measured(cell, group, row["context"])


def fitted(kernels: Mapping[str, Any], decoding: Decoding) -> StepTime:
    """The model of the time of a step, its rest fitted to the cells that are not held out."""
    tables = kernels["tables"]
    model = StepTime(
        Linear(tables["linear smollm2"]), Attention(tables["attention smollm2"]), MODELS["smollm2"].layers
    )
    points: dict[str, list[tuple[float, float, float]]] = {}
    for step in steps(decoding):
        if not is_held_out(step.cell):
            known = model.kernels(
                step.cell.format, kind_of(step.cell), step.rows, step.requests, step.context
            )
            points.setdefault(step.cell.format, []).append((step.rows, step.verify_s - known, step.verify_s))
    return model._replace(rest={name: Line.fit(some) for name, some in points.items()})


def levels(parents: Sequence[int]) -> int:
    """The calls of a draft model for a tree: one for each level that has children."""
    depth = [0]
    for parent in parents:
        depth.append(depth[parent] + 1)
    return max(depth)


def is_held_out(cell: Cell) -> bool:
    """Whether a cell is kept from the fit: those of two widths, and every closed loop."""
    return cell.draft == "loop" or cell.width in (2, 5)


def predicted_s(model: StepTime, cell: Cell, row: Mapping[str, Any]) -> tuple[float, float]:
    """The predicted and the measured seconds of all steps of one measurement of a cell."""
    predicted = 0.0
    for group in row["by_rows"]:
        step = Measured(cell, group, row["context"])
        of_step = model(cell.format, kind_of(cell), step.rows, step.requests, step.context)
        if cell.draft in ("self", "tree") and step.drafts:
            calls = step.drafts if cell.draft == "self" else levels(TREE)
            of_step += calls * model(DRAFT_FORMAT, "f32/int8", step.requests, step.requests, step.context)
        predicted += step.count * of_step
    return predicted, seconds(row)


def errors(model: StepTime, decoding: Decoding, held_out: bool) -> dict[Cell, float]:
    """The relative error of the predicted seconds of each cell, held out or not."""
    found = {}
    for cell, rows in decoding.of_tables.items():
        if is_held_out(cell) == held_out:
            pairs = [predicted_s(model, cell, row) for row in rows]
            found[cell] = sum(p for p, _ in pairs) / sum(m for _, m in pairs) - 1
    return found


def read(path: Path) -> Any:
    """A committed result file."""
    return json.loads(path.read_text())
