"""The content of summary.json and of the tables at the end, read from the files that the stages write."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.gpu import tests_log, verdicts
from bench.gpu.stage_list import SUITES
from bench.gpu.stages import Outcome
from bench.results_file import Row, load
from bench.table import Table, comparison_tables, not_timed_lines

PER_KERNEL = ("smoke", "memcheck", "racecheck")  # stages with a verdict per kernel
MOST_TESTS = 200  # at most so many tests are named in summary.json


def troubled(work: Path) -> dict[str, tests_log.Entry]:
    """The tests that ran and did not pass."""
    fine = (*tests_log.FINE, *tests_log.NOT_RUN)
    entries = tests_log.read(work / "tests.jsonl")
    return {name: entry for name, entry in entries.items() if entry["outcome"] not in fine}


def rows_of(work: Path) -> list[Row]:
    rows: list[Row] = []
    for op in SUITES:
        if (work / f"{op}.json").is_file():
            rows.extend(load(work / f"{op}.json").rows)
    return rows


def summary(work: Path, made_with: Mapping[str, str], outcomes: Sequence[Outcome]) -> dict[str, object]:
    """The content of summary.json; kernels that are not right come first."""
    entries, bad_tests = tests_log.read(work / "tests.jsonl"), troubled(work)
    lamina = [row for row in rows_of(work) if row["impl"] == "lamina"]
    return {
        "made_with": dict(made_with),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "kernels": {
            name: {
                verdict.name: [verdict.verdict, verdict.detail]
                for verdict in verdicts.worst_first(verdicts.load(work / f"{name}.json"))
            }
            for name in PER_KERNEL
        },
        "tests": {"counts": tests_log.counts(entries), "not_passed": list(bad_tests.values())[:MOST_TESTS]},
        "benchmarks": {
            op: {
                "rows": sum(row["op"] == op for row in lamina),
                "without_time": not_timed_lines([row for row in lamina if row["op"] == op]),
            }
            for op in SUITES
        },
        "stages": [outcome.to_json() for outcome in outcomes],
    }


def tables(work: Path, outcomes: Sequence[Outcome]) -> list[Table | str]:
    """The tables: kernels and failed tests first, the benchmarks last."""
    shown: list[Table | str] = []
    if kernels := kernel_table(work):
        shown.append(kernels)
    if bad_tests := troubled(work):
        table = Table("tests that did not pass", ("outcome", "test", "detail"), left=3)
        for name, entry in list(bad_tests.items())[:30]:
            lines = str(entry.get("detail", "")).strip().splitlines()
            table.add([entry["outcome"], name.removeprefix("tests/"), lines[0][:80] if lines else ""])
        if len(bad_tests) > 30:
            table.add(["", f"and {len(bad_tests) - 30} more: summary.json", ""])
        shown.append(table)
    rows = rows_of(work)
    shown.extend(not_timed_lines([row for row in rows if row["impl"] == "lamina"]))
    return [*shown, _stage_table(outcomes), *comparison_tables(rows)]


def kernel_table(work: Path) -> Table | None:
    """A row per kernel with its verdict in every stage, and the reason; wrong kernels come first."""
    found: dict[str, dict[str, verdicts.Verdict]] = {}
    for stage in PER_KERNEL:
        for verdict in verdicts.load(work / f"{stage}.json"):
            found.setdefault(verdict.name, {})[stage] = verdict
    table = Table("kernels", ("kernel", *PER_KERNEL, "detail"), left=2 + len(PER_KERNEL))

    def is_fine(by_stage: dict[str, verdicts.Verdict]) -> tuple[bool, ...]:
        return tuple(stage not in by_stage or by_stage[stage].is_fine for stage in PER_KERNEL)

    for name, by_stage in sorted(found.items(), key=lambda item: is_fine(item[1])):
        words = [by_stage[stage].verdict if stage in by_stage else "-" for stage in PER_KERNEL]
        details = [v.detail for v in by_stage.values() if not v.is_fine] or [""]
        table.add([name, *words, details[0][:70]], stress=bool(details[0]))
    return table if found else None


def _stage_table(outcomes: Sequence[Outcome]) -> Table:
    table = Table("stages", ("stage", "status", "detail", "seconds"), left=3)
    for outcome in outcomes:
        status = outcome.status + (" (earlier run)" if outcome.resumed else "")
        table.add([outcome.name, status, outcome.detail[:90], f"{outcome.seconds:.0f}"])
    return table


def earlier_outcomes(work: Path) -> dict[str, Outcome]:
    """The outcomes in the summary.json of the working folder; empty if there is none."""
    try:
        content = json.loads((work / "summary.json").read_text())
        return {entry["name"]: Outcome(**{**entry, "resumed": False}) for entry in content["stages"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
