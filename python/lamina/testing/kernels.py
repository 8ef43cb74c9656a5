"""Loads the emulated ops; forces an instruction set, a kernel or an emulated GPU."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lamina import _library
from lamina.ops.registration import register_fakes


def load_emulator() -> None:
    """Registers torch.ops.lamina_emu.*: the ops on emulated instruction sets and on an emulated GPU.

    Raises ImportError outside a checkout. Emulated instruction sets need SIMDe (Debian's libsimde-dev).
    """
    first = not hasattr(torch.ops.lamina_emu, "gemm_int8")
    _library.load("_emu")
    if first:
        register_fakes("lamina_emu")


@contextmanager
def using_isa(name: str, ops: Any = torch.ops.lamina) -> Iterator[None]:
    """Runs the CPU kernels of one instruction set in torch.ops.lamina, or in `ops`."""
    previous = ops.set_cpu_isa(name)
    try:
        yield
    finally:
        ops.set_cpu_isa(previous)


@contextmanager
def using_cuda_kernel(name: str, ops: Any = torch.ops.lamina) -> Iterator[None]:
    """Runs one CUDA kernel, by its name in kernels.inc with the op in front: gemm_int8_sm80_m16."""
    previous = ops.set_cuda_kernel(name)
    try:
        yield
    finally:
        ops.set_cuda_kernel(previous)


@contextmanager
def emulated_gpu(
    compute_capability: int, sm_count: int, seed: int = 0, *, run_kernels: bool = True
) -> Iterator[None]:
    """Runs the CUDA kernels of torch.ops.lamina_emu on the host, on a GPU with these properties.

    seed         chooses the order in which warps run
    run_kernels  False: only the host code before a launch runs
    Raises       ImportError outside a checkout: no wheel has the emulator
    """
    _library.load("_probe")
    emulator = sys.modules["lamina._probe"].emulator
    emulator.set_options(seed=seed, runs_kernels=run_kernels)
    emulator.set_device(compute_capability, sm_count)
    try:
        yield
    finally:
        emulator.set_device(0, 0)
        emulator.set_options()
