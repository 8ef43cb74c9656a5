"""Instructions of lamina's bindings, counted by valgrind's callgrind: exact, whatever else the machine does.

bench/host_time.py runs itself again under valgrind, which counts only inside the functions that torch calls,
with all that they call, and writes a file at each mark.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bench.native.build import NATIVE, ROOT, build_shared

CALLS = 100
# The functions that torch calls, by their C++ names.
ENTRY = "torch::stable::detail::boxer<*lamina::interop*"


def count(arguments: Sequence[str]) -> dict[str, float]:
    """Instructions a call by name, of `python bench/host_time.py --under-valgrind` with `arguments`.

    Raises RuntimeError where the run fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "counts"
        options = ("--tool=callgrind", "--collect-atstart=no", f"--toggle-collect={ENTRY}")
        script = (sys.executable, str(ROOT / "bench" / "host_time.py"), "--under-valgrind", *arguments)
        done = subprocess.run(
            ["valgrind", *options, f"--callgrind-out-file={out}", *script], capture_output=True, text=True
        )
        if done.returncode != 0:
            raise RuntimeError(f"--instructions: {done.stderr[-2000:]}")
        found = dict(_read(path) for path in Path(folder).glob("counts.*"))
    return {name: total / CALLS for name, total in found.items() if name}


def mark(calls: Mapping[str, Callable[[], object]]) -> None:
    """The part under valgrind: calls each of `calls` CALLS times and writes its count."""
    marks = ctypes.CDLL(str(build_shared(NATIVE / "callgrind_marks.c")))
    for name, call in calls.items():
        for _ in range(CALLS):  # what is made once is no part of the count
            call()
        marks.forget_counts()
        for _ in range(CALLS):
            call()
        marks.write_counts(name.encode())


def _read(path: Path) -> tuple[str, int]:
    """The name of a mark, empty for the end of the program, and the instructions up to it."""
    text = path.read_text()
    name = re.search(r"^desc: Trigger: Client Request: (.*)$", text, flags=re.MULTILINE)
    total = re.search(r"^summary: (\d+)", text, flags=re.MULTILINE)
    return name.group(1) if name else "", int(total.group(1)) if total else 0
