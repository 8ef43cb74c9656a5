"""The whole check of one problem."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tests.reference.gemm_int4 import Sums
from tests.support.backends import Backend, CudaKernel, EmulatedKernel, cuda_kernels
from tests.support.cases import FLOAT_DTYPES, GemmInputs, generator, pairwise
from tests.support.compare import assert_equal, assert_within
from tests.support.int4_cases import Int4Inputs


def in_turn(backend: Backend, turn: int, values: Sequence[Any]) -> Sequence[Any]:
    """For every out dtype, results are within the documented bound and have the bits of the documented f32
    steps."""
    if not isinstance(backend, EmulatedKernel):
        return values
    return values[(turn + cuda_kernels(backend.op).index(backend.isa)) % 3 :: 3]


def combinations(backend: Backend, *axes: Sequence[Any]) -> list[tuple[Any, ...]]:
    """The product of the axes; on the emulator few of its rows, in which any two values of two axes meet."""
    return pairwise(*axes) if isinstance(backend, EmulatedKernel) else list(itertools.product(*axes))


def check_gemm(
    backend: Backend,
    inputs: GemmInputs,
    acc: NDArray[np.int64],
    label: object,
    dtypes: Iterable[torch.dtype] = FLOAT_DTYPES,
) -> None:
    """Out dtypes: within the documented bound, and the very bits of the documented f32 steps."""
    data, sums = backend.pack(inputs.w, inputs.group)
    for dtype in dtypes:
        got = backend.gemm_packed(inputs, data, sums, dtype)
        assert_within(got, inputs.expected(acc, dtype), dtype, f"{label} {dtype}")
        assert_equal(got, inputs.expected_bits(acc, dtype), f"{label} {dtype}")


def check_int4(backend: Backend, inputs: Int4Inputs, sums: Sums, label: object) -> None:
    """The same for gemm_int4_int8."""
    data = inputs.pack()
    for dtype in FLOAT_DTYPES:
        got = backend.gemm_int4_int8_packed(inputs, data, dtype)
        assert_within(got, inputs.expected(sums, dtype), dtype, f"{label} {dtype}")
        assert_equal(got, inputs.expected_bits(sums, dtype), f"{label} {dtype}")


Inputs = GemmInputs | Int4Inputs


def run_product(backend: Backend, inputs: Inputs, dtype: torch.dtype) -> torch.Tensor:
    """Runs the op to which the inputs belong; floats without a_scale belong to gemm_int4."""
    if isinstance(inputs, GemmInputs):
        return backend.gemm(inputs, dtype)
    product = backend.gemm_int4 if inputs.a_scale is None else backend.gemm_int4_int8
    return product(inputs, dtype)


def check_product(
    backend: Backend, inputs: Inputs, dtype: torch.dtype, label: object = "", given: Inputs | None = None
) -> torch.Tensor:
    """Checks the bits of the documented steps, or the bound where tensor cores add floats.

    given: the same inputs in other memory, which the backend gets in their place.
    """
    got = run_product(backend, given or inputs, dtype)
    if isinstance(inputs, GemmInputs):
        assert_equal(got, inputs.expected_bits(inputs.accumulated(), dtype), label)
    elif inputs.a_scale is not None:
        assert_equal(got, inputs.expected_bits(inputs.sums(), dtype), label)
    elif isinstance(backend, CudaKernel):
        assert_within(got, inputs.half_product(dtype), dtype, label)
    else:
        assert_equal(got, inputs.float_product(dtype, backend.isa)[1], label)
    return got


def followed(inputs: Inputs, activation: str | None, gate: Any, residual: Any) -> Any:
    """The inputs with an activation, and with a gate and a residual of these dtypes (columns of wider
    tensors) or None."""
    m = len(inputs.a)
    n = len(inputs.w if isinstance(inputs, GemmInputs) else inputs.q)
    g = generator(f"followed {m} {n}")
    wide = [None if t is None else torch.randn(m, n + 5, generator=g).to(t) for t in (gate, residual)]
    return dataclasses.replace(
        inputs,
        activation=activation,
        gate=None if wide[0] is None else wide[0][:, :n],
        residual=None if wide[1] is None else wide[1][:, 5:],
    )
