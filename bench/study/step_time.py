"""The seconds of a step of decoding, from the tables of kernels, and what drafts gain.

A step of `rows` rows takes the time of the linear layers and, for each layer, of attention, both from the
tables, and a part for everything else (norms, Python, sampling): fixed + each * rows, fitted to measurements.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from bench.growth import Line

Row = Mapping[str, Any]


def interpolated(table: Mapping[float, float], at: float) -> float:
    """The value at a point, on a line between the two known neighbours; outside, that of the next one."""
    known = sorted(table)
    right = bisect_left(known, at)
    if right == len(known) or known[right] == at or right == 0:
        return table[known[min(right, len(known) - 1)]]
    low, high = known[right - 1], known[right]
    part = (at - low) / (high - low)
    return table[low] * (1 - part) + table[high] * part


class Linear:
    """The table of linear layers of one shape: the least seconds of a pass, by format and rows."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.by_format: dict[str, dict[float, float]] = {}
        for row in rows:
            self.by_format.setdefault(row["format"], {})[row["rows"]] = row["least"]

    def seconds(self, name: str, rows: float) -> float:
        """The seconds of a pass."""
        return interpolated(self.by_format[name], rows)

    def budget(self, name: str, factor: float) -> int:
        """The most rows up to which no pass takes longer than `factor` times that of one row."""
        of = self.by_format[name]
        return int(max(m for m in of if all(of[j] <= factor * of[1] for j in of if j <= m)))


class Attention:
    """The table of attention of one shape: the least seconds of a layer."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.cells: dict[
            tuple[str, int], dict[float, dict[float, float]]
        ] = {}  # kind, batch -> context -> queries
        for row in rows:
            of = self.cells.setdefault((row["kind"], row["batch"]), {})
            of.setdefault(row["context"], {})[row["queries"]] = row["least"]

    def seconds(self, kind: str, batch: int, context: float, queries: float) -> float:
        """The seconds of a layer. A batch between the measured ones is interpolated."""
        batches: dict[float, float] = {
            size: interpolated({c: interpolated(of, queries) for c, of in contexts.items()}, context)
            for (other, size), contexts in self.cells.items()
            if other == kind
        }
        return interpolated(batches, batch)


class StepTime(NamedTuple):
    """Predicts the seconds of steps."""

    linear: Linear
    attention: Attention
    layers: int
    rest: Mapping[str, Line] = {}  # by format

    def kernels(self, name: str, kind: str, rows: float, batch: int, context: float) -> float:
        """The part that comes from the tables."""
        attention = self.attention.seconds(kind, batch, context, rows / batch)
        return self.linear.seconds(name, rows) + self.layers * attention

    def __call__(self, name: str, kind: str, rows: float, batch: int, context: float) -> float:
        rest = self.rest.get(name, Line(0.0, 0.0))
        return self.kernels(name, kind, rows, batch, context) + rest.fixed + rest.each * rows


def expected_tokens(acceptance: float, width: int) -> float:
    """The mean tokens of a step with a chain of drafts, each accepted with this chance after its parent."""
    return float(sum(acceptance**i for i in range(width + 1)))


def best_gain(
    seconds: Mapping[int, float], acceptance: float, draft_s: float = 0.0, most: int = 16
) -> tuple[float, int]:
    """The largest speed-up over plain decoding and its width; `seconds` of a step by width, 0 among them."""
    gains = {
        width: expected_tokens(acceptance, width) * seconds[0] / (of + width * draft_s)
        for width, of in seconds.items()
        if width <= most
    }
    width = max(gains, key=lambda w: gains[w])
    return gains[width], width
