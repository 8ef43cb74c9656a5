"""Definitions, comparison and ways to force a kernel, for the doctor, the benchmarks and the tests."""

from __future__ import annotations

from lamina.testing.compare import error_over_bound, same_values
from lamina.testing.kernels import emulated_gpu, load_emulator, using_cuda_kernel, using_isa

__all__ = [
    "emulated_gpu",
    "error_over_bound",
    "load_emulator",
    "same_values",
    "using_cuda_kernel",
    "using_isa",
]
