"""Sentences need a subject: no "Of the warps that multiply: ...", no "What lies beyond k is ...".

A machine cannot find the verb of a sentence, so these tests refuse every sentence of a comment, a docstring
or a document that begins with "Of", or that begins with "What" and is not a question.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.backends import ROOT

# How many such sentences each folder still has. Whoever mends some lowers the number; 0 is the aim.
LIMITS = {"csrc": 0, "python": 0, "bench": 0, "tests": 0, "tools": 0, "docs": 0, ".": 0}
CPP = {".h", ".cc", ".cu", ".cuh", ".inc", ".c"}


def comments(path: Path) -> Iterator[tuple[int, int, str]]:
    """Line, column and text of each comment."""
    if path.suffix in CPP:
        for number, line in enumerate(path.read_text().splitlines()):
            if found := re.search(r"(?<!:)//+ ?(.*)", line):
                yield number, found.start(), found.group(1)
        return
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.start[1], token.string.lstrip("# ")


def paragraphs(path: Path) -> Iterator[str]:
    """The prose of a file: a comment goes on while its lines follow each other in one column."""
    if path.suffix == ".md":
        text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
        yield from re.split(r"\n\s*\n|\n(?=\s*[-|#] ?)", text)
        return
    if path.suffix == ".py":
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                yield from (ast.get_docstring(node) or "").split("\n\n")
    whole, last = "", (-2, 0)
    for line, column, text in comments(path):
        if (line - 1, column) != last:
            yield whole
            whole = ""
        whole, last = f"{whole} {text}", (line, column)
    yield whole


def headless(text: str) -> list[str]:
    """The sentences that begin with "Of" or "What" and are no questions."""
    text = re.sub(r"^\W+|\s+", " ", text).strip()  # without the marks of headings, lists and table rows
    found = re.findall(r"(?:^|(?<=[.:;!?] ))(?:Of|What) .*?(?:[.?!](?= )|$)", text)
    return [sentence for sentence in found if not sentence.endswith("?")]


def files(folder: str) -> list[Path]:
    if folder == ".":
        return sorted(ROOT.glob("*.md"))
    return sorted(p for p in (ROOT / folder).rglob("*") if p.suffix in CPP | {".py", ".md"})


@pytest.mark.parametrize("folder", LIMITS)
def test_sentences_have_a_subject(folder: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}: {sentence}"
        for path in files(folder)
        for paragraph in paragraphs(path)
        for sentence in headless(paragraph)
    ]
    assert len(found) <= LIMITS[folder], "\n" + "\n".join(found)


def test_headless_sentences_are_found() -> None:
    assert headless("Of the warps that multiply: until a stage is there.") != []
    assert headless("It is there. What lies beyond k is 0. Why?") == ["What lies beyond k is 0."]
    assert headless("- What happens at m = 0?") == headless("Often it works. Whatever it is.") == []
