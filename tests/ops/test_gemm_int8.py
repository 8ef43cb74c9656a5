"""gemm_int8 against exact integers and float64, on every kernel of kernels.inc."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import lamina
from tests.support.backends import (
    Backend,
    CudaKernel,
    available_cpu,
    backends,
    cpu_backends,
    kernel_of,
)
from tests.support.cases import (
    FLOAT_DTYPES,
    GEMM_BY_NAME,
    GEMM_CASES,
    GemmCase,
    GemmInputs,
    dtype_name,
    generator,
    random_int8,
    random_scale,
    with_row_stride,
)
from tests.support.check import check_gemm, combinations, in_turn
from tests.support.compare import assert_equal, assert_within

BACKENDS = pytest.mark.parametrize("backend", backends("gemm_int8"))
STORES = pytest.mark.parametrize("backend", backends("gemm_int8", stores=True))
ONE = torch.ones(1)


@functools.cache
def case_with_answer(case: GemmCase) -> tuple[GemmInputs, NDArray[np.int64]]:
    inputs = case.inputs(zero_point="token", bias=torch.float32)
    return inputs, inputs.accumulated()


@BACKENDS
@pytest.mark.parametrize("case", GEMM_CASES, ids=str)
def test_matches_reference(case: GemmCase, backend: Backend) -> None:
    check_gemm(backend, *case_with_answer(case), case, in_turn(backend, GEMM_CASES.index(case), FLOAT_DTYPES))


@STORES
def test_every_scale_zero_point_and_bias(backend: Backend) -> None:
    case = GemmCase("combination", 7, 37, 70)
    yes_no, zero_points, biases = (False, True), ("none", "tensor", "token"), (None, *FLOAT_DTYPES)
    for row in combinations(backend, yes_no, yes_no, zero_points, biases, FLOAT_DTYPES):
        per_token, per_channel, zero_point, bias, dtype = row
        inputs = case.inputs(per_token=per_token, per_channel=per_channel, zero_point=zero_point, bias=bias)
        check_gemm(backend, inputs, inputs.accumulated(), row, [dtype])


@STORES
def test_scales_zero_points_and_bias_in_every_accepted_shape(backend: Backend) -> None:
    inputs = GEMM_BY_NAME["seven_rows"].inputs(zero_point="token", bias=torch.float32)
    want = backend.gemm(inputs)
    assert inputs.a_zero_point is not None
    wide = torch.randn(7, 3)
    wide[:, 1:2] = inputs.a_scale
    for a_scale in (inputs.a_scale.reshape(-1), wide[:, 1:2], wide[:, 1]):
        for w_scale in (inputs.w_scale.reshape(-1), inputs.w_scale):
            for zero in (inputs.a_zero_point.reshape(-1), inputs.a_zero_point):
                again = GemmInputs(inputs.a, inputs.w, a_scale, w_scale, zero, inputs.bias)
                assert_equal(backend.gemm(again), want)
    for one in (torch.tensor(0.5), torch.tensor([0.5]), torch.tensor([[0.5]])):
        again = GemmInputs(inputs.a, inputs.w, one, one, None, None)
        assert_equal(backend.gemm(again), (0.25 * again.accumulated()).astype(np.float32))


@STORES
@pytest.mark.parametrize("name", ["row_ragged", "seven_rows", "ragged_amx_panel", "blocks_of_depth"])
def test_any_row_stride_of_a(name: str, backend: Backend) -> None:
    inputs, acc = case_with_answer(GEMM_BY_NAME[name])
    want = inputs.expected_bits(acc, torch.float32)
    for extra, lead, filler in ((1, 0, -128), (0, 1, 85), (61, 3, -128), (1000, 64, 85)):
        i = inputs
        a = with_row_stride(i.a, extra, lead, filler)
        strided = GemmInputs(a, i.w, i.a_scale, i.w_scale, i.a_zero_point, i.bias)
        assert_equal(backend.gemm(strided), want, f"row stride {a.stride(0)}, neighbours {filler}")


@STORES
def test_rows_that_share_memory(backend: Backend) -> None:
    """Row stride 0 (an expanded row) and row stride 1 (a sliding window)."""
    g = generator("shared rows")
    line, w = random_int8(g, 1, 300), random_int8(g, 19, 200)
    for a in (line[:, :200].expand(9, 200), line.as_strided((9, 200), (1, 1))):
        inputs = GemmInputs(a, w, random_scale(g, 9), random_scale(g, 19), None, None)
        acc = GemmInputs(a.contiguous(), w, ONE, ONE, None, None).accumulated()
        assert_equal(backend.gemm(inputs), inputs.expected_bits(acc, torch.float32))


@STORES
@pytest.mark.parametrize("out_dtype", FLOAT_DTYPES, ids=dtype_name)
def test_nan_and_inf_of_scales_and_bias(out_dtype: torch.dtype, backend: Backend) -> None:
    inputs = GEMM_BY_NAME["ragged_everywhere"].inputs(bias=torch.float32)
    assert inputs.bias is not None
    inputs.a[4] = 0  # 0 * Inf
    for i, value in enumerate((torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 3e38)):
        inputs.a_scale[i] = value
        inputs.w_scale[7 * i + 1] = value
        inputs.bias[5 * i] = value
    acc = inputs.accumulated()
    got = backend.gemm(inputs, out_dtype)
    assert_equal(got, inputs.expected_bits(acc, out_dtype))
    assert got.isnan().any()
    assert got.isinf().any()


@STORES
@pytest.mark.parametrize("out_dtype", FLOAT_DTYPES, ids=dtype_name)
@pytest.mark.parametrize("exponent", [0, 3, -10, -20, -30, -126, -140])
def test_rounding_of_the_output(exponent: int, out_dtype: torch.dtype, backend: Backend) -> None:
    """Consecutive integers times a power of two give ties, overflow to Inf and subnormals."""
    a = torch.tensor([[127, 1, 127, 127], [-127, -1, -127, -127], [5, 1, 7, 0]], dtype=torch.int8)
    w = torch.stack(
        [torch.tensor([c // 127 % 128, c % 127, c // 3 % 100, c % 61]) for c in range(0, 12000, 7)]
    )
    scale = torch.tensor([2.0**exponent])
    inputs = GemmInputs(a, w.to(torch.int8), scale, ONE, None, None)
    acc = inputs.accumulated()
    got = backend.gemm(inputs, out_dtype)
    assert_equal(got, inputs.expected_bits(acc, out_dtype))
    assert_within(got, inputs.expected(acc, out_dtype), out_dtype)


@BACKENDS
@pytest.mark.parametrize("n, k, dtype", [(49, 191, torch.bfloat16), (70, 1101, torch.float32)])
def test_a_row_is_the_same_in_every_batch(n: int, k: int, dtype: torch.dtype, backend: Backend) -> None:
    """The order of the sums does not depend on the dtype of the result."""
    m = 140 if isinstance(backend, CudaKernel) else 257
    inputs = GemmCase("batch", m, n, k).inputs(zero_point="token", bias=torch.bfloat16)
    data, sums = backend.pack(inputs.w)
    whole = backend.gemm_packed(inputs, data, sums, dtype)
    begins = itertools.cycle((0, 3, 100, None))
    for size, begin in zip((1, 2, 4, 5, 6, 7, 31, 64, 1, 5, 31), begins, strict=False):
        begin = m - size if begin is None else min(begin, m - size)
        part = backend.gemm_packed(inputs.rows(begin, begin + size), data, sums, dtype)
        assert_equal(part, whole[begin : begin + size], f"rows {begin} to {begin + size}")


@pytest.mark.parametrize("backend", cpu_backends("gemm_int8"))
@pytest.mark.parametrize("shape", [(1, 300, 257), (40, 130, 300), (257, 33, 129)], ids=str)
@pytest.mark.usefixtures("restore_threads")
def test_independent_of_the_thread_count(shape: tuple[int, int, int], backend: Backend) -> None:
    inputs = GemmCase("threads", *shape).inputs(zero_point="token", bias=torch.float32)
    want = inputs.expected_bits(inputs.accumulated(), torch.float32)
    for threads in (1, 2, 3, 7, 16):
        torch.set_num_threads(threads)
        assert_equal(backend.gemm(inputs), want, f"{threads} threads")


@BACKENDS
def test_independent_of_the_sms_it_may_use(backend: Backend) -> None:
    """A block takes unit after unit. The fewest SMs are two, because a kernel with clusters needs two."""
    inputs = GemmCase("capped", 150, 140, 700).inputs(zero_point="token", bias=torch.float32)
    want = inputs.expected_bits(inputs.accumulated(), torch.float32)
    assert_equal(backend.gemm(dataclasses.replace(inputs, max_sms=2)), want)


@pytest.mark.parametrize("case", [c for c in GEMM_CASES if c.m * c.n * c.k], ids=str)
def test_all_isas_agree_and_read_each_others_packing(case: GemmCase) -> None:
    inputs = case.inputs(zero_point="token", bias=torch.float16)
    inputs.a_scale[0], inputs.w_scale[-1] = torch.nan, torch.inf
    everywhere = available_cpu("gemm_int8")
    packed = {str(backend): backend.pack(inputs.w) for backend in everywhere}
    want = everywhere[0].gemm_packed(inputs, *packed[str(everywhere[-1])], torch.bfloat16)
    for packer, runner in itertools.product(everywhere, everywhere):
        if case.n * case.k > 20_000 and packer != everywhere[0]:
            continue
        got = runner.gemm_packed(inputs, *packed[str(packer)], torch.bfloat16)
        assert_equal(got, want, f"packed by {packer}, run by {runner}")


@pytest.mark.parametrize("backend", cpu_backends("gemm_int8"))
def test_the_forced_isa_is_the_one_that_runs(backend: Backend) -> None:
    with backend.active() as ops:
        assert ops.cpu_isa() == backend.isa
        assert kernel_of(ops.explain_gemm_int8(64, 64, 64)) == f"gemm_int8_{backend.isa}"


def test_python_function_calls_the_op() -> None:
    inputs = GEMM_BY_NAME["seven_rows"].inputs(zero_point="token", bias=torch.float16)
    i, packed = inputs, lamina.pack_int8(inputs.w)
    want = inputs.expected_bits(inputs.accumulated(), torch.bfloat16)
    got = lamina.gemm_int8(
        i.a, packed, i.a_scale, i.w_scale,
        a_zero_point=i.a_zero_point, bias=i.bias, out_dtype=torch.bfloat16,
    )  # fmt: skip
    assert_equal(got, want)
    plain = GemmInputs(i.a, i.w, i.a_scale, i.w_scale, None, None)
    want = plain.expected_bits(plain.accumulated(), torch.float32)
    assert_equal(lamina.gemm_int8(i.a, packed, i.a_scale, i.w_scale), want)
