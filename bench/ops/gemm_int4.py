"""gemm_int4 beside the peers of gemm_int4_int8; on a GPU: bench/gpu."""

from __future__ import annotations

import torch

from bench.cases import Case
from bench.ops.gemm_int4_int8 import DTYPES, Inputs, Int4Bench, Product
from lamina.testing import reference


def _expected(case: Case, inputs: Inputs) -> reference.Expected:
    a, q, scale = (torch.from_numpy(x) for x in (inputs.a, inputs.w.q, inputs.w.scale))
    return reference.gemm_int4(a, q, scale, inputs.w.group, DTYPES[case.dtype])


BENCH = Int4Bench(
    Product(
        "gemm_int4",
        "activations of {}, weights and sums in f32",
        "f32",
        _expected,
        "activations and unscaled weights of {}, sums in f32",
    )
)
