"""An int4 weight as its quantisers give it and as gradients need it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class QuantizedInt4(NamedTuple):
    """An int4 weight: w[j, p] ~ (q[j, p] - zero_point[g, j]) * scale[g, j], g = p // group."""

    q: Tensor  # [n, k] uint8, codes 0..15: what lamina.pack_int4 takes
    scale: Tensor  # [ceil(k / group), n] f32 | f16 | bf16, > 0
    zero_point: Tensor | None  # [ceil(k / group), n] uint8, 0..15; None is 8 everywhere
    group: int  # input features that share a scale

    def dequantize(self) -> Tensor:
        """The weight [n, k] in f32 that the codes stand for."""
        k = self.q.shape[1]
        codes = by_group(self.q.float(), self.group)
        zero = 8.0 if self.zero_point is None else self.zero_point.T[:, :, None].float()
        return ((codes - zero) * self.scale.T[:, :, None].float()).flatten(1)[:, :k]


def by_group(x: Tensor, group: int) -> Tensor:
    """[n, k] as [n, groups, group], the last filled up with zeros."""
    n, k = x.shape
    groups = -(-k // group)
    return torch.nn.functional.pad(x, (0, groups * group - k)).reshape(n, groups, group)
