"""`lamina doctor`."""

from __future__ import annotations

import math
import sys

import click
from rich.console import Console
from rich.progress import Progress

from lamina.cli.environment import rows
from lamina.doctor import Check, count_checks, run_checks


@click.command()
@click.option("-v", "--verbose", is_flag=True, help="Every case, not only the worst of each op.")
def doctor(verbose: bool) -> None:
    """Test every op on every instruction set and CUDA device here; print a report to paste.

    Exit status 1 if one fails. A device that is missing here is skipped, and the report says why.
    """
    console = Console(stderr=True)
    checks = []
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("testing", total=count_checks())
        for check in run_checks():
            checks.append(check)
            progress.advance(task)
    click.echo(report(checks, verbose))
    sys.exit(1 if any(check.failed for check in checks) else 0)


def report(checks: list[Check], verbose: bool) -> str:
    """Markdown: what pastes into an issue as it is, and reads as text."""
    lines = ["### lamina doctor", ""]
    lines += [f"- {name}: {value}" for name, value in rows()]
    table: list[tuple[str, ...]] = [("op", "backend", "cases", "max error / bound", "result")]
    for check in checks:
        table.append((check.op, check.backend, str(len(check.outcomes)), _ratio(check), _verdict(check)))
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    table.insert(1, tuple("-" * width for width in widths))
    lines += ["", *("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in table), ""]
    for check in checks:
        lines += [
            f"- {check.op}, {check.backend}: {outcome.case}: {_number(outcome.ratio)}"
            for outcome in check.outcomes
            if verbose or not outcome.ratio <= 1.0
        ]
        if check.error:
            lines.append(f"- {check.op}, {check.backend}: {check.error}")
    lines += dict.fromkeys(f"- {check.backend} skipped: {check.skipped}" for check in checks if check.skipped)
    lines.append(_summary(checks))
    return "\n".join(lines)


def _summary(checks: list[Check]) -> str:
    ran = [check for check in checks if not check.skipped]
    failed = sum(check.failed for check in ran)
    verdict = f"{failed} of {len(ran)} checks FAILED" if failed else f"all {len(ran)} checks passed"
    skipped = len(checks) - len(ran)
    return f"{verdict}, {skipped} skipped" if skipped else verdict


def _ratio(check: Check) -> str:
    return "-" if check.error or check.skipped else _number(check.worst.ratio)


def _number(ratio: float) -> str:
    if ratio == 0:
        return "exact"
    return f"{ratio:.3f}" if math.isfinite(ratio) else "wrong"


def _verdict(check: Check) -> str:
    return "skipped" if check.skipped else "ok" if check.passed else "FAILED"
