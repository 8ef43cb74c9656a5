"""Codes of 4 and 8 bits in int32 words."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # the place in a word of each of eight consecutive codes


def unpack_columns(words: Tensor, bits: int, columns: int, order: Sequence[int] | None = None) -> Tensor:
    """int32 [rows, ceil(columns * bits / 32)] as uint8 [rows, columns]; the first code is in the low bits.

    order   the place in its word of each of the 32 / bits codes, where the codes are not in order
    """
    places = range(32 // bits) if order is None else order
    shifts = torch.tensor([bits * place for place in places], dtype=torch.int32, device=words.device)
    codes = ((words[:, :, None] >> shifts) & ((1 << bits) - 1)).to(torch.uint8)
    return codes.flatten(1)[:, :columns].contiguous()


def unpack_rows(words: Tensor, bits: int, rows: int) -> Tensor:
    """int32 [ceil(rows * bits / 32), columns], packed down the rows, as uint8 [rows, columns]."""
    return unpack_columns(words.T, bits, rows).T
