"""Checks of a CUDA kernel that only the emulator can make."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from lamina.testing import emulated_gpu
from tests.support.backends import EMULATOR_SMS, EmulatedKernel, emu_ops, emulator, probe
from tests.support.compare import assert_equal


@contextmanager
def emulated_ops(arch: int, sms: int = EMULATOR_SMS) -> Iterator[Any]:
    """emu_ops() on an emulated GPU; skips the test without the emulator."""
    emulator()
    with emulated_gpu(arch, sms):
        yield emu_ops()


def sites_without_conflicts(emulated: EmulatedKernel, call: Callable[[Any], object]) -> list[Any]:
    """Runs call(ops) with this kernel and asserts that each access to shared memory takes as few passes over
    the banks as its width allows. Returns the accesses by source line."""
    emulator().take_report()
    with emulated.active() as ops:
        emulator().set_options(count_accesses=True)
        call(ops)
    sites: list[Any] = emulator().take_report().sites
    assert [site for site in sites if site.wavefronts != site.fewest] == []
    return sites


def check_caps(
    emulated: EmulatedKernel,
    run: Callable[[int | None], Sequence[torch.Tensor]],
    caps: tuple[int, ...] = (1, 2),
    launches: int = 1,
) -> None:
    """Under a cap on SMs every launch of run(max_sms) has at most one block for each SM, and no bit of the
    results changes. A kernel whose cluster has more blocks raises an error."""
    problem = probe().Problem(1, 1, 1, 128 if "grouped" in emulated.op else 0)
    kernels = probe().cuda.kernels(emulated.op.removesuffix("_grouped"), problem)
    (cluster,) = (kernel.cluster for kernel in kernels if kernel.name == f"{emulated.op}_{emulated.isa}")
    emulator().take_report()
    want = run(None)
    assert emulator().take_report().most_blocks > max(caps)
    for max_sms in caps:
        if max_sms < cluster:
            with pytest.raises(ValueError, match=r"no CUDA kernel of this name .*, and 1 SM, "):
                run(max_sms)
            continue
        got = run(max_sms)
        report = emulator().take_report()
        assert report.most_blocks <= max_sms and report.launches >= launches
        for a, b in zip(got, want, strict=True):
            assert_equal(a, b, f"{max_sms} SMs")
