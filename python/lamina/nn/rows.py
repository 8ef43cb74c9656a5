"""Activations of any number of dimensions as the rows that the ops take."""

from __future__ import annotations

from torch import Tensor


def as_rows(x: Tensor) -> Tensor:
    """x [..., n] as [m, n] with unit column stride; a view where x allows one."""
    rows = x.flatten(0, -2) if x.dim() > 1 else x.unsqueeze(0)
    return rows if rows.stride(1) == 1 else rows.contiguous()
