"""One input that an op refuses, and what the lists of them share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import lamina  # noqa: F401  registers torch.ops.lamina

RAW = torch.ops.lamina
INT8 = torch.int8


@dataclass(frozen=True)
class BadInput:
    """One refused call. The message must contain the argument's name, what it got and what is allowed."""

    op: str
    what: str
    call: Callable[[], Any]
    argument: str
    got: str
    allowed: str

    def __str__(self) -> str:
        return f"{self.op}-{self.what}".replace(" ", "_")

    def message(self) -> str:
        """What the call raises; a list of this machine's ISAs is cut off, since it differs elsewhere."""
        try:
            self.call()
        except (TypeError, ValueError) as error:
            text = str(error).splitlines()[0]
            head, mark, _ = text.partition("allowed: auto, ")
            return head + mark + "and the ISAs of this machine" if mark else text
        raise AssertionError(f"{self} was accepted")


def bytes_(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=INT8)


M, N, K = 3, 5, 70
