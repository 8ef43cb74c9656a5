"""Markdown tables of result files: `python bench/report.py RESULT.json ... > table.md`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file: make `bench` importable, from the checkout
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import click

from bench.results_file import Result, Row, label, load, shape, shape_but_m, unique


def _row_lines(head: list[str], body: list[list[str]]) -> list[str]:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def _spread(median: float, half_range: float) -> str:
    digits = 0 if median >= 100 else 1  # GPU calls last microseconds
    return f"{median:,.{digits}f} ± {half_range:,.{digits}f}"


def _time(row: Row) -> str:
    return "not timed" if row["median_us"] is None else _spread(row["median_us"], row["iqr_us"] / 2)


def _error(row: Row) -> str:
    return "" if row["error_over_bound"] is None else f"{row['error_over_bound']:.2g}"


def _figures(row: Row, lamina_us: float | None) -> list[str]:
    median = row["median_us"]
    if median is None:
        return [label(row), "not timed", "", "", "", _error(row), ""]
    ratio = f"{median / lamina_us:.2f}" if lamina_us else ""
    return [
        label(row),
        _time(row),
        f"{row['gb_per_s']:.1f}",
        f"{row['ops_per_s'] / 1e9:,.0f}",
        f"{row['roofline_fraction']:.0%}",
        _error(row),
        ratio,
    ]


def _fastest_lamina(rows: list[Row]) -> float | None:
    return min(
        (row["median_us"] for row in rows if row["impl"] == "lamina" and row["median_us"]), default=None
    )


def _ceiling_lines(machine: dict[str, Any]) -> list[str]:
    ceilings = machine["ceilings"]
    reads = [
        f"{read['gb_per_s']:.1f} GB/s over {read['footprint_bytes'] / 2**20:.0f} MiB"
        + (f" ({read['probe']})" if read.get("probe") else "")
        for read in ceilings["read"]
    ]
    peaks = [
        f"{kind} " + ", ".join(f"{isa} {gops:,.0f}" for isa, gops in sets.items())
        for kind, sets in ceilings["gop_per_s"].items()
    ]
    noise = machine["noise"]
    doubts = [f"Ceilings not to be trusted: {reason}." for reason in machine.get("untrusted", ())]
    return [
        f"Ceilings measured in the same run: read {'; '.join(reads)}. GOP/s: {'; '.join(peaks)}.",
        f"Other processes used {noise['cores_used_by_others']:.2f} cores meanwhile.",
        *doubts,
    ]


def markdown(result: Result) -> str:
    """One table per shape. Times are medians in us ± half the interquartile range."""
    lines = [f"{result.conditions()}.", *_ceiling_lines(result.machine), ""]
    head = ["impl", "us", "GB/s", "GOP/s", "of ceiling", "error / bound", "time / lamina"]
    for op, case_shape in unique((row["op"], shape(row)) for row in result.rows):
        rows = [row for row in result.rows if row["op"] == op and shape(row) == case_shape]
        title = ", ".join(f"{name} = {value}" for name, value in case_shape)
        lines += [f"**{op}**, {title}", ""]
        lines += [*_row_lines(head, [_figures(row, _fastest_lamina(rows)) for row in rows]), ""]
    return "\n".join(lines)


def overview(result: Result) -> str:
    """One table per op and weight: implementations down, m across, medians in us."""
    lines = [f"{result.conditions()}. Median us ± half the interquartile range.", ""]
    for op, rest in unique((row["op"], shape_but_m(row)) for row in result.rows):
        rows = [row for row in result.rows if row["op"] == op and shape_but_m(row) == rest]
        ms = sorted({row["case"]["m"] for row in rows})
        body = []
        for name in unique(label(row) for row in rows):
            mine = {row["case"]["m"]: row for row in rows if label(row) == name}
            body.append([name, *[_time(mine[m]) if m in mine else "" for m in ms]])
        lines += [", ".join(f"{name} = {value}" for name, value in rest), ""]
        lines += [*_row_lines([op, *[f"m = {m}" for m in ms]], body), ""]
    return "\n".join(lines)


@click.command(help=__doc__)
@click.argument(
    "results", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.option("--overview", "is_overview", is_flag=True, help="times only, m across")
def main(results: tuple[Path, ...], is_overview: bool) -> None:
    for path in results:
        result = load(path)
        click.echo(overview(result) if is_overview else markdown(result))


if __name__ == "__main__":
    main()
