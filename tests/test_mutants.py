"""Every planted bug of tools/mutation still applies to the sources, and has tests to catch it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.support.backends import ROOT
from tools import mutants
from tools.mutation import MUTANTS
from tools.mutation.mutant import Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_applies(mutant: Mutant) -> None:
    text = (ROOT / mutant.file).read_text()
    assert mutant.apply(text) != text


def test_names_differ() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 12


def test_a_patch_that_does_not_apply_is_an_error() -> None:
    for text in ("nothing of the kind", "x = 1; x = 1;"):
        with pytest.raises(ValueError, match="one is needed"):
            Mutant("stale", "file", "x = 1;", "x = 2;").apply(text)


def test_every_selection_of_tests_has_some() -> None:
    """A misspelt or outdated one would run nothing."""
    selections = sorted({mutants.selection(mutant) for mutant in MUTANTS})
    code = f"import pytest; print([int(pytest.main(['--collect-only', '-qq', *s])) for s in {selections}])"
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    codes = json.loads(found.splitlines()[-1])
    assert [selection for selection, code in zip(selections, codes, strict=True) if code != 0] == []


def test_the_mutants_of_changed_files_come_first_and_ten_more() -> None:
    changed = {mutant.file for mutant in MUTANTS[:3]}
    chosen = mutants.choose(MUTANTS, changed, "a commit")
    first = [mutant for mutant in MUTANTS if mutant.file in changed]
    assert {m.name for m in chosen[: len(first)]} == {m.name for m in first}
    assert len({m.name for m in chosen}) == len(first) + 10
    assert chosen == mutants.choose(MUTANTS, changed, "a commit")
    assert set(chosen) != set(mutants.choose(MUTANTS, changed, "another commit"))


def test_to_try_none_is_a_failure() -> None:
    with pytest.raises(SystemExit, match="caught 0 of 0"):
        mutants.main(["--only", "no bug is called so"])
