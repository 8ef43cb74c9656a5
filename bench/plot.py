"""Time against m, with the machine's floor: `python bench/plot.py RESULT.json -o figure.svg`."""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: make `bench` importable, from the checkout
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import click

from bench.results_file import Result, label, load, unique


def floor_us(result: Result, op: str, impl: str) -> dict[int, float]:
    """The time by m that the ceilings of this run allow `impl`."""
    return {
        row["case"]["m"]: row["roofline_fraction"] * row["median_us"]
        for row in result.rows
        if row["op"] == op and label(row) == impl and row["median_us"]
    }


def draw(result: Result, op: str, output: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    rows = [row for row in result.rows if row["op"] == op and row["median_us"]]
    for name in unique(label(row) for row in rows):
        mine = sorted(
            (row["case"]["m"], row["median_us"], row["iqr_us"] / 2) for row in rows if label(row) == name
        )
        ms, medians, spreads = zip(*mine, strict=True)
        is_ours = name.startswith("lamina")
        axes.errorbar(ms, medians, spreads, marker="o", linewidth=2.5 if is_ours else 1.2, label=name)
        if is_ours:
            floor = floor_us(result, op, name)
            axes.plot(list(floor), list(floor.values()), "k--", linewidth=1, label=f"floor of {name}")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("m (tokens)")
    axes.set_ylabel("median us")
    case = rows[0]["case"]
    axes.set_title(f"{op}  n={case['n']} k={case['k']} {case['dtype']}\n{result.conditions()}", fontsize=8)
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(output)
    pyplot.close(figure)


@click.command(help=__doc__)
@click.argument("result", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--op", help="default: the first op in the file")
def main(result: Path, output: Path, op: str | None) -> None:
    loaded = load(result)
    timed = [row["op"] for row in loaded.rows if row["median_us"]]
    if not timed or (op is not None and op not in timed):
        raise click.ClickException(
            f"--op: got {op!r}; {result} has timed rows of: {', '.join(unique(timed)) or 'none'}"
        )
    draw(loaded, op or timed[0], output)


if __name__ == "__main__":
    main()
