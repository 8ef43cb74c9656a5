"""Runs one CUDA kernel on tiny problems in its own process and prints a verdict: see kernels.py.

    python bench/gpu/one_kernel.py gemm_int8 sm80_m16

kernels.py reads the lines that start with MARK. The checks are those of the tests.
"""

from __future__ import annotations

import faulthandler
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file: make `bench` importable, from the checkout
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch

from bench.gpu import target as targets
from bench.gpu.verdicts import (
    CRASHED,
    CUDA_ERROR,
    ILLEGAL_ACCESS,
    NOT_MEANT,
    READY,
    REFUSED,
    RIGHT,
    RUNS,
    WRONG,
    mark,
)
from tests.reference import quantize as quantize_reference
from tests.support.cases import GemmCase, generator, grouped
from tests.support.check import check_gemm
from tests.support.compare import assert_equal, assert_within
from tests.support.int4_cases import Int4Case

ACCESS_ERRORS = (
    "illegal memory access",
    "misaligned address",
    "illegal instruction",
    "invalid address space",
)
GROUP = 48  # of int4 weights: not a multiple of a tile


def _gemm_int8(backend: Any, m: int, n: int, k: int) -> None:
    inputs = GemmCase("one kernel", m, n, k).inputs(zero_point="token", bias=torch.float32)
    check_gemm(backend, inputs, inputs.accumulated(), (m, n, k))


def _gemm_int8_grouped(backend: Any, m: int, n: int, k: int) -> None:
    inputs = grouped(GemmCase("one kernel", m, n, k), bias=torch.float32)
    check_gemm(backend, inputs, inputs.accumulated(), (m, n, k))


def _gemm_int4(backend: Any, m: int, n: int, k: int) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        case = Int4Case("one kernel", m, n, k, GROUP)
        inputs = case.inputs(zero=torch.uint8, scale=dtype, bias=torch.float32).floats(dtype)
        assert_within(backend.gemm_int4(inputs), inputs.half_product(dtype), dtype, (m, n, k))


def _gemm_int4_int8(backend: Any, m: int, n: int, k: int) -> None:
    inputs = Int4Case("one kernel", m, n, k, GROUP).inputs(zero=torch.float16, a_zero="token")
    assert_equal(backend.gemm_int4_int8(inputs), inputs.expected_bits(inputs.sums()), (m, n, k))


def _quantize_int8(backend: Any, m: int, n: int, k: int) -> None:
    x = torch.randn(m, k, generator=generator("one kernel"))
    want = quantize_reference.quantize_int8(x.numpy(), None, None, symmetric=False)
    got = backend.quantize(x, None, None, False)
    assert_equal(got[0], want.q, f"q {(m, k)}")
    assert_equal(got[1], want.scale, f"scale {(m, k)}")
    assert_equal(got[2], want.zero_point, f"zero point {(m, k)}")


CHECKS: dict[str, Callable[[Any, int, int, int], None]] = {
    "gemm_int4": _gemm_int4,
    "gemm_int4_int8": _gemm_int4_int8,
    "gemm_int8": _gemm_int8,
    "gemm_int8_grouped": _gemm_int8_grouped,
    "quantize_int8": _quantize_int8,
}


def verdict_of(error: Exception) -> str:
    """The verdict on a kernel whose check raised this exception."""
    text = str(error)
    if isinstance(error, AssertionError):
        return WRONG
    if any(known in text for known in ACCESS_ERRORS):
        return ILLEGAL_ACCESS
    if isinstance(error, RuntimeError) and re.search(
        r"\bCUDA( error)?: ", text
    ):  # both lamina and torch write this in their messages
        return CUDA_ERROR
    return REFUSED if isinstance(error, (RuntimeError, ValueError, NotImplementedError)) else CRASHED


def check(op: str, kernel: str) -> tuple[str, str]:
    """The verdict and its explanation."""
    target = targets.load()
    backend = target.backend(op, kernel)
    if why := target.refusal(backend):
        return NOT_MEANT, why
    try:
        for problem in target.problems:
            print(mark(RUNS, "m, n, k = {}, {}, {}".format(*problem)), flush=True)
            CHECKS[op](backend, *problem)
        alive = target.is_alive()
    except Exception as error:  # the row reports every kind of error
        return verdict_of(error), "; ".join(str(error).split("\n")[:2]).strip() or type(error).__name__
    return (RIGHT, "") if alive else (CUDA_ERROR, "the CUDA context is lost after the last problem")


def main() -> int:
    faulthandler.enable()
    op, kernel = sys.argv[1:]
    targets.load().is_alive()  # makes the CUDA context, which takes seconds where several processes start
    print(mark(READY), flush=True)
    verdict, detail = check(op, kernel)
    print(mark(verdict, detail), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
