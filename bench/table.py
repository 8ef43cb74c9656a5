"""Tables of result rows on a terminal: with rich where it is installed, plain text where it is not."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.results_file import ATTENTION_KEYS, Row, is_wrong, shape, unique

WIDTH = 130  # of a table that goes to a file or a pipe


@dataclass
class Table:
    title: str
    columns: Sequence[str]
    left: int = 1  # so many columns are text, the others numbers
    rows: list[tuple[list[str], bool]] = field(default_factory=list)  # cells, and whether to stress them

    def add(self, cells: list[str], *, stress: bool = False) -> None:
        self.rows.append((cells, stress))

    def plain(self) -> str:
        lines = [list(self.columns), *[cells for cells, _ in self.rows]]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        text = [
            "  ".join(
                cell.ljust(width) if i < self.left else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        return "\n".join([self.title, text[0], "-" * len(text[0]), *text[1:]])


def make_printer(*, use_rich: bool = True) -> Callable[[Table | str], None]:
    """Prints tables and lines, now: a run that is stopped keeps what it has said."""
    console: Any = None
    if use_rich:
        try:
            from rich.console import Console

            console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
        except ImportError:
            console = None

    def show(item: Table | str) -> None:
        if isinstance(item, str):
            print(item, flush=True)
        elif console is None:
            print(item.plain() + "\n", flush=True)
        else:
            console.print(rich_table(item))

    return show


def rich_table(table: Table) -> Any:
    from rich.markup import escape
    from rich.table import Table as RichTable

    drawn = RichTable(title=table.title, title_justify="left")
    for i, column in enumerate(table.columns):
        drawn.add_column(column, justify="left" if i < table.left else "right")
    for cells, stress in table.rows:
        drawn.add_row(*[escape(cell) for cell in cells], style="bold" if stress else None)
    return drawn


def cell(value: object, form: str) -> str:
    return format(value, form) if isinstance(value, (int, float)) else "-"


def _error(row: Row) -> str:
    return "wrong: not timed" if is_wrong(row) else cell(row["error_over_bound"], ".3g")


def row_tables(rows: Sequence[Row]) -> list[Table]:
    """One table per case and protocol. `time / lamina` above 1: lamina is faster than that row."""
    figures = ("median us", "iqr us", "GB/s", "GOP/s", "roofline", "max error", "error/bound")
    tables = []
    for op, device, key in unique((row["op"], row["device"], shape(row)) for row in rows):
        mine = [row for row in rows if (row["op"], row["device"], shape(row)) == (op, device, key)]
        title = f"{op}  {device}  {' '.join(f'{name}={value}' for name, value in key)}"
        table = Table(title, ("impl", "isa", *figures, "time / lamina"), left=2)
        times = [row["median_us"] for row in mine if row["impl"] == "lamina" and row["median_us"]]
        for row in mine:
            ops, median = row["ops_per_s"], row["median_us"]
            table.add(
                [
                    row["impl"],
                    row["case"].get("isa", ""),
                    cell(median, ",.1f"),
                    cell(row["iqr_us"], ",.1f"),
                    cell(row["gb_per_s"], ",.1f"),
                    cell(ops / 1e9 if ops else None, ",.1f"),
                    cell(row["roofline_fraction"], ".1%"),
                    cell(row["case"].get("max_error"), ".3g"),
                    _error(row),
                    cell(median / min(times) if median and times else None, ".2f"),
                ],
                stress=row["impl"] == "lamina",
            )
        tables.append(table)
    return tables


def not_timed_lines(rows: Sequence[Row]) -> list[str]:
    """Why rows without a time have none, each reason once."""
    lines = []
    for row in rows:
        if why := row["case"].get("not_timed"):
            protocol = row["case"].get("protocol", "")
            size = row["case"].get("m", row["case"].get("scenario"))
            lines.append(f"not timed: {row['op']} {row['impl']} m={size} {protocol}: {why}")
    return unique(lines)


def comparison_tables(rows: Sequence[Row]) -> list[Table]:
    """One table per op over all shapes: lamina's time, and each peer's time over it; graph / do_bench."""
    tables = []
    for op in unique(row["op"] for row in rows):
        mine = [row for row in rows if row["op"] == op]
        peers = unique(row["impl"] for row in mine if row["impl"] != "lamina")
        is_attention = any("scenario" in row["case"] for row in mine)
        keys = ("dtype", *ATTENTION_KEYS) if is_attention else PRODUCT_KEYS
        columns = (
            *keys,
            "lamina us",
            "of ceiling",
            *[f"{peer} / lamina" for peer in peers],
        )
        table = Table(f"{op}: graph | do_bench; a ratio above 1: lamina is faster", columns, left=0)
        for extents in unique(_extents(row, keys) for row in mine):
            found = {
                (row["impl"], row["case"].get("protocol")): row
                for row in mine
                if _extents(row, keys) == extents
            }
            cells = [*extents, _both(found, "median_us", ",.1f")]
            cells.append(_both(found, "roofline_fraction", ".0%"))
            cells.extend(_ratios(found, peer) for peer in peers)
            table.add(cells)
        tables.append(table)
    return tables


PRODUCT_KEYS = ("m", "n", "k", "group", "dtype")


def _extents(row: Row, keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(row["case"].get(key, "-")) for key in keys)


Found = dict[tuple[str, Any], Row]


def _both(found: Found, key: str, form: str) -> str:
    values = [found.get(("lamina", protocol), {}).get(key) for protocol in ("graph", "do_bench")]
    return " | ".join(cell(value, form) for value in values)


def _ratios(found: Found, peer: str) -> str:
    cells = []
    for protocol in ("graph", "do_bench"):
        times = [found.get((impl, protocol), {}).get("median_us") for impl in (peer, "lamina")]
        cells.append(f"{times[0] / times[1]:.2f}" if times[0] and times[1] else "-")
    return " | ".join(cells)
