"""The layouts of docs/layouts.md, one weight at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

TILE_N, TILE_K, GROUP_K = 16, 64, 4

Int8 = NDArray[np.int8]


def packed_shape(n: int, k: int) -> tuple[int, int, int, int, int]:
    return (-(-n // TILE_N), -(-k // TILE_K), TILE_K // GROUP_K, TILE_N, GROUP_K)


def pack_int8(w: Int8) -> Int8:
    """[n, k] -> data[n / 16, k / 64, (k % 64) / 4, n % 16, k % 4]; the padding is zero."""
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
    """The sum over k of the weights of each output feature."""
    return np.array([sum(int(value) for value in row) for row in w], np.int32)


UInt8 = NDArray[np.uint8]
INT4_TILE_BYTES = TILE_N * TILE_K // 2


def int4_tile(n: int, k: int) -> tuple[int, int]:
    """Byte and half (0 low, 1 high) of a code in its tile, for n < 16, k < 64.

    From the PTX ISA's fragment of a in mma.m16n8k16: lane 4 (row % 8) + pair of columns. Register 0 holds
    rows 0..7 and columns 0..7, register 1 rows 8..15, registers 2 and 3 columns 8..15. Even n are rows 0..7,
    and the odd n next to them are rows 8..15.
    """
    step, column = divmod(k, 16)
    row = n // 2 + 8 * (n % 2)
    lane = 4 * (row % 8) + column % 8 // 2
    register = (row >= 8) + 2 * (column >= 8)
    code = register + 4 * (column % 2)
    return 16 * lane + 4 * step + code // 2, code % 2


def int4_rows(n: int, k: int) -> tuple[int, int]:
    """The same for CPU kernels: a row has eight k, of which the low halves of a column's four bytes hold
    four."""
    row, position = divmod(k, 8)
    return 64 * row + 4 * n + position % 4, position // 4


def pack_int4(q: UInt8, layout: str) -> UInt8:
    """[n, k] codes -> data[n / 16, k / 64, 512]; the padding is zero."""
    n, k = q.shape
    place = {"int4_tile": int4_tile, "int4_rows": int4_rows}[layout]
    data = np.zeros((-(-n // TILE_N), -(-k // TILE_K), INT4_TILE_BYTES), np.uint8)
    for row in range(n):
        for column in range(k):
            byte, half = place(row % TILE_N, column % TILE_K)
            data[row // TILE_N, column // TILE_K, byte] |= q[row, column] << (4 * half)
    return data
