"""Weights [n, k] with at most two nonzeros in each group of four along k."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import torch
from numpy.typing import NDArray

from tests.support.cases import GemmCase, GemmInputs, generator

SHAPES = ((0, 0), (0, 8), (3, 0), (1, 4), (1, 8), (2, 12), (5, 20), (17, 64), (33, 68), (7, 260))
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.uint8)
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
KEPT = [kept for count in range(3) for kept in itertools.combinations(range(4), count)]


def random_mask(n: int, k: int, few: float = 0.0) -> torch.Tensor:
    """Two kept entries a group; a share `few` of the groups keeps one or none."""
    g = generator(f"mask {n} {k} {few}")
    order = torch.rand(n, k // 4, 4, generator=g).argsort(-1)
    kept = torch.where(torch.rand(n, k // 4, 1, generator=g) < few, torch.tensor(1), torch.tensor(2))
    kept -= (torch.rand(n, k // 4, 1, generator=g) < few / 2).long()
    return (order < kept).view(n, k)


def sparse_weight(n: int, k: int, dtype: torch.dtype, few: float = 0.2) -> torch.Tensor:
    """Nonzero numbers at the places of random_mask, each bit pattern of the dtype alike but -0.0."""
    g = generator(f"sparse {n} {k} {dtype}")
    size = dtype.itemsize
    dense = torch.randint(-(2**31), 2**31, (n, k), generator=g)
    if dtype.is_floating_point:
        dense = torch.where(dense % 2 ** (8 * size - 1) == 0, 1, dense)  # 0.0 and -0.0
    else:
        dense = torch.where(dense % 256 == 0, 1, dense)
    bits = dense.to(BITS[size]).where(random_mask(n, k, few), torch.zeros((), dtype=BITS[size]))
    return bits.view(dtype)


def bits(t: torch.Tensor) -> NDArray[np.generic]:
    """The bits of the elements, which compress and decompress move as they are, NaNs too."""
    array: NDArray[np.generic] = t.contiguous().view(BITS[t.dtype.itemsize]).numpy()
    return array


def at_whole_groups(case: GemmCase) -> GemmCase:
    """The case with the next k that groups of four divide."""
    return dataclasses.replace(case, k=-(-case.k // 4) * 4)


def pruned(inputs: GemmInputs) -> GemmInputs:
    """The same with a 2:4 weight; every tenth group keeps fewer than two."""
    mask = random_mask(*inputs.w.shape, few=0.1)
    return dataclasses.replace(inputs, w=inputs.w.where(mask, torch.zeros((), dtype=torch.int8)))
