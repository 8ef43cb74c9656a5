"""Every planted bug of tools/mutant_list*.py still applies to the sources; make mutants runs them."""

from __future__ import annotations

import pytest

from tests.support.backends import ROOT
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
