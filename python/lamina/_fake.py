"""Checks that fake kernels share: a fake that let bad input through would return memory nobody wrote."""

from __future__ import annotations

import torch
from torch import Tensor


def check_device(op: str, first: Tensor, **others: Tensor | None) -> None:
    """Every tensor argument must be on the device of the first one."""
    for name, tensor in others.items():
        torch._check_value(
            tensor is None or tensor.device == first.device,
            lambda name=name, tensor=tensor: (
                f"lamina::{op}: {name} must be on {first.device} like the first argument, got {tensor.device}"
            ),
        )
