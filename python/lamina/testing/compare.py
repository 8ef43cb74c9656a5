"""Comparison of results on any device."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lamina.testing.reference import Expected


def error_over_bound(got: Tensor, expected: Expected) -> float:
    """The largest error as a fraction of its element's bound; infinity for a NaN, an Inf or a wrong shape."""
    if got.shape != expected.exact.shape or not bool(torch.isfinite(got).all()):
        return math.inf
    if got.numel() == 0:
        return 0.0
    error = (got.double() - expected.exact).abs()
    return float(torch.where(error == 0, 0.0, error / expected.bound).max())  # a bound of 0 means exact


def same_values(got: Tensor, expected: Tensor) -> bool:
    """Equal values at every place, on whatever devices; a NaN equals a NaN."""
    if got.shape != expected.shape:
        return False
    left, right = got.cpu().double(), expected.cpu().double()
    return bool(((left == right) | (torch.isnan(left) & torch.isnan(right))).all())
