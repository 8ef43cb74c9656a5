"""A rehearsal of gpu_check.py in which kernels and tests go wrong in the ways that a new GPU may show."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.gpu.rehearsal import Rehearsal
from tests.support.backends import EmulatedKernel

KERNELS = {"sm80_m16": "right", "sm80_m32": "wrong", "sm80_m64": "crashes", "sm80_m128": "hangs"}
TESTS = "tests/bench/planted_gpu_tests.py"
is_context_lost = False


@dataclass(frozen=True)
class Bad(EmulatedKernel):
    """A kernel that behaves as `how` says."""

    how: str = "right"

    def gemm_packed(self, *args: Any, **options: Any) -> torch.Tensor:
        if self.how == "crashes":
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.how == "hangs":
            time.sleep(1000)
        out = super().gemm_packed(*args, **options)
        if self.how == "wrong":
            out[-1, -1] *= 1.01
        return out


class Planted(Rehearsal):
    kernel_limit_s = 8.0
    test_limit_s = 4.0

    def kernels(self) -> list[tuple[str, str]]:
        return [("gemm_int8", kernel) for kernel in KERNELS]

    def backend(self, op: str, kernel: str) -> Bad:
        super().backend(op, kernel)
        return Bad(kernel, True, op, how=KERNELS[kernel])

    def is_alive(self) -> bool:
        return not is_context_lost

    def test_arguments(self) -> Sequence[str]:
        return ("-m", "gpu", TESTS)


TARGET = Planted()
PIDS = Path(os.environ.get("LAMINA_PLANTED_PIDS", os.devnull))
