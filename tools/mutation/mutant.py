"""Planted bugs."""

from __future__ import annotations

import re
from dataclasses import dataclass

CAPPED = (
    "tests/ops/test_emulator.py tests/ops/test_quantize_int8.py tests/ops/test_gemm_int8.py"
    " -k emulator and (cap or sms or the_same_in_every_batch)"
)
Bug = tuple[str, str, str] | tuple[str, str, str, str]


@dataclass(frozen=True)
class Mutant:
    """Replaces the one place in `file` that reads `old`, whatever its line breaks, with `new`."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...] = ()  # the tests that must show the bug; by default those of its file's folder

    def apply(self, text: str) -> str:
        """The patched text; ValueError unless `old` is there exactly once."""
        pattern = r"\s+".join(re.escape(word) for word in self.old.split())
        found = len(re.findall(pattern, text))
        if found != 1:
            raise ValueError(f"{self.name}: {found} places in {self.file} read {self.old!r}, one is needed")
        return re.sub(pattern, lambda _: self.new, text)


def plant(file: str, *bugs: Bug, tests: str = "") -> tuple[Mutant, ...]:
    """The mutants of one file. A bug is (name, old, new), or (name, old, new, tests) if it needs other tests.

    tests  as for pytest: "tests/ops/test_large.py -k quantize and emulator". Empty: by the file's folder
    """

    def mutant(name: str, old: str, new: str, tests: str = tests) -> Mutant:
        files, _, keyword = tests.partition(" -k ")
        return Mutant(name, file, old, new, (*files.split(), *(("-k", keyword) if keyword else ())))

    return tuple(mutant(*bug) for bug in bugs)
