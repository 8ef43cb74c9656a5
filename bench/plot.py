"""Time against m, with the machine's floor: `python bench/plot.py RESULT.json -o figure.svg`."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file: make `bench` importable, from the checkout
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import click

from bench.cases import BenchError
from bench.results_file import Result, Row, label, load, shape_but_m, unique

SUFFIXES = (".svg", ".png", ".pdf")


def floor_us(rows: list[Row], impl: str) -> dict[int, float]:
    """The time by m that the ceilings of this run allow `impl`."""
    return {
        row["case"]["m"]: row["roofline_fraction"] * row["median_us"] for row in rows if label(row) == impl
    }


def plot_times(pyplot: Any, result: Result, rows: list[Row]) -> Any:
    """A figure of timed rows, a panel for each op and weight."""
    weights = unique((row["op"], shape_but_m(row)) for row in rows)
    figure, panels = pyplot.subplots(
        len(weights), figsize=(7, 4.5 * len(weights)), layout="constrained", squeeze=False
    )
    for weight, axes in zip(weights, panels[:, 0], strict=True):
        plot_weight(axes, result, [row for row in rows if (row["op"], shape_but_m(row)) == weight])
    return figure


def plot_weight(axes: Any, result: Result, rows: list[Row]) -> None:
    """A panel of timed rows of one op and one weight."""
    for name in unique(label(row) for row in rows):
        mine = sorted(
            (row["case"]["m"], row["median_us"], row["iqr_us"] / 2) for row in rows if label(row) == name
        )
        ms, medians, spreads = zip(*mine, strict=True)
        is_ours = name.startswith("lamina")
        axes.errorbar(ms, medians, spreads, marker="o", linewidth=2.5 if is_ours else 1.2, label=name)
        if is_ours:
            floor = floor_us(rows, name)
            axes.plot(list(floor), list(floor.values()), "k--", linewidth=1, label=f"floor of {name}")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = unique(row["case"]["m"] for row in rows)
    axes.set_xticks(ticks, ticks)
    axes.set_xlabel("m (tokens)")
    axes.set_ylabel("median us")
    title = " ".join(f"{name}={value}" for name, value in shape_but_m(rows[0]))
    axes.set_title(f"{rows[0]['op']}  {title}\n{result.conditions()}", fontsize=8)
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(fontsize=8)


def require_plot(output: Path) -> None:
    """Refuses, before a run, a file that could not be drawn after it."""
    if output.suffix not in SUFFIXES:
        raise BenchError(f"--plot: got {str(output)!r}; allowed: a file that ends with {', '.join(SUFFIXES)}")
    if find_spec("matplotlib") is None:
        raise BenchError("--plot: needs matplotlib; install it with pip install lamina[bench]")


def draw(result: Result, rows: list[Row], output: Path) -> None:
    """The figure as a file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    plot_times(pyplot, result, rows).savefig(output)


@click.command(help=__doc__)
@click.argument("result", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--op", help="default: the first op in the file")
@click.option("--n", type=int, help="default: the first in the file")
@click.option("--k", type=int, help="default: the first in the file")
@click.option("--protocol", help="do_bench | graph, of a GPU's file; default: the first in the file")
def main(
    result: Path, output: Path, op: str | None, n: int | None, k: int | None, protocol: str | None
) -> None:
    loaded = load(result)
    rows = [row for row in loaded.rows if row["median_us"]]
    timed = unique(row["op"] for row in rows)
    for key, wanted in (("n", n), ("k", k), ("protocol", protocol)):
        rows = [row for row in rows if wanted is None or row["case"].get(key) == wanted]
    rows = [row for row in rows if op is None or row["op"] == op]
    if not rows:
        raise click.ClickException(
            f"--op: got {op!r}; {result} has no such timed rows; timed ops: {', '.join(timed) or 'none'}"
        )
    first = (rows[0]["op"], shape_but_m(rows[0]))
    draw(loaded, [row for row in rows if (row["op"], shape_but_m(row)) == first], output)


if __name__ == "__main__":
    main()
