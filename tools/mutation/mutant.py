"""The type of a planted bug."""

from __future__ import annotations

import re
from dataclasses import dataclass


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
