"""2:4 weights one group at a time, from docs/layouts.md and the PTX ISA's sparse matrix storage."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
# The codes of mma.sp::ordered_metadata by the pair of kept places (PTX ISA, figure "sparse MMA storage").
CODES = {(0, 1): 0x4, (0, 2): 0x8, (0, 3): 0xC, (1, 2): 0x9, (1, 3): 0xD, (2, 3): 0xE}
PAIRS = {code: pair for pair, code in CODES.items()}
# A group with fewer than two kept entries is completed as torch's _semi_structured_conversions.py does.
COMPLETED = {(): (2, 3), (0,): (0, 2), (1,): (1, 2), (2,): (2, 3), (3,): (2, 3)}


def compress_sparse24(w: Array, mask: Array | None = None, fill: float = 0) -> tuple[Array, Array]:
    """[n, k] -> values [n, k/2], metadata [n, ceil(k/8)]."""
    n, k = w.shape
    keep = w != w.dtype.type(fill) if mask is None else mask
    values = np.zeros((n, k // 2), w.dtype)
    metadata = np.zeros((n, -(-k // 8)), np.uint8)
    for row in range(n):
        for group in range(2 * metadata.shape[1]):
            kept = tuple(i for i in range(4) if 4 * group + i < k and keep[row, 4 * group + i])
            assert len(kept) <= 2, (row, group)
            pair = kept if len(kept) == 2 else COMPLETED[kept]
            metadata[row, group // 2] |= CODES[pair] << (4 * (group % 2))
            if 4 * group < k:
                for j, place in enumerate(pair):
                    value = w[row, 4 * group + place]
                    values[row, 2 * group + j] = value if place in kept else fill
    return values, metadata


def decompress_sparse24(values: Array, metadata: Array, k: int, fill: float = 0) -> Array:
    """The weight [n, k]."""
    w = np.full((len(values), k), fill, values.dtype)
    for row in range(len(values)):
        for group in range(k // 4):
            code = int(metadata[row, group // 2]) >> (4 * (group % 2)) & 15
            for j, place in enumerate(PAIRS[code]):
                w[row, 4 * group + place] = values[row, 2 * group + j]
    return w
