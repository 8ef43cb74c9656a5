"""The whole check of one gemm_int8 problem."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tests.support.backends import Backend
from tests.support.cases import FLOAT_DTYPES, GemmInputs
from tests.support.compare import assert_equal, assert_within


def check_gemm(backend: Backend, inputs: GemmInputs, acc: NDArray[np.int64], label: object) -> None:
    """Every out dtype: within the documented bound, and the very bits of the documented f32 steps."""
    data, sums = backend.pack(inputs.w, inputs.group)
    for dtype in FLOAT_DTYPES:
        got = backend.gemm_packed(inputs, data, sums, dtype)
        assert_within(got, inputs.expected(acc, dtype), dtype, f"{label} {dtype}")
        assert_equal(got, inputs.expected_bits(acc, dtype), f"{label} {dtype}")
