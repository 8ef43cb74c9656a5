"""An input that an op refuses: the type of the lists in bad_inputs.py and beside it."""

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
    """One refused call. The message must contain the name of the argument, its value and the allowed
    values."""

    op: str
    what: str
    call: Callable[[], Any]
    argument: str
    got: str
    allowed: str

    def __str__(self) -> str:
        return f"{self.op}-{self.what}".replace(" ", "_")

    def message(self) -> str:
        """The message of the error; a list of this machine's ISAs is cut off, because other machines
        differ."""
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
