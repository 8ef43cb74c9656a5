"""The loop of GPTQ and SparseGPT: replaces columns one by one; later columns compensate the errors."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor


class Rule(Protocol):
    """Chooses the new values of columns. Columns are the first dimension of every tensor."""

    def reach(self, begin: int, left: Tensor) -> None:
        """A block of columns begins; left [k - begin, rows] holds all columns from there on, up to date."""

    def value(self, at: int, part: Tensor) -> Tensor:
        """The new values [rows] of column `at`; part[0] is that column, then come the others of its block."""


def replace_columns(left: Tensor, factor: Tensor, ends: Iterable[int], rule: Rule) -> None:
    """Replaces all columns of a weight in order, and changes `left` so that later ones compensate.

    left     [k, rows]  f32, the transposed weight; it is overwritten
    factor   [k, k]  f32, from inverse_factor
    ends     where blocks end, from `cuts`
    """
    for begin, end in pairwise(ends):
        rule.reach(begin, left[begin:])
        part = left[begin:end]
        errors = torch.empty_like(part)
        for i in range(end - begin):
            row = factor[begin + i, begin + i : end]
            errors[i] = (part[i] - rule.value(begin + i, part[i:])) / row[0]
            part[i:].addr_(row, errors[i], alpha=-1)
        left[end:].addmm_(factor[begin:end, end:].T, errors, alpha=-1)


def cuts(k: int, block: int, span: int) -> list[int]:
    """Where blocks of columns begin and end: every `block` columns, and where a grid of `span` begins.

    The updates that a block causes behind it are applied together, and a grid needs up-to-date weights.
    """
    return sorted({*range(0, k, block), *range(0, k, span or max(k, 1)), k})


def require_options(op: str, damp: float, block: int) -> None:
    """Raises a ValueError for a damping or a block that the loop cannot have."""
    if not 0 < damp < math.inf:
        raise ValueError(f"{op}: damp = {damp}; must be above 0 and finite")
    if block < 1:
        raise ValueError(f"{op}: block = {block}; must be at least 1")
