"""What the Python twins and the fake kernels share about bad input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


def call(op: Callable[..., Any], *args: Any) -> Any:
    """op(*args), where an argument error is a ValueError: torch 2.15 makes a RuntimeError of ours."""
    try:
        return op(*args)
    except RuntimeError as error:
        if str(error).startswith("lamina"):
            raise ValueError(str(error)) from None
        raise


def require_2d(op: str, name: str, tensor: Tensor, dims: str) -> None:
    """In a fake kernel: `tensor` must be 2-D, said as the C++ check says it."""
    if tensor.dim() != 2:
        shape = ", ".join(str(size) for size in tensor.shape)
        raise ValueError(f"lamina::{op}: {name} must be 2-D {dims}, got {tensor.dim()}-D [{shape}]")


def require_device(op: str, first: Tensor, **others: Tensor | None) -> None:
    """In a fake kernel: every tensor must be on the device of the first one.

    A fake that let another device through would return memory that nobody wrote.
    """
    for name, tensor in others.items():
        if tensor is not None and tensor.device != first.device:
            raise ValueError(
                f"lamina::{op}: {name} must be on {first.device} like the first argument, got {tensor.device}"
            )
