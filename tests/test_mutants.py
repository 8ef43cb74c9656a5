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

# Prints the selections that choose no test. One collection for all takes less time than one for each.
UNUSED = """
import json, sys, pytest
from _pytest.mark import KeywordMatcher
from _pytest.mark.expression import Expression

class Keep:
    @pytest.hookimpl(trylast=True)  # after the slow ones are left out
    def pytest_collection_modifyitems(self, items):
        self.items = list(items)

selections, keep = json.loads(sys.argv[1]), Keep()
files = sorted({word for selection in selections for word in selection if word.startswith("tests/")})
assert pytest.main(["--collect-only", "-qq", *files], [keep]) == 0

def chooses(selection):
    items = [item for item in keep.items if item.location[0] in selection]
    if "-k" in selection:
        keyword = Expression.compile(selection[selection.index("-k") + 1])
        items = [item for item in items if keyword.evaluate(KeywordMatcher.from_item(item))]
    return bool(items)

print(json.dumps([selection for selection in selections if not chooses(selection)]))
"""


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
    misspelt = ("tests/ops/test_gemm_int8.py", "-k", "no_test_is_called_so")
    selections = [*sorted({mutants.selection(mutant) for mutant in MUTANTS}), misspelt]
    command = [sys.executable, "-c", UNUSED, json.dumps(selections)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert json.loads(found.splitlines()[-1]) == [list(misspelt)]


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
