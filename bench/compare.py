"""Two result files row by row: `python bench/compare.py OLD.json NEW.json`. Exit status 1: lamina is slower.

A row is `faster` or `slower` if its medians differ by more than the noise, and else `same`. The noise is
2 * sqrt(iqr_old^2 + iqr_new^2), and at least 1 % of the old median, as a coarse clock can make an iqr of 0.
The number of samples is no part of it, because the samples of one run are not independent: a layout of memory
or a slow minute shifts them all. If a run shifts its median as far as one sample strays, the difference of
two medians has the standard deviation sqrt(iqr_old^2 + iqr_new^2) / 1.349, and the noise is 2.7 of these.
Measured: 21 rows of lamina before and after changes that moved code only (the files *_rooms_* and *_nests_*
in bench/results) differ by 0.6 sqrt(iqr_old^2 + iqr_new^2) in the root mean square, and by 1.13 at most.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file: make `bench` importable, from the checkout
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import click

from bench.results_file import Identity, Result, Row, describe, identity, load
from bench.table import Table, cell, make_printer

NOISE_PER_IQR = 2.0
LEAST_NOISE = 0.01  # of the old median
SAME, FASTER, SLOWER, NOT_TIMED = "same", "faster", "slower", "not timed"


def verdict(old: Row, new: Row) -> str:
    """The verdict on the new row. One that has lost its time, as a wrong result does, is not timed."""
    if new["median_us"] is None or old["median_us"] is None:
        return NOT_TIMED
    spread = math.hypot(old["iqr_us"], new["iqr_us"])
    difference = new["median_us"] - old["median_us"]
    if abs(difference) <= max(NOISE_PER_IQR * spread, LEAST_NOISE * old["median_us"]):
        return SAME
    return SLOWER if difference > 0 else FASTER


def conditions(machine: Mapping[str, Any]) -> dict[str, object]:
    """The facts in which two files must agree, by their names in `machine`."""
    facts = {key: machine.get(key) for key in ("cpu", "flags", "cores", "threads", "hot")}
    facts["gpu.name"] = (machine.get("gpu") or {}).get("name")
    facts["isa_mask.level"] = (machine.get("isa_mask") or {}).get("level")
    return facts


def require_same_conditions(old: Result, new: Result) -> None:
    wanted, found = conditions(old.machine), conditions(new.machine)
    for name, value in wanted.items():
        if found[name] != value:
            raise click.ClickException(
                f"machine.{name}: {old.path} has {value!r}, {new.path} has {found[name]!r}; "
                "allowed: the same in both files"
            )


def read(path: Path) -> Result:
    try:
        return load(path)
    except (KeyError, TypeError, ValueError) as error:
        raise click.ClickException(f"{path}: not a result file of bench/run.py ({error!r})") from error


def by_identity(result: Result) -> dict[Identity, Row]:
    return {identity(row): row for row in result.rows}


@click.command(help="Compares the rows of NEW with those of OLD. Exit status 1: a row of lamina is slower.")
@click.argument("old", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("new", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(old: Path, new: Path) -> None:
    before, after = read(old), read(new)
    require_same_conditions(before, after)
    rows, new_rows = by_identity(before), by_identity(after)
    common = [key for key in rows if key in new_rows]
    if not common:
        raise click.ClickException(f"{old} and {new} have no row of the same op, case and impl")
    table = Table(f"{old} and {new}", ("case", "impl", "old us", "new us", "new / old", "verdict"), left=2)
    bad = []
    for key in common:
        first, second = rows[key], new_rows[key]
        found = verdict(first, second)
        times = [first["median_us"], second["median_us"]]
        ratio = times[1] / times[0] if all(times) else None
        figures = [*(cell(time, ",.1f") for time in times), cell(ratio, ".3f"), found]
        table.add([describe(key), first["impl"], *figures], stress=found != SAME)
        if first["impl"] == "lamina" and (found == SLOWER or (times[0] and not times[1])):
            bad.append(f"{describe(key)} is {found}")
    show = make_printer()
    show(table)
    for result, others in ((before, new_rows), (after, rows)):
        if alone := [key for key in by_identity(result) if key not in others]:
            show(f"only in {result.path}: {len(alone)} rows, the first {describe(alone[0])}")
        for reason in result.machine.get("untrusted", ()):
            show(f"{result.path}: ceilings not to be trusted: {reason}")
    if bad:
        raise click.ClickException(f"lamina: {'; '.join(bad)}")


if __name__ == "__main__":
    main()
