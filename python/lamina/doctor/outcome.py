"""The result of a check of an op on a device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Outcome:
    """One case. ratio is the largest error over its bound; 0 or infinity where the result must be exact."""

    case: str
    ratio: float


DeviceCheck = Callable[[torch.device], Iterator[Outcome]]
