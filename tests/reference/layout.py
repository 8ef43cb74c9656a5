"""The layout int8_tile v1 of docs/layouts.md, one weight at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

TILE_N, TILE_K, GROUP_K = 16, 64, 4

Int8 = NDArray[np.int8]


def packed_shape(n: int, k: int) -> tuple[int, int, int, int, int]:
    return (-(-n // TILE_N), -(-k // TILE_K), TILE_K // GROUP_K, TILE_N, GROUP_K)


def pack_int8(w: Int8) -> Int8:
    """[n, k] -> data[n / 16, k / 64, (k % 64) / 4, n % 16, k % 4]; what no weight claims is zero."""
    n, k = w.shape
    data = np.zeros(packed_shape(n, k), np.int8)
    for row in range(n):
        for column in range(k):
            data[
                row // TILE_N,
                column // TILE_K,
                column % TILE_K // GROUP_K,
                row % TILE_N,
                column % GROUP_K,
            ] = w[row, column]
    return data


def column_sums(w: Int8) -> NDArray[np.int32]:
    """The sum over k of every output feature's weights."""
    return np.array([sum(int(value) for value in row) for row in w], np.int32)
