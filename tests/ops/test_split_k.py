"""Products whose k is split among blocks: a second launch reduces their partial sums and runs the
epilogue."""

from __future__ import annotations

import pytest
import torch

from tests.support.backends import Backend, EmulatedKernel, cuda_backends, emulator
from tests.support.cases import GemmCase, grouped
from tests.support.check import Inputs, check_product, followed, run_product
from tests.support.compare import assert_equal
from tests.support.int4_cases import Int4Case

OPS = ("gemm_int8", "gemm_int8_grouped", "gemm_int4", "gemm_int4_int8")
KERNELS = pytest.mark.parametrize(
    ("op", "backend"),
    [
        pytest.param(op, *parameter.values, id=f"{op}-{parameter.id}", marks=parameter.marks)
        for op in OPS
        for parameter in cuda_backends(op)
    ],
)
# k is four k chunks, which every kernel splits on MANY_SMS, and n is two or three tiles.
M, N, K = 3, 136, 3100
FEATURES = 2999  # of a, with a perm
MANY_SMS, FEW_SMS = 64, 3


def problem(op: str, group: int) -> Inputs:
    """A problem with all operands of the sums: zero points, a bias, and for int4 weights a perm."""
    if op == "gemm_int8":
        return GemmCase("split", M, N, K).inputs(zero_point="token", bias=torch.float32)
    if op == "gemm_int8_grouped":
        return grouped(GemmCase("split", M, N, K), zero_point="token", bias=torch.float32)
    case = Int4Case("split", M, N, K, group)
    if op == "gemm_int4":
        inputs = case.inputs(zero=torch.uint8, scale=torch.float16, bias=torch.float32)
        return inputs.permuted(FEATURES).floats(torch.float16)
    return case.inputs(zero=torch.float16, a_zero="token", bias=torch.float32).permuted(FEATURES)


@KERNELS
def test_what_precedes_and_what_follows_the_sums(op: str, backend: Backend) -> None:
    """The result does not depend on the split of k, which the number of SMs decides."""
    launches = 3 if op == "gemm_int4_int8" else 2
    for group in (48, -1) if op == "gemm_int4_int8" else (48,):
        base, many = problem(op, group), backend.on_sms(MANY_SMS)
        gated = followed(base, None, torch.float16, None)
        added = followed(base, "gelu", None, torch.bfloat16)
        if isinstance(backend, EmulatedKernel):
            emulator().take_report()
        check_product(many, gated, torch.float32, (group, "gate"))
        if isinstance(backend, EmulatedKernel):
            assert emulator().take_report().launches == launches
        check_product(many, added, torch.float16, (group, "residual"))
        every = followed(base, "silu", torch.float32, torch.float16)
        want = check_product(many, every, torch.bfloat16, (group, "all"))
        assert_equal(run_product(backend.on_sms(FEW_SMS), every, torch.bfloat16), want, group)
