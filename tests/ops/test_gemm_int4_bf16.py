"""gemm_int4 with bf16 activations and integer zero points, which has arithmetic of its own on some CPUs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from tests.reference.gemm_int4 import FLUSHED
from tests.support.backends import Backend, cpu_backends, kernel_of
from tests.support.cases import FLOAT_DTYPES, generator, with_row_stride
from tests.support.compare import assert_equal, assert_within
from tests.support.int4_cases import BF16_ISAS, Int4Case, Int4Inputs

BF16 = torch.bfloat16
BACKENDS = pytest.mark.parametrize(
    "backend", [each for each in cpu_backends("gemm_int4") if each.values[0].isa in BF16_ISAS]
)
# Panels of one, two, three and eight rows, and panels of unequal height.
ROWS = (0, 1, 2, 3, 4, 5, 7, 8, 9, 13, 33, 64)


def check(backend: Backend, inputs: Int4Inputs, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The result, which has the bits of the documented steps and is within the bound."""
    expected, bits = inputs.float_product(dtype, backend.isa)
    got = backend.gemm_int4(inputs, dtype)
    assert_within(got, expected, dtype, (inputs.group, inputs.q.shape))
    assert_equal(got, bits, (inputs.group, inputs.q.shape))
    return got


@BACKENDS
@pytest.mark.parametrize("zero", [None, torch.uint8], ids=["symmetric", "zeros"])
def test_every_number_of_rows_and_columns(zero: torch.dtype | None, backend: Backend) -> None:
    most = Int4Case("rows", ROWS[-1], 130, 300, 48).inputs(zero=zero).floats(BF16)
    want = most.float_product(torch.float32, backend.isa)[1]
    for m, n in itertools.product(ROWS, (1, 15, 16, 17, 32, 33, 64, 65, 80, 130)):
        zeros = None if most.w_zero_point is None else most.w_zero_point[:, :n]
        inputs = most.but(a=most.a[:m], q=most.q[:n], w_scale=most.w_scale[:, :n], w_zero_point=zeros)
        assert_equal(backend.gemm_int4(inputs, torch.float32), want[:m, :n], (m, n))


@BACKENDS
@pytest.mark.parametrize("zero", [None, torch.uint8], ids=["symmetric", "zeros"])
@pytest.mark.parametrize("group", [16, 32, 48, 80, 128, 272, 1008, 2000, -1])
def test_groups_that_cross_blocks_and_k_chunks(
    group: int, zero: torch.dtype | None, backend: Backend
) -> None:
    for k in (1, 7, 9, 63, 250, 1023, 1031, 2100):
        inputs = Int4Case("chunks", 5, 34, k, group).inputs(zero=zero, bias=BF16).floats(BF16)
        check(backend, inputs)


@BACKENDS
def test_every_zero_point_of_a_byte(backend: Backend) -> None:
    """Zero points up to 16 and zero points above have code of their own."""
    base = Int4Case("bytes", 9, 256, 700, 32).inputs(zero=torch.uint8).floats(BF16)
    assert base.w_zero_point is not None
    every = torch.arange(256).to(torch.uint8).expand(base.w_zero_point.shape)
    ends = (torch.arange(256) % 2 * 15).to(torch.uint8).expand_as(every)
    for zero in (every, every % 17, ends, every.T.contiguous().T, torch.full_like(every, 16)):
        check(backend, base.but(w_zero_point=zero))
    a_few = base.w_zero_point.clone()
    a_few[11, 70] = 17
    check(backend, base.but(w_zero_point=a_few))


@BACKENDS
def test_every_code_with_every_zero_point(backend: Backend) -> None:
    """One activation at a time: the result is one weight, without rounding."""
    k, codes = 16, torch.arange(16, dtype=torch.uint8)
    q = codes.repeat_interleave(k).view(16, k)
    for zero in range(20):
        zeros = torch.full((1, 16), zero, dtype=torch.uint8)
        inputs = Int4Inputs(torch.eye(k).to(BF16), q, torch.ones(1, 16), 16, w_zero_point=zeros)
        want = (codes.float() - zero).expand(k, 16)
        assert_equal(backend.gemm_int4(inputs, torch.float32) + 0.0, want + 0.0, zero)


@BACKENDS
def test_arguments_of_every_kind(backend: Backend) -> None:
    g = generator("bf16 kinds")
    gate, residual = torch.randn(7, 70, generator=g), torch.randn(7, 70, generator=g).half()
    for scale, zero in itertools.product(FLOAT_DTYPES, (None, torch.uint8, BF16)):
        base = Int4Case("kinds", 7, 70, 300, 64).inputs(zero=zero, scale=scale, bias=scale).floats(BF16)
        want = check(backend, base)
        strided = base.but(w_scale=base.w_scale.T.contiguous().T, a=with_row_stride(base.a, 61, 3, 77))
        assert_equal(backend.gemm_int4(strided, torch.float32), want, (scale, zero))
        check(backend, base.permuted(350).floats(BF16))
        for dtype in FLOAT_DTYPES:
            check(backend, base.but(activation="silu", gate=gate, residual=residual), dtype)


@BACKENDS
@pytest.mark.parametrize("lost", ["activations", "sums"])
def test_numbers_below_the_normal_ones(lost: str, backend: Backend) -> None:
    """bf16 products take them for 0. Without its term for them the bound does not hold."""
    inputs = Int4Case("flushed", 5, 40, 300, 32).inputs(zero=torch.uint8).floats(BF16)
    a = inputs.a * 2.0**-3 if lost == "activations" else inputs.a.sign() * (1 + inputs.a.abs().clamp(0, 0.9))
    inputs = inputs.but(a=(a * 2.0**-126).to(BF16), w_scale=inputs.w_scale * 2.0**120)
    got = check(backend, inputs)
    expected = inputs.float_product(torch.float32, backend.isa)[0]
    assert inputs.w_zero_point is not None
    rows = np.arange(300) // 32
    integers = inputs.q.numpy().T.astype(np.float64) - inputs.w_zero_point.numpy()[rows]
    flushed = FLUSHED * (inputs.w_scale.numpy()[rows] * (np.abs(integers) + 1)).sum(0)
    assert (np.abs(got.double().numpy() - expected.exact) > expected.bound - flushed).any()


@BACKENDS
@pytest.mark.parametrize("zero", [None, torch.uint8], ids=["symmetric", "zeros"])
def test_nan_and_inf_reach_what_depends_on_them(zero: torch.dtype | None, backend: Backend) -> None:
    inputs = Int4Case("nan", 9, 70, 100, 32).inputs(zero=zero, bias=torch.float32).floats(BF16)
    assert inputs.bias is not None
    inputs.q[5] = 8  # with zero points of 8 this is a weight of 0
    if inputs.w_zero_point is not None:
        inputs.w_zero_point[:, 5] = 8
    for i, value in enumerate((torch.nan, torch.inf, -torch.inf)):
        inputs.a[i, 17 * i + 20] = value
        inputs.w_scale[i % 4, 3 * i + 10] = value
        inputs.bias[35 + i] = value
    got = backend.gemm_int4(inputs, torch.float32)
    assert_equal(got, inputs.float_product(torch.float32, backend.isa)[1])
    assert bool(got[:3, 5].isnan().all()), "Inf times 0"
    assert bool(got[3:, 30].isfinite().all())
    assert bool(got[1, 60].isinf()), "one infinite activation"


@BACKENDS
@pytest.mark.parametrize("zero", [None, torch.uint8], ids=["symmetric", "zeros"])
def test_the_sign_of_zero(zero: torch.dtype | None, backend: Backend) -> None:
    """Sums start at -0; the place behind an odd k multiplies 0 by the weight of code 0."""
    base = Int4Case("signs", 3, 34, 71, 48).inputs(zero=zero).floats(BF16)
    w_scale = base.w_scale.clone()
    w_scale.view(-1)[::2] *= -1
    for a in (torch.zeros_like(base.a), -torch.zeros_like(base.a)):
        check(backend, base.but(a=a, w_scale=w_scale))


@BACKENDS
def test_a_row_is_the_same_in_every_batch_on_any_thread(backend: Backend) -> None:
    inputs = Int4Case("batches", 64, 130, 1500, 128).inputs(zero=torch.uint8).floats(BF16)
    want = check(backend, inputs)
    threads = torch.get_num_threads()
    try:
        for count, m in itertools.product((1, 2, 3), (1, 2, 5, 7, 13, 64)):
            torch.set_num_threads(count)
            for begin in {0, 64 - m}:
                part = inputs.but(a=inputs.a[begin : begin + m])
                assert_equal(backend.gemm_int4(part, torch.float32), want[begin : begin + m], (count, m))
    finally:
        torch.set_num_threads(threads)


@BACKENDS
def test_the_plan_names_the_arithmetic(backend: Backend) -> None:
    with backend.active() as ops:
        plain, bf16 = (ops.explain_gemm_int4(7, 64, 64, 32, flag) for flag in (False, True))
    assert "bf16" not in kernel_of(plain)
    assert kernel_of(bf16) == "gemm_int4_avx512_bf16"
    assert "group = 32, bf16 activations with integer zero points" in bf16
    assert "not        gemm_int4_avx512_bf16: only for bf16 activations with integer zero points" in plain
