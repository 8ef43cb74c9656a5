"""Tests that pass, fail, crash, hang and lose the CUDA context, for tests/bench/test_gpu_rehearsal.py."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.bench import planted
from tests.support.backends import Backend
from tests.support.backends import gpus as kernels

pytestmark = pytest.mark.gpu
KERNEL = pytest.mark.parametrize("backend", kernels("gemm_int8"))


@KERNEL
def test_first(backend: Backend) -> None:
    if backend.isa == "sm80_m128":
        with planted.PIDS.open("a") as pids:
            pids.write(f"{os.getpid()}\n")
        time.sleep(1000)


@pytest.mark.parametrize("backend", kernels("gemm_int8")[:3])
def test_second(backend: Backend) -> None:
    assert backend.isa != "sm80_m32", "a planted failure"
    if backend.isa == "sm80_m64":
        os.kill(os.getpid(), signal.SIGSEGV)


def test_gemm_int8_that_loses_the_context() -> None:
    planted.is_context_lost = True
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_gemm_int8_that_is_skipped_for_want_of_a_context() -> None:
    planted.is_context_lost = True
    pytest.skip("CUDA error: an illegal memory access was encountered")


def test_gemm_int8_that_needs_a_context() -> None:
    assert not planted.is_context_lost


def test_gemm_int4_of_another_op() -> None:
    raise AssertionError("--only has left it out")


def test_gemm_int8_that_is_skipped() -> None:
    pytest.skip("a planted skip")
