"""Bank conflicts of a CUDA kernel on the emulator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.support.backends import EMULATOR_SMS, EmulatedKernel, emu_ops, emulator


def sites_without_conflicts(emulated: EmulatedKernel, call: Callable[[Any], object]) -> list[Any]:
    """Runs call(ops) with this kernel and asserts that each access to shared memory takes as few passes over
    the banks as its width allows. Returns the accesses by source line."""
    ops = emu_ops()
    emulator().take_report()
    emulator().set_options(count_accesses=True)
    emulator().set_device(emulated.arch, EMULATOR_SMS)
    ops.set_cuda_kernel(f"{emulated.op}_{emulated.isa}")
    call(ops)
    sites: list[Any] = emulator().take_report().sites
    assert [site for site in sites if site.wavefronts != site.fewest] == []
    return sites
