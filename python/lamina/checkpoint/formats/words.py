"""Codes of 4 and 8 bits in int32 words."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # the place in a word of each of eight consecutive codes


def unpack_columns(words: Tensor, bits: int, columns: int, order: Sequence[int] | None = None) -> Tensor:
    """int32 [rows, ceil(columns * bits / 32)] as uint8 [rows, columns]; the first code is in the low bits.

    order   the place in its word of each of eight codes of 4 bits, where they are not in order
    """
    held = words.contiguous().view(torch.uint8).view(*words.shape, 4)
    if bits == 8:
        return held.flatten(1)[:, :columns].contiguous()
    codes = torch.empty(*words.shape, 8, dtype=torch.uint8, device=words.device)
    for code, place in enumerate(range(8) if order is None else order):
        codes[:, :, code] = held[:, :, place // 2] >> 4 if place % 2 else held[:, :, place // 2] & 15
    return codes.flatten(1)[:, :columns].contiguous()


def unpack_rows(words: Tensor, bits: int, rows: int) -> Tensor:
    """int32 [ceil(rows * bits / 32), columns], packed down the rows, as uint8 [rows, columns]."""
    return unpack_columns(words.T, bits, rows).T
