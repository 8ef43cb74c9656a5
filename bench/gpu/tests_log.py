"""The log of the `gpu` tests: a line when a test begins and one when it ends. A killed run keeps them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PASSED, FAILED, SKIPPED, ERROR = "passed", "failed", "skipped", "error"
HUNG, CRASHED = "hung", "crashed"
STARTED = "started"  # the test did not end: the run was killed, perhaps because of it
STOPPED = "stopped"  # the time was over; the test may be right or wrong
LEFT_OUT = "left out"  # other tests of its kernel hung or crashed
FINE = (PASSED, SKIPPED)
NOT_RUN = (STOPPED, LEFT_OUT, STARTED)

Entry = dict[str, Any]


def append(path: Path, **entry: object) -> None:
    """Writes one line, without a buffer that a kill could lose."""
    with path.open("a") as log:
        log.write(json.dumps(entry) + "\n")


def read(path: Path) -> dict[str, Entry]:
    """The last line of every test, by test name; ignores a line that a kill cut off."""
    entries: dict[str, Entry] = {}
    if path.is_file():
        for line in path.read_text(errors="replace").splitlines():
            try:
                entry = json.loads(line)
                entries[entry["test"]] = entry
            except (ValueError, KeyError, TypeError):
                continue
    return entries


def counts(entries: Mapping[str, Entry]) -> dict[str, int]:
    return dict(Counter(str(entry["outcome"]) for entry in entries.values()))


def described(entries: Mapping[str, Entry]) -> str:
    numbers = ", ".join(f"{number} {outcome}" for outcome, number in sorted(counts(entries).items()))
    return f"{len(entries)} tests: {numbers or 'none'}"
