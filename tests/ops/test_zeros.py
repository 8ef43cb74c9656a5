"""The sign of zero: sums of zeros alone, times scales of either sign, have the documented bits."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.support.backends import Backend, backends, cpu_backends, grouped_backends
from tests.support.cases import GemmCase, grouped
from tests.support.check import Inputs, check_product
from tests.support.int4_cases import Int4Case

M, N = 3, 20
MANY_SMS = 64  # so many that k is split
BACKENDS = {
    "gemm_int8": backends("gemm_int8"),
    "gemm_int8_grouped": grouped_backends(),
    "gemm_int4": cpu_backends("gemm_int4"),  # on CUDA: test_gemm_int4_cuda.py
    "gemm_int4_int8": backends("gemm_int4_int8"),
}
EVERY = pytest.mark.parametrize(
    ("op", "backend"),
    [
        pytest.param(op, *parameter.values, id=f"{op}-{parameter.id}", marks=parameter.marks)
        for op, parameters in BACKENDS.items()
        for parameter in parameters
    ],
)


def problems(op: str) -> list[Inputs]:
    """A few groups without zero points, with bytes, with floats; then several k chunks, in one group and in
    many."""
    if op.startswith("gemm_int8"):
        make = grouped if op == "gemm_int8_grouped" else GemmCase.inputs
        return [make(GemmCase("zeros", M, N, k), zero_point=z) for k in (70, 3100) for z in ("none", "token")]
    kinds = [(70, None, "none"), (70, torch.float32, "none"), (70, torch.uint8, "token")]
    cases = [(Int4Case("zeros", M, N, k, group), zero, a_zero)
             for k, zero, a_zero in (*kinds, (3100, torch.uint8, "token")) for group in (48, -1)]  # fmt: skip
    if op == "gemm_int4_int8":
        return [case.inputs(zero=zero, a_zero=a_zero) for case, zero, a_zero in cases]
    negative = [case.inputs(zero=zero).floats(torch.float32) for case, zero, _ in cases]
    return [inputs.but(q=torch.zeros_like(inputs.q)) for inputs in negative]


@EVERY
def test_the_sign_of_zero(op: str, backend: Backend) -> None:
    """A sum starts at -0, and +0 times a negative scale leaves it at -0. Another row has other numbers."""
    for inputs in problems(op):
        a, w_scale = inputs.a.clone(), inputs.w_scale.clone()
        w_scale.view(-1)[::2] *= -1
        for row in (0, 2):
            a[row] = 0 if inputs.a_zero_point is None else inputs.a_zero_point[row]
        zeros = dataclasses.replace(inputs, a=a, w_scale=w_scale)
        got = check_product(backend.on_sms(MANY_SMS), zeros, torch.float32, (a.shape, w_scale.shape))
        assert not got[::2].any()
        assert got[1].any()
        signs = got[::2].signbit()
        assert signs.any()
        assert not signs.all()
