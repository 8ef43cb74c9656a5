"""An order of input features in which 2:4 pruning drops less."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from lamina.quant.checks import checked_weight
from lamina.quant.grid import rows_at_a_time
from lamina.quant.hessians import checked_hessian
from lamina.quant.sparse24_masks import GROUP

# The 35 ways to divide eight features into two groups; the first group has feature 0.
SPLITS = tuple(
    (first, tuple(i for i in range(2 * GROUP) if i not in first))
    for first in combinations(range(2 * GROUP), GROUP)
    if 0 in first
)


def feature_order_sparse24(
    w: Tensor, hessian: Tensor | None = None, *, rounds: int = 100, seed: int = 0
) -> Tensor:
    """Searches an order of the input features of `w` in which 2:4 pruning drops less of it.

    w        [n, k]  f32 | f16 | bf16, finite, any device, k a multiple of 4
    hessian  [k, k]  f32 | f64: lamina.quant.hessian of the layer's inputs. With it a weight counts
             w^2 * mean(input^2), as for "wanda"; without, w^2
    rounds   >= 0: each round pairs the groups of four at random, and divides the eight features of each pair
             anew in the best of the 35 ways (channel permutation: Pool and Yu, NeurIPS 2021)
    seed     of the pairs; the same seed gives the same order
    returns  [k] int32: place p holds feature order[p], as a perm of pack_int4 (act-order). Magnitude or
             "wanda" keep at least as much of the weight as without the order
    Raises   ValueError naming argument, value and allowed values; for a NaN or Inf its position

        order = feature_order_sparse24(w, h).long()
        pruned = prune_sparse24(w[:, order], h[order][:, order])
    """
    op = "feature_order_sparse24"
    w = checked_weight(op, w)
    k = w.shape[1]
    if k % GROUP:
        raise ValueError(f"{op}: w must be [n, k] with k a multiple of {GROUP}, got k = {k}")
    if rounds < 0:
        raise ValueError(f"{op}: rounds = {rounds}; must be at least 0")
    score = w.float().square()
    if hessian is not None:
        score *= checked_hessian(op, hessian, w).diagonal().float()
    score = (score / score.sum().clamp(min=torch.finfo(torch.float32).tiny)).T.contiguous()  # [k, n]
    generator = torch.Generator().manual_seed(seed)
    order = torch.arange(k, device=w.device).view(-1, GROUP)
    groups = len(order) // 2 * 2
    splits = torch.tensor([first + second for first, second in SPLITS], device=w.device)
    for _ in range(rounds if groups else 0):
        pairs = torch.randperm(len(order), generator=generator)[:groups].view(-1, 2).to(w.device)
        features = order[pairs].flatten(1)  # [pairs, 8]
        kept = _kept(score, features)
        best = kept.argmax(1)
        gain = kept.gather(1, best[:, None])[:, 0] - kept[:, 0]
        best = torch.where(gain > 1e-6 * kept[:, 0], best, 0)  # rounding errors are no gain
        order[pairs] = features.gather(1, splits[best]).view(-1, 2, GROUP)
    return order.flatten().int()


def _kept(score: Tensor, features: Tensor) -> Tensor:
    """[pairs, 35]: the sum of the two largest scores of each four, for each way to divide eight features."""
    pairs = len(features)
    total = torch.zeros(pairs, len(SPLITS), dtype=torch.float64, device=score.device)
    step = rows_at_a_time(score, pairs)
    for part in torch.split(score, step, 1):
        s = part[features.T.flatten()].view(2 * GROUP, pairs, -1)
        high = {(i, j): torch.maximum(s[i], s[j]) for i, j in combinations(range(2 * GROUP), 2)}
        low = {(i, j): torch.minimum(s[i], s[j]) for i, j in combinations(range(2 * GROUP), 2)}
        for at, split in enumerate(SPLITS):
            for a, b, c, d in split:
                top = torch.maximum(high[a, b], high[c, d])
                rest = torch.minimum(high[a, b], high[c, d])
                second = torch.maximum(rest, torch.maximum(low[a, b], low[c, d]))
                total[:, at] += (top + second).sum(1)
    return total
