"""gemm_int4 beside the peers of gemm_int4_int8; on a GPU: bench/gpu."""

from __future__ import annotations

from bench.cases import Case
from bench.ops.gemm_int4_int8 import DTYPES, Inputs, Int4Bench, Product
from tests.reference import gemm_int4 as reference
from tests.reference.gemm import Expected, Steps


def _expected(case: Case, inputs: Inputs) -> Expected:
    w = inputs.w
    scales = reference.Scales(w.scale[:0, 0], w.scale, None)
    return reference.gemm_int4(inputs.a, w.q, w.group, scales, None, DTYPES[case.dtype], Steps())


BENCH = Int4Bench(Product("gemm_int4", "activations of {}, weights and sums in f32", "f32", _expected))
