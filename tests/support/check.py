"""The whole check of one problem."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tests.reference.gemm_int4 import Sums
from tests.support.backends import Backend
from tests.support.cases import FLOAT_DTYPES, GemmInputs
from tests.support.compare import assert_equal, assert_within
from tests.support.int4_cases import Int4Inputs


def check_gemm(backend: Backend, inputs: GemmInputs, acc: NDArray[np.int64], label: object) -> None:
    """Every out dtype: within the documented bound, and the very bits of the documented f32 steps."""
    data, sums = backend.pack(inputs.w, inputs.group)
    for dtype in FLOAT_DTYPES:
        got = backend.gemm_packed(inputs, data, sums, dtype)
        assert_within(got, inputs.expected(acc, dtype), dtype, f"{label} {dtype}")
        assert_equal(got, inputs.expected_bits(acc, dtype), f"{label} {dtype}")


def check_int4(backend: Backend, inputs: Int4Inputs, sums: Sums, label: object) -> None:
    """The same of gemm_int4_int8."""
    data = inputs.pack()
    for dtype in FLOAT_DTYPES:
        got = backend.gemm_int4_int8_packed(inputs, data, dtype)
        assert_within(got, inputs.expected(sums, dtype), dtype, f"{label} {dtype}")
        assert_equal(got, inputs.expected_bits(sums, dtype), f"{label} {dtype}")
