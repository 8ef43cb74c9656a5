"""2:4 pruning in float64: slow, step by step, and independent of lamina.quant."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
Mask = NDArray[np.bool_]


def keep_two(score: F64) -> Mask:
    """Keeps the two with the highest score of each four along k; equal scores keep the first."""
    mask = np.zeros(score.shape, bool)
    for row in range(score.shape[0]):
        for first in range(0, score.shape[1], 4):
            order = sorted(range(first, first + 4), key=lambda p: (-score[row, p], p))
            mask[row, order[:2]] = True
    return mask


def wanda(w: F64, h: F64) -> Mask:
    """|w| times the norm of the feature's inputs."""
    return keep_two(np.abs(w) * np.sqrt(np.diag(h)))


def damped(h: F64, damp: float) -> tuple[F64, Mask]:
    """The Hessian that SparseGPT inverts, and which features are not always 0."""
    h = h.copy()
    live = np.diag(h) > 0
    mean = np.diag(h)[live].mean() if live.any() else 1.0
    h[~live, ~live] = mean
    return h + damp * mean * np.eye(len(h)), live


def sparsegpt(
    w: F64, h: F64, damp: float = 0.01, mask: Mask | None = None, scale: F64 | None = None, levels: int = 0
) -> tuple[F64, Mask]:
    """Prunes column by column; after each column the inverse Hessian of what is left is made anew.

    mask    where given, these places are kept
    scale   [n] with levels = 127 or the like: kept values are rounded to multiples of the scale
    """
    h, live = damped(h, damp)
    left, given = w.copy(), mask
    mask = np.zeros(w.shape, bool) if given is None else given
    for at in range(w.shape[1]):
        if at % 4 == 0 and given is None:
            # A weight that is dropped alone costs w^2 / inverse(H of the columns from its own on).
            inverse = [np.linalg.inv(h[p:, p:])[0, 0] for p in range(at, at + 4)]
            mask[:, at : at + 4] = keep_two(left[:, at : at + 4] ** 2 / inverse * live[at : at + 4])
        inverse = np.linalg.inv(h[at:, at:])
        value = left[:, at].copy()
        if scale is not None:
            value = np.clip(np.round(value / scale), -levels, levels) * scale
        value = np.where(mask[:, at], value, 0)
        error = (left[:, at] - value) / inverse[0, 0]
        left[:, at:] -= error[:, None] * inverse[0]
        left[:, at] = value
    return left, mask
