"""Masks of 2:4 weights: the two of four with the highest score, and masks from elsewhere."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

GROUP = 4  # consecutive input features of which two are kept


def keep_two(score: Tensor, along: int) -> Tensor:
    """The places of the two highest scores of each four along a dimension; of equal scores the first ones."""
    shape = (*score.shape[:along], score.shape[along] // GROUP, GROUP, *score.shape[along + 1 :])
    four = score.reshape(shape).unbind(along + 1)
    beaten = [torch.zeros_like(four[0], dtype=torch.int8) for _ in four]  # by how many of the others
    for i, j in combinations(range(GROUP), 2):
        is_second = four[j] > four[i]
        beaten[i] += is_second
        beaten[j] += ~is_second
    return torch.stack([count < 2 for count in beaten], along + 1).flatten(along, along + 1)


def require_mask(op: str, mask: Tensor, w: Tensor) -> None:
    """Raises a ValueError unless mask is bool, shaped like w, and keeps at most two of each four."""
    if mask.dtype != torch.bool or mask.shape != w.shape or mask.device != w.device:
        raise ValueError(
            f"{op}: mask must be bool {list(w.shape)} on {w.device} like w, got {mask.dtype} "
            f"{list(mask.shape)} on {mask.device}"
        )
    kept = mask.reshape(len(mask), w.shape[1] // GROUP, GROUP).sum(2)
    if bool((kept > 2).any()):
        row, group = (kept > 2).nonzero()[0].tolist()
        raise ValueError(
            f"{op}: mask keeps {int(kept[row, group])} of the four places of row {row}, group {group}; "
            "at most 2 are allowed"
        )
