"""How the time of a product grows with m: a fixed part, and a part for each row of activations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from bench.results_file import Row, describe, identity, unique
from bench.table import Table, cell

LEAST_SIZES = 3  # values of m: any line meets two points


class Line(NamedTuple):
    """fixed + each * rows."""

    fixed: float
    each: float

    @classmethod
    def fit(cls, points: Sequence[tuple[float, float, float]]) -> Line:
        """The line with the least sum of ((line - value) / scale)^2 over the points (rows, value, scale)."""
        weights = [1 / scale**2 for _, _, scale in points]
        total = sum(weights)
        x = sum(w * rows for w, (rows, _, _) in zip(weights, points, strict=True)) / total
        y = sum(w * value for w, (_, value, _) in zip(weights, points, strict=True)) / total
        xy = sum(w * (rows - x) * (value - y) for w, (rows, value, _) in zip(weights, points, strict=True))
        xx = sum(w * (rows - x) ** 2 for w, (rows, _, _) in zip(weights, points, strict=True))
        each = xy / xx if xx else 0.0
        return cls(y - each * x, each)

    def at(self, rows: float) -> float:
        return self.fixed + self.each * rows


def growth_table(rows: Sequence[Row]) -> Table | None:
    """A line for each weight that lamina has multiplied at LEAST_SIZES values of m or more; None without one.

    The last column is the largest relative error of the line: where it is large, the time is no line in m.
    """
    timed = [row for row in rows if row["impl"] == "lamina" and row["median_us"] and "m" in row["case"]]
    columns = ("weight", "fixed us", "us a row", "both equal at m", "largest error")
    table = Table("lamina: median us = fixed + slope * m", columns)
    for weight in unique(identity(row, but="m") for row in timed):
        points = [
            (row["case"]["m"], row["median_us"], row["median_us"])
            for row in timed
            if identity(row, but="m") == weight
        ]
        if len({m for m, _, _ in points}) < LEAST_SIZES:
            continue
        line = Line.fit(points)
        equal = line.fixed / line.each if line.fixed > 0 and line.each > 0 else None
        error = max(abs(line.at(m) / us - 1) for m, us, _ in points)
        figures = [cell(line.fixed, ",.1f"), cell(line.each, ",.3f"), cell(equal, ",.1f"), f"{error:.0%}"]
        table.add([describe(weight), *figures])
    return table if table.rows else None
