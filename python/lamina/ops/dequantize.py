"""int4 weights as floats, for gradients and for quantisation."""

from __future__ import annotations

import torch
from torch import Tensor


def dequantize_int4(q: Tensor, scale: Tensor, zero_point: Tensor | None, group: int) -> Tensor:
    """(q - zero_point) * scale in f32: the weight [n, k] of codes q [n, k] in groups of consecutive features.

    scale       [ceil(k / group), n]  f32 | f16 | bf16
    zero_point  [ceil(k / group), n]  uint8 | f32 | f16 | bf16; None is 8
    """
    zero = 8.0 if zero_point is None else zero_point.T[:, :, None].float()
    return ((by_group(q.float(), group) - zero) * scale.T[:, :, None].float()).flatten(1)[:, : q.shape[1]]


def by_group(x: Tensor, group: int) -> Tensor:
    """[n, k] as [n, groups, group]; zeros fill up the last group."""
    n, k = x.shape
    group = min(group, max(k, 1))  # a larger group holds all of k
    groups = -(-k // group)
    return torch.nn.functional.pad(x, (0, groups * group - k)).reshape(n, groups, group)


def add_to_features(x: Tensor, perm: Tensor, k: int) -> Tensor:
    """[rows, k] where column perm[p] is the sum of such columns p of x [rows, K]; perm -1 drops a column."""
    padded = x.new_zeros(len(x), k + 1)
    return padded.index_add_(1, torch.where(perm < 0, k, perm), x)[:, :k]
