"""The verdicts on kernels, and the file that holds them: kernels.py writes it, later stages read it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.results_file import save

RIGHT, WRONG, ILLEGAL_ACCESS, CUDA_ERROR = "right", "wrong", "illegal access", "CUDA error"
HUNG, CRASHED, REFUSED = "hung", "crashed", "refused"
NOT_MEANT = "not for this GPU"  # not a failure: the kernel is written for another GPU
FINDINGS = "findings"  # compute-sanitizer found errors
READY = "ready"  # the process has imported everything, and its time limit begins
RUNS = "runs"  # the process begins a problem
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
    def suite(self) -> str:
        """The op under whose name the kernel is measured."""
        return suite_of(self.op)

    @property
    def is_fine(self) -> bool:
        return self.verdict in (RIGHT, NOT_MEANT)


def suite_of(op: str) -> str:
    """One suite measures the kernels of gemm_int8 with scales along k, and one those of all 2:4 weights."""
    family = "matmul_sparse24"
    return family if op.startswith(family) else op.removesuffix("_grouped")


def mark(word: str, detail: str = "") -> str:
    """A line that one_kernel.py prints for kernels.py."""
    return MARK + json.dumps([word, detail])


def marked(text: str) -> list[tuple[str, str]]:
    """The lines in an output that `mark` made, as (word, detail)."""
    found = re.findall(rf"^{re.escape(MARK)}(.*)$", text, flags=re.MULTILINE)
    return [tuple(json.loads(line)) for line in found]


def load(path: Path | None) -> list[Verdict]:
    """The verdicts in a file of an earlier run or stage; empty if there is no such file."""
    try:
        return [Verdict(**row) for row in json.loads(path.read_text())["kernels"]] if path else []
    except (OSError, ValueError, KeyError, TypeError):
        return []


def write(path: Path, verdicts: Sequence[Verdict]) -> None:
    save(path, {"kernels": [asdict(verdict) for verdict in verdicts]})


def worst_first(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """The verdicts with those that are not fine first."""
    return sorted(verdicts, key=lambda verdict: verdict.is_fine)
