"""The tables of docs/compounding.md, between their marks, and its figures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from bench.speculate_exact import table as exact_table
from bench.study.atlas import ACCEPTANCES, counted_rows, measured_rows
from bench.study.decode import MOST, Cell, own_kv
from bench.study.formats import IN_FILE, PRUNED
from bench.study.results import DECODE, EXACT, KERNELS, Decoding, errors, fitted, interval, read
from bench.study.step_time import Attention, Linear

PAGE = Path(__file__).resolve().parents[2] / "docs" / "compounding.md"
SHAPES = {"smollm2": "SmolLM2-135M", "llama3-8b": "Llama-3-8B"}


def write() -> None:
    """Writes both."""
    PAGE.write_text(filled(PAGE.read_text()))


def filled(page: str) -> str:
    """The page with the text between `<!-- name -->` and `<!-- end -->` made anew."""

    tables = make_tables()

    def fill(found: re.Match[str]) -> str:
        return f"<!-- {found[1]} -->\n{tables[found[1]]}\n<!-- end -->"

    return re.sub(r"<!-- (?!end)(\w+) -->\n.*?<!-- end -->", fill, page, flags=re.DOTALL)


def make_tables() -> dict[str, str]:
    """The tables, by name."""
    kernels, decoding = read(KERNELS), Decoding(read(DECODE)["rows"])
    return {
        "budgets": budgets(kernels["tables"]),
        "attention": attention(kernels["tables"]),
        "gains": gains(decoding),
        "batches": batches(decoding),
        "own_drafts": own_drafts(decoding),
        "acceptance": acceptance(decoding),
        "pruned": pruned(decoding),
        "prediction": prediction(kernels, decoding),
        "atlas_cpu": atlas(measured_rows(kernels["tables"], 4096)),
        "atlas_gpu": atlas(counted_rows("llama3-8b", 4096, (1, 8, 32, 64))),
        "atlas_gpu_70b": atlas(counted_rows("llama3-70b", 4096, (1, 8, 32))),
        "exact": exact_table(read(EXACT)["rows"]),
    }


def markdown(head: Sequence[str], rows: Iterable[Sequence[object]], words: int = 1) -> str:
    """A table, whose first `words` columns are text."""
    lines = [f"| {' | '.join(map(str, line))} |" for line in (head, *rows)]
    rule = ["---"] * words + ["---:"] * (len(head) - words)
    return "\n".join([lines[0], f"|{'|'.join(rule)}|", *lines[1:]])


def budgets(tables: dict[str, Any]) -> str:
    """How many rows a step may have before it takes 1.1 and 1.5 times as long as one row."""
    rows = []
    for shape, title in SHAPES.items():
        linear = Linear(tables[f"linear {shape}"])
        for name in linear.by_format:
            one = linear.seconds(name, 1)
            some = [f"{linear.seconds(name, m) / one:.2f}" for m in (2, 4, 8, 16, 64)]
            rows.append(
                [title, name, f"{1e3 * one:.1f}", *some, linear.budget(name, 1.1), linear.budget(name, 1.5)]
            )
    head = [
        "layers",
        "format",
        "T(1), ms",
        *(f"T({m})/T(1)" for m in (2, 4, 8, 16, 64)),
        "m within 1.1",
        "m within 1.5",
    ]
    return markdown(head, rows, words=2)


def attention(tables: dict[str, Any]) -> str:
    """The cost of several queries in one call of attention."""
    found = Attention(tables["attention llama3-8b"])
    rows = []
    for (kind, batch), contexts in found.cells.items():
        for context in contexts:
            seconds = partial(found.seconds, kind, batch, context)
            some = [f"{seconds(q) / seconds(1):.2f}" for q in (2, 4, 8)]
            rows.append([kind.split("/")[1], batch, int(context), f"{1e3 * seconds(1):.2f}", *some])
    return markdown(["cache", "batch", "context", "T(1), ms", "T(2)/T(1)", "T(4)/T(1)", "T(8)/T(1)"], rows)


def gains(decoding: Decoding) -> str:
    """Plain decoding and prompt lookup, one request at a time."""
    found = {}
    for name in IN_FILE:
        plain = Cell(name, own_kv(name), "copy", 1, "none", 0)
        found[name] = plain, decoding.best(plain._replace(draft="lookup", width=1))

    def cost(name: str) -> float:
        """The time of a step with drafts over that of a plain step."""
        best = found[name][1]
        return decoding.tokens_a_step(best) / decoding.gain(best)

    rows = []
    for name, (plain, best) in found.items():
        loop = plain._replace(draft="loop", width=MOST)
        rows.append([
            name, f"{decoding.tokens_per_s(plain):.1f}", best.width, f"{decoding.tokens_per_s(best):.1f}",
            f"{decoding.gain(best):.2f}", f"{decoding.tokens_a_step(best):.2f}", f"{cost(name):.2f}",
            *(f"{cost(other) / cost(name):.2f}" for other in ("f32", "bf16")),
            f"{decoding.gain(loop):.2f}", f"{decoding.gain(loop._replace(text='answer')):.2f}",
            f"{decoding.tokens_per_s(best) / decoding.tokens_per_s(found['f32'][0]):.1f}",
        ])  # fmt: skip
    head = ["format", "plain, tokens/s", "best width", "tokens/s", "gain", "tokens a step", "cost of a step",
            "eta to f32", "eta to bf16", "gain, closed loop", "closed loop, answers",
            "times f32 plain"]  # fmt: skip
    return markdown(head, rows)


def batches(decoding: Decoding) -> str:
    """The best gain of prompt lookup for each batch, and that of the closed loop."""
    rows = []
    for name in IN_FILE:
        row: list[object] = [name]
        for batch in (1, 4, 8):
            for text in ("copy", "answer"):
                loop = Cell(name, own_kv(name), text, batch, "loop", MOST)
                best = decoding.best(loop._replace(draft="lookup"))
                row.append(f"{decoding.gain(best):.2f} ({best.width}), {decoding.gain(loop):.2f}")
        rows.append(row)
    return markdown(
        ["format", *(f"{text}, batch {b}" for b in (1, 4, 8) for text in ("copy", "answer"))], rows
    )


def own_drafts(decoding: Decoding) -> str:
    """The gain of int4 weights that draft for the same model."""
    rows = []
    for name in IN_FILE:
        first = Cell(name, own_kv(name), "answer", 1, "self", 1)
        tree = decoding.best(first._replace(draft="tree"))
        some = [decoding.gain(first._replace(width=k)) for k in (1, 2, 3, 4, 6)]
        rows.append([name, *(f"{gain:.2f}" for gain in some), f"{decoding.gain(tree):.2f}"])
    return markdown(["format", *(f"{k} drafts" for k in (1, 2, 3, 4, 6)), "tree of 7"], rows)


def acceptance(decoding: Decoding) -> str:
    """Tokens of a step with their 95 % intervals, over the same prompts."""
    rows = []
    for name in IN_FILE:
        row: list[object] = [name]
        for text, draft, width in (
            ("copy", "lookup", MOST),
            ("answer", "lookup", MOST),
            ("answer", "self", 3),
        ):
            middle, low, high = interval(
                decoding.tokens_per_step(Cell(name, own_kv(name), text, 1, draft, width))
            )
            row.append(f"{middle:.2f} ({low:.2f} to {high:.2f})")
        rows.append(row)
    return markdown(["format", "lookup of 7, copy", "lookup of 7, answer", "int4 drafts, 3, answer"], rows)


def pruned(decoding: Decoding) -> str:
    """Dense formats and their 2:4 twins, one request at a time."""
    rows = []
    for name in (name for twin in PRUNED for name in (twin.removeprefix("sparse24-"), twin)):
        plain = Cell(name, own_kv(name), "copy", 1, "none", 0)
        best = decoding.best(plain._replace(draft="lookup", width=1))
        cost = decoding.tokens_a_step(best) / decoding.gain(best)
        rows.append([
            name, f"{decoding.tokens_per_s(plain):.1f}", best.width, f"{decoding.tokens_per_s(best):.1f}",
            f"{decoding.gain(best):.2f}", f"{decoding.tokens_a_step(best):.2f}", f"{cost:.2f}",
        ])  # fmt: skip
    head = ["format", "plain, tokens/s", "best width", "tokens/s", "gain", "tokens a step", "cost of a step"]
    return markdown(head, rows)


def prediction(kernels: dict[str, Any], decoding: Decoding) -> str:
    """The mean absolute error of the predicted time of cells, in percent, by format."""
    model = fitted(kernels, decoding)
    found = {held_out: errors(model, decoding, held_out) for held_out in (False, True)}
    rows = []
    for name in [*IN_FILE, "all"]:
        parts = []
        for of in found.values():
            some = [abs(error) for cell, error in of.items() if name in (cell.format, "all")]
            parts += [len(some), f"{100 * mean(some):.1f} %", f"{100 * max(some):.1f} %"]
        rows.append([name, *parts])
    head = [f"{what}{kind}" for kind in ("", ", held out") for what in ("cells", "mean error", "largest")]
    return markdown(["format", *head], rows)


def atlas(rows: Iterable[dict[str, Any]]) -> str:
    """The best gain at each acceptance."""
    lines = [
        [row["format"], row["batch"], f"{1e3 * row['plain_s']:.4g}",
         *(f"{row['best'][a][0]:.2f} ({row['best'][a][1]})" for a in ACCEPTANCES)]
        for row in rows
    ]  # fmt: skip
    return markdown(["format", "batch", "plain step, ms", *(f"acceptance {a}" for a in ACCEPTANCES)], lines)
