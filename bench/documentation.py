"""Sentences of the documentation in every Python: its help topics and the docstrings of its library.

Nobody has to download this text, and it has the grammar that made text lacks.
"""

from __future__ import annotations

import ast
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

# From a capital to the end of a sentence: words and punctuation of prose, no code.
SENTENCE = re.compile(r"(?:^|(?<=[.?!] ))[A-Z][a-z]* [A-Za-z ,';:()\"-]{20,160}[.?!](?= |$)")
LEFT_OUT = {"test", "tests", "idle_test", "site-packages"}


def documentation_sentences() -> list[str]:
    """Some 9800 different sentences (Python 3.11), always in the same order for one installation."""
    texts = [*(topics[name] for name in sorted(topics)), *_docstrings()]
    paragraphs = (re.sub(r"\s+", " ", part).strip() for text in texts for part in re.split(r"\n\s*\n", text))
    return list(dict.fromkeys(found for part in paragraphs for found in SENTENCE.findall(part)))


def _docstrings() -> Iterator[str]:
    folder = Path(sysconfig.get_path("stdlib"))
    for path in sorted(folder.rglob("*.py")):
        if LEFT_OUT.intersection(path.relative_to(folder).parts):
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield ast.get_docstring(node) or ""
