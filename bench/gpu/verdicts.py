"""What can be said of a kernel, and the file that says it: written by kernels.py, read by later stages."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.results_file import save

RIGHT, WRONG, ILLEGAL_ACCESS, CUDA_ERROR = "right", "wrong", "illegal access", "CUDA error"
HUNG, CRASHED, REFUSED = "hung", "crashed", "refused"
NOT_MEANT = "not for this GPU"  # no failure: the kernel is written for another one
FINDINGS = "findings"  # of compute-sanitizer
READY = "ready"  # everything is imported: the time limit begins
RUNS = "runs"  # a problem begins
MARK = "one_kernel: "


@dataclass(frozen=True)
class Verdict:
    op: str
    kernel: str
    verdict: str
    detail: str = ""
    seconds: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.op}_{self.kernel}"

    @property
    def is_fine(self) -> bool:
        return self.verdict in (RIGHT, NOT_MEANT)


def mark(word: str, detail: str = "") -> str:
    """A line of one_kernel.py."""
    return MARK + json.dumps([word, detail])


def marked(text: str) -> list[tuple[str, str]]:
    """The lines of `mark` in an output, as (word, detail)."""
    found = re.findall(rf"^{re.escape(MARK)}(.*)$", text, flags=re.MULTILINE)
    return [tuple(json.loads(line)) for line in found]


def load(path: Path | None) -> list[Verdict]:
    """Of an earlier run or stage; nothing where there is none."""
    try:
        return [Verdict(**row) for row in json.loads(path.read_text())["kernels"]] if path else []
    except (OSError, ValueError, KeyError, TypeError):
        return []


def write(path: Path, verdicts: Sequence[Verdict]) -> None:
    save(path, {"kernels": [asdict(verdict) for verdict in verdicts]})


def worst_first(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """What is not fine before the rest."""
    return sorted(verdicts, key=lambda verdict: verdict.is_fine)
