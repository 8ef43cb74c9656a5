"""2:4 weights in the orders of other libraries, one word and one code at a time, from their descriptions.

CUTLASS's order has torch.sparse._semi_structured_conversions as its reference.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.reference.sparse24 import PAIRS

Array = NDArray[Any]


def words_of_16(metadata: Array, k: int) -> Array:
    """[n, ceil(k/8)] bytes -> [n, k/16] words of four groups, the first in the low bits."""
    n = len(metadata)
    words = np.zeros((n, k // 16), np.uint16)
    for row in range(n):
        for group in range(k // 4):
            code = int(metadata[row, group // 2]) >> (4 * (group % 2)) & 15
            words[row, group // 4] |= np.uint16(code << (4 * (group % 4)))
    return words


def cusparselt_metadata(metadata: Array, k: int) -> Array:
    """torch's SparseSemiStructuredTile.cu and SparseSemiStructuredPack.h.

    Tiles of 128 x 64, along the rows first; blocks of 32 x 32 in each, along the rows first. A block is 64
    words: for each of its first eight rows r the words of rows r, r + 8 in the first and in the second half
    of k, then those of r + 16, r + 24.
    """
    words = words_of_16(metadata, k)
    n = len(words)
    out = []
    for tile_k in range(k // 64):
        for tile_n in range(n // 128):
            for block_k in range(2):
                for block_n in range(4):
                    row, column = tile_n * 128 + block_n * 32, tile_k * 4 + block_k * 2
                    for r in range(8):
                        for below in (0, 16):
                            for half in (0, 1):
                                out += [words[row + r + below + down, column + half] for down in (0, 8)]
    return np.array(out, np.uint16).view(np.int16)


def marlin_metadata(metadata: Array, k: int) -> Array:
    """compressed-tensors' semi_structured_conversions.py, then resized to [k/32, 2n]."""
    words = words_of_16(metadata, k)
    n = len(words)
    out = np.zeros(words.size, np.uint16)
    for row in range(n):
        for column in range(words.shape[1]):
            r = row // 64 * 64 + row % 2 * 2 + row % 8 // 4 + row % 32 % 4 // 2 * 32 + row % 64 // 8 * 4
            c = column
            if r % 2 == 0 and c % 2 == 1:
                r, c = r + 1, c - 1
            elif r % 2 == 1 and c % 2 == 0:
                r, c = r - 1, c + 1
            out[c // 2 * n * 2 + r * 2 + c % 2] = words[row, column]
    return out.view(np.int16).reshape(k // 32, 2 * n)


def bitmask(metadata: Array, k: int) -> Array:
    """compressed-tensors' pack_into_bitmasks: bits of a row, lowest first, padded to bytes."""
    bits = np.zeros((len(metadata), -(-k // 8) * 8), np.uint8)
    for row in range(len(metadata)):
        for group in range(k // 4):
            for place in PAIRS[int(metadata[row, group // 2]) >> (4 * (group % 2)) & 15]:
                bits[row, 4 * group + place] = 1
    return np.packbits(bits, axis=1, bitorder="little")


def marlin_codes(codes: Array, bits: int) -> Array:
    """Kept codes [n, k/2] -> weight_packed [k/32, n * bits/2]: marlin_24.py and permutations_24.py."""
    order = []
    for thread in range(32):
        column = thread // 4
        for j in range(4):
            for block in (0, 1):
                for row in (
                    2 * (thread % 4),
                    2 * (thread % 4) + 1,
                    2 * (thread % 4) + 8,
                    2 * (thread % 4) + 9,
                ):
                    order.append((row, 16 * (column // 2) + 8 * (column % 2) + 4 * block + j))
    inside = {4: (0, 2, 4, 6, 1, 3, 5, 7), 8: (0, 2, 1, 3)}[bits]
    n, kept = codes.shape
    words = np.zeros((kept // 16, n * bits // 2), np.uint32)
    for tile in range(kept // 16):
        for strip in range(n // 64):
            for at in range(1024):
                row, column = order[at // len(inside) * len(inside) + inside[at % len(inside)]]
                word = strip * 32 * bits + at // len(inside)
                code = int(codes[64 * strip + column, 16 * tile + row])
                words[tile, word] |= np.uint32(code << (bits * (at % len(inside))))
    return words.view(np.int32)


def marlin_scales(scale: Array, is_grouped: bool) -> Array:
    """[groups, n] -> scale_packed: with groups, of each 8 columns in the order 0 4 1 5 2 6 3 7."""
    order = (0, 4, 1, 5, 2, 6, 3, 7) if is_grouped else range(8)
    columns = [8 * block + i for block in range(scale.shape[1] // 8) for i in order]
    return np.stack([scale[:, column] for column in columns], 1)
