"""The commands of the study. Each one that measures goes on where its last run ended."""

from __future__ import annotations

from pathlib import Path

import click

from bench.study import decode, kernels, page


@click.group()
def main() -> None:
    """Measures how speculative decoding and compression compound, and writes the page about it."""


FILE = click.option("--json", "file", type=click.Path(dir_okay=False, path_type=Path), required=True)
MINUTES = click.option("--minutes", type=float, help="begin nothing new after so long")


@main.command("kernels")
@FILE
@MINUTES
@click.option("--only", default="", help="part of the names of the tables to measure")
def measure_kernels(file: Path, minutes: float | None, only: str) -> None:
    """Times linear layers and attention against the number of rows."""
    kernels.measure(file, minutes, only)


@main.command("decode")
@FILE
@MINUTES
@click.option("--rounds", default=2, help="how often each cell is measured")
def measure_decode(file: Path, minutes: float | None, rounds: int) -> None:
    """Decodes with SmolLM2 in each format, with each draft."""
    decode.measure(file, minutes, rounds)


@main.command("page")
def write_page() -> None:
    """Writes docs/compounding.md and its figures from the committed results."""
    page.write()


if __name__ == "__main__":
    main()
