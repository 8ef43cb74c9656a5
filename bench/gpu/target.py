"""The target of gpu_check.py's stages: the CUDA device, or a pretended one in a rehearsal.

In a rehearsal the environment variable TARGET_VARIABLE names a module whose TARGET replaces the one below.
Functions import pytest and tests.support themselves, because the benchmarks run without those packages.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from typing import Any

import torch

from bench.cases import load_op
from bench.gpu.find import TARGET_VARIABLE
from bench.gpu.runner import GpuRunner, RunDevice
from bench.gpu.timing import GpuProtocol


class Target:
    """This machine's CUDA device."""

    torch_device = "cuda"
    kernel_limit_s = 20.0  # of one kernel's process, after its imports
    test_limit_s = 40.0  # of one test
    # m, n, k of the problems of a kernel's process: ragged on every axis; then several tiles and splits of k.
    problems: Sequence[tuple[int, int, int]] = ((17, 49, 191), (70, 150, 1101))

    def library_problem(self, info: dict[str, Any]) -> str:
        """Why the library with this build_info() cannot run here, or an empty text."""
        if not info.get("cuda_archs"):
            return (
                "this library was built without CUDA: build it with nvcc on the PATH (--prepare or --build)"
            )
        return ""

    def kernels(self) -> list[tuple[str, str]]:
        """(op, kernel) of every CUDA kernel that is built."""
        from tests.support.backends import kernel_rows

        return [(op, kernel) for kind, op, kernel in kernel_rows() if kind == "CUDA"]

    def backend(self, op: str, kernel: str) -> Any:
        """The tests.support.backends.Backend of this kernel."""
        from tests.support.backends import Gpu

        return Gpu(kernel, False, op)

    def refusal(self, backend: Any) -> str:
        """Why this device cannot run the kernel, or an empty text."""
        is_foreign = backend.arch == 90 and torch.cuda.get_device_capability() != (9, 0)
        return f"{backend.isa} is for compute capability 9.0 alone" if is_foreign else ""

    def is_alive(self) -> bool:
        """False if the CUDA context is lost, after an illegal access for example: nothing works any more."""
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            return False
        return True

    def prepare_tests(self) -> None:
        """Called in every process of tests before they are collected."""

    def test_arguments(self) -> Sequence[str]:
        """The arguments with which pytest collects the tests."""
        return ("-m", "gpu and not slow", "tests")

    def bench_op(self, name: str) -> Any:
        return load_op(name)

    def bench_device(self) -> RunDevice:
        from bench.gpu.device import CudaDevice

        return CudaDevice()

    def rotation_bytes(self, device: Any, rotate_mib: int) -> int:
        return int(device.rotation_target(rotate_mib))

    def protocol(self, samples: int) -> GpuProtocol:
        return GpuProtocol(samples=samples)

    def measure_ceilings(self, runner: GpuRunner) -> None:
        runner.measure_ceilings()


TARGET = Target()


def load() -> Target:
    """The target that the environment names, or the CUDA device."""
    target: Target = importlib.import_module(os.environ.get(TARGET_VARIABLE, __name__)).TARGET
    return target
