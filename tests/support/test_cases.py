"""Pairwise tables hold every pair of values, in few rows."""

from __future__ import annotations

import itertools

from tests.support.cases import pairwise


def test_any_two_values_of_two_axes_meet() -> None:
    axes = ("abcd", (None, 1, 2, 3), (False, True), "xyz")
    rows = pairwise(*axes)
    for i, j in itertools.combinations(range(len(axes)), 2):
        assert {(row[i], row[j]) for row in rows} == set(itertools.product(axes[i], axes[j]))
    assert len(rows) <= 18  # of 96; 16 pairs of the first two axes
    assert rows == pairwise(*axes)


def test_many_axes_need_few_rows() -> None:
    """The product of these axes has 10 million rows."""
    axes = [range(5)] * 10
    rows = pairwise(*axes)
    for i, j in itertools.combinations(range(10), 2):
        assert len({(row[i], row[j]) for row in rows}) == 25
    assert len(rows) <= 50
