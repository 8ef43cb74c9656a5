"""gemm_int4_int8 against exact integers and float64, on every kernel of kernels.inc."""

from __future__ import annotations

import functools
import itertools
import random

import pytest
import torch

import lamina
from tests.reference import gemm_int4 as reference
from tests.reference import quantize
from tests.reference.gemm import Expected
from tests.support.backends import Backend, available_cpu, cpu_backends, kernel_of
from tests.support.cases import FLOAT_DTYPES, dtype_name, generator, random_int8, with_row_stride
from tests.support.check import check_int4
from tests.support.compare import assert_equal, assert_within
from tests.support.int4_cases import Int4Case, Int4Inputs

OP = "gemm_int4_int8"
BACKENDS = pytest.mark.parametrize("backend", cpu_backends(OP))

ROWS = (0, 1, 2, 3, 4, 5, 6, 7, 13, 33, 66)
COLUMNS = (0, 1, 15, 16, 17, 64, 65, 130)
DEPTHS = (0, 1, 15, 16, 17, 63, 64, 65, 255, 256, 257, 1024, 1100, 2100, 4096)
GROUPS = (16, 32, 48, 64, 80, 128, 256, 2000, -1)
ZEROS = (None, torch.uint8, *FLOAT_DTYPES)


@functools.cache
def solved(group: int, k: int) -> tuple[Int4Inputs, torch.dtype, Expected, torch.Tensor]:
    """A problem of this depth, whose m, n and kinds of arguments vary with it, and its answer."""
    i = GROUPS.index(group) * len(DEPTHS) + DEPTHS.index(k)
    case = Int4Case("grid", ROWS[i % len(ROWS)], COLUMNS[i % len(COLUMNS)], k, group)
    pick = random.Random(i).choice
    inputs = case.inputs(
        zero=pick(ZEROS),
        scale=pick(FLOAT_DTYPES),
        a_zero=pick(("none", "none", "tensor", "token")),
        per_token=pick((False, True)),
        bias=pick((None, *FLOAT_DTYPES)),
    )
    sums, dtype = inputs.sums(), pick(FLOAT_DTYPES)
    return inputs, dtype, inputs.expected(sums, dtype), inputs.expected_bits(sums, dtype)


def check_solved(backend: Backend, group: int, k: int) -> None:
    inputs, dtype, expected, bits = solved(group, k)
    got, label = backend.gemm_int4_int8(inputs, dtype), f"k = {k}, m, n = {tuple(bits.shape)}"
    assert_within(got, expected, dtype, label)
    assert_equal(got, bits, label)


@BACKENDS
@pytest.mark.parametrize("group", GROUPS)
def test_every_depth(group: int, backend: Backend) -> None:
    """Groups that cross blocks and k chunks, ragged last groups, groups larger than k."""
    for k in DEPTHS:
        check_solved(backend, group, k)


@functools.cache
def shaped(m: int, n: int, zero: torch.dtype | None) -> tuple[Int4Inputs, torch.Tensor]:
    inputs = Int4Case("shape", m, n, 290, 48).inputs(zero=zero)
    return inputs, inputs.expected_bits(inputs.sums())


@BACKENDS
@pytest.mark.parametrize("zero", [None, torch.float16], ids=["symmetric", "zeros"])
def test_every_shape(zero: torch.dtype | None, backend: Backend) -> None:
    for m, n in itertools.product(ROWS, COLUMNS):
        inputs, want = shaped(m, n, zero)
        assert_equal(backend.gemm_int4_int8(inputs), want, (m, n))


@BACKENDS
@pytest.mark.parametrize("a_zero", ["none", "tensor", "token"])
@pytest.mark.parametrize("zero", ZEROS, ids=str)
def test_every_scale_and_zero_point(zero: torch.dtype | None, a_zero: str, backend: Backend) -> None:
    for scale, per_token in itertools.product(FLOAT_DTYPES, (False, True)):
        case = Int4Case("combination", 13, 37, 300, 64)
        inputs = case.inputs(zero=zero, scale=scale, a_zero=a_zero, per_token=per_token, bias=scale)
        check_int4(backend, inputs, inputs.sums(), (scale, per_token))


def strided(t: torch.Tensor) -> list[torch.Tensor]:
    """The same matrix as a transpose and as slices; the memory between its elements is NaN, or 255."""
    rows, columns = t.shape
    filler = 255 if t.dtype == torch.uint8 else torch.nan
    wide = torch.full((2 * rows + 1, 3 * columns + 2), filler).to(t.dtype)
    apart, tall = wide[1::2, 2::3], wide.T.contiguous().T[1::2, 2::3]
    inner = torch.full((rows + 2, columns + 5), filler).to(t.dtype)[1:-1, 2:-3]
    for view in (apart, tall, inner):
        view.copy_(t)
    return [t.T.contiguous().T, apart, tall, inner]


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.uint8, *FLOAT_DTYPES], ids=dtype_name)
def test_scales_and_zero_points_of_any_stride(dtype: torch.dtype, backend: Backend) -> None:
    scale = torch.float32 if dtype == torch.uint8 else dtype
    for a_zero in ("none", "token"):
        inputs = Int4Case("strides", 11, 70, 500, 64).inputs(zero=dtype, scale=scale, a_zero=a_zero)
        assert inputs.w_zero_point is not None
        want = inputs.expected_bits(inputs.sums())
        for w_scale, zeros in itertools.product(strided(inputs.w_scale), strided(inputs.w_zero_point)):
            again = inputs.but(w_scale=w_scale, w_zero_point=zeros)
            assert_equal(backend.gemm_int4_int8(again), want, (w_scale.stride(), zeros.stride()))
        for rows, columns in ((8, 1), (1, 70), (1, 1)):
            w_scale, zeros = (
                t[-rows:, :columns].expand(8, 70) for t in (inputs.w_scale, inputs.w_zero_point)
            )
            same = inputs.but(w_scale=w_scale, w_zero_point=zeros)
            assert_equal(backend.gemm_int4_int8(same), same.expected_bits(same.sums()), (rows, columns))


@BACKENDS
def test_scales_and_zero_points_of_activations_in_every_shape(backend: Backend) -> None:
    inputs = Int4Case("forms", 7, 31, 129, 64).inputs(a_zero="token")
    assert inputs.a_scale is not None and inputs.a_zero_point is not None
    want = inputs.expected_bits(inputs.sums())
    wide = torch.full((7, 3), torch.nan)
    wide[:, 1:2] = inputs.a_scale
    for a_scale in (inputs.a_scale.reshape(-1), wide[:, 1:2], wide[:, 1]):
        for zero in (inputs.a_zero_point.reshape(-1), inputs.a_zero_point):
            assert_equal(backend.gemm_int4_int8(inputs.but(a_scale=a_scale, a_zero_point=zero)), want)
    for one in (torch.tensor(0.5), torch.tensor([0.5]), torch.tensor([[0.5]])):
        again = inputs.but(a_scale=one, a_zero_point=one.to(torch.int8))
        assert_equal(backend.gemm_int4_int8(again), again.expected_bits(again.sums()))


@BACKENDS
@pytest.mark.parametrize("a_zero", ["none", "token"])
def test_any_row_stride_of_a(a_zero: str, backend: Backend) -> None:
    for m in (1, 7, 33):
        inputs = Int4Case("rows", m, 40, 300, 32).inputs(a_zero=a_zero)
        want = inputs.expected_bits(inputs.sums())
        for (extra, lead), filler in itertools.product(((1, 0), (0, 1), (61, 3), (1000, 64)), (-128, 85)):
            a = with_row_stride(inputs.a, extra, lead, filler)
            got = backend.gemm_int4_int8(inputs.but(a=a))
            assert_equal(got, want, f"m = {m}, row stride {a.stride(0)}, neighbours {filler}")


@BACKENDS
def test_rows_that_share_memory(backend: Backend) -> None:
    """Row stride 0 (an expanded row) and row stride 1 (a sliding window), for int8 and for floats."""
    line, inputs = (
        random_int8(generator("shared"), 1, 300),
        Int4Case("shared", 9, 19, 200, 48).inputs(zero=torch.uint8),
    )
    for a in (line[:, :200].expand(9, 200), line.as_strided((9, 200), (1, 1))):
        apart = inputs.but(a=a.contiguous())
        assert_equal(backend.gemm_int4_int8(inputs.but(a=a)), apart.expected_bits(apart.sums()))
    x = line.float()
    for rows in (x[:, :200].expand(9, 200), x.as_strided((9, 200), (1, 1))):
        want = backend.gemm_int4_int8(inputs.but(a=rows.contiguous(), a_scale=None))
        assert_equal(backend.gemm_int4_int8(inputs.but(a=rows, a_scale=None)), want)


@BACKENDS
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=dtype_name)
@pytest.mark.parametrize("zero", [None, torch.uint8], ids=str)
def test_float_activations_are_quantised(
    zero: torch.dtype | None, dtype: torch.dtype, backend: Backend
) -> None:
    for m, n, k in ((0, 5, 64), (1, 65, 300), (7, 40, 1100), (33, 17, 65), (3, 5, 0)):
        inputs = Int4Case("floats", m, n, k, 64).inputs(zero=zero, bias=torch.float32)
        x = (torch.randn(m, k + 5, generator=generator(f"floats {m} {k}")) * 3).to(dtype)[:, 2 : k + 2]
        if m > 5:
            x[0, 3], x[2, k - 1], x[4, 0] = torch.nan, torch.inf, -torch.inf
            x[5] = 0
        q = quantize.quantize_int8(x.float().numpy())
        quantised = inputs.but(a=torch.from_numpy(q.q), a_scale=torch.from_numpy(q.scale))
        sums = quantised.sums()
        for out_dtype in FLOAT_DTYPES:
            got = backend.gemm_int4_int8(inputs.but(a=x, a_scale=None), out_dtype)
            assert_equal(got, quantised.expected_bits(sums, out_dtype), (m, n, k))
        if m > 5:
            assert got.isnan().all(1).tolist() == [row in (0, 2, 4) for row in range(m)]


@BACKENDS
@pytest.mark.parametrize("zero", ZEROS, ids=str)
@pytest.mark.parametrize("a_zero", ["none", "token"])
def test_nan_and_inf(a_zero: str, zero: torch.dtype | None, backend: Backend) -> None:
    inputs = Int4Case("lost", 17, 70, 500, 48).inputs(zero=zero, a_zero=a_zero, bias=torch.float32)
    assert inputs.a_scale is not None and inputs.bias is not None
    inputs.a[4] = 0  # 0 * Inf
    for i, value in enumerate((torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 3e38)):
        inputs.a_scale[i] = value
        inputs.w_scale[10 - i, 7 * i + 1] = value
        inputs.bias[5 * i] = value
        if zero is not None and zero.is_floating_point:
            assert inputs.w_zero_point is not None
            inputs.w_zero_point[i, 9 * i + 3] = value
    sums = inputs.sums()
    for dtype in FLOAT_DTYPES:
        got = backend.gemm_int4_int8(inputs, dtype)
        assert_equal(got, inputs.expected_bits(sums, dtype), dtype)
        assert got.isnan().any() and got.isinf().any() and got.isfinite().any()


@BACKENDS
@pytest.mark.parametrize("zero", [None, torch.float32], ids=str)
def test_a_row_is_the_same_in_every_batch(zero: torch.dtype | None, backend: Backend) -> None:
    for k, group, a_zero in ((391, 32, "none"), (1300, -1, "token"), (2100, 80, "none")):
        inputs = Int4Case("batch", 257, 49, k, group).inputs(zero=zero, a_zero=a_zero, bias=torch.bfloat16)
        data = inputs.pack()
        whole = backend.gemm_int4_int8_packed(inputs, data)
        assert_equal(whole[:9], inputs.rows(0, 9).expected_bits(inputs.rows(0, 9).sums()))
        for size, begin in itertools.product((1, 7, 64), (0, 3, 100, -1)):
            begin = 257 - size if begin == -1 else begin
            part = backend.gemm_int4_int8_packed(inputs.rows(begin, begin + size), data)
            assert_equal(part, whole[begin : begin + size], f"k = {k}, rows {begin} to {begin + size}")


@BACKENDS
@pytest.mark.usefixtures("restore_threads")
def test_independent_of_the_thread_count(backend: Backend) -> None:
    for m, n, k, a_zero in ((1, 300, 257, "none"), (40, 130, 300, "token"), (257, 33, 129, "none")):
        inputs = Int4Case("threads", m, n, k, 48).inputs(zero=torch.uint8, a_zero=a_zero)
        want = inputs.expected_bits(inputs.sums())
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert_equal(backend.gemm_int4_int8(inputs), want, f"m = {m}, {threads} threads")


@pytest.mark.parametrize("group", [16, 80, 256, -1])
def test_all_kernels_agree(group: int) -> None:
    for m, n, k in ((1, 130, 700), (12, 65, 1100), (70, 33, 530)):
        for zero, a_zero in ((None, "none"), (torch.bfloat16, "none"), (torch.uint8, "token")):
            inputs = Int4Case("agree", m, n, k, group).inputs(zero=zero, a_zero=a_zero)
            first, *others = available_cpu(OP)
            want = first.gemm_int4_int8(inputs)
            for backend in others:
                assert_equal(backend.gemm_int4_int8(inputs), want, f"{backend} {m} {n} {k} {zero}")


@pytest.mark.parametrize("backend", cpu_backends(OP))
def test_the_forced_isa_is_the_one_that_runs(backend: Backend) -> None:
    with backend.active() as ops:
        for group in (64, 128, None):
            runs = kernel_of(ops.explain_gemm_int4_int8(64, 64, 256, group))
            assert runs == f"{OP}_{backend.isa}"


def test_python_function_calls_the_op() -> None:
    i = Int4Case("emulator", 7, 31, 300, 64).inputs(zero=torch.uint8, a_zero="token", bias=torch.float16)
    packed = lamina.pack_int4(i.q, "int4_rows")
    got = lamina.gemm_int4_int8(
        i.a, packed, i.w_scale, group=64, a_scale=i.a_scale, w_zero_point=i.w_zero_point,
        a_zero_point=i.a_zero_point, bias=i.bias, out_dtype=torch.bfloat16,
    )  # fmt: skip
    assert_equal(got, i.expected_bits(i.sums(), torch.bfloat16))
    plain = i.but(w_zero_point=None, a_zero_point=None, bias=None)
    got = lamina.gemm_int4_int8(i.a, packed, i.w_scale, group=64, a_scale=i.a_scale)
    assert_equal(got, plain.expected_bits(plain.sums()))


def test_the_bound_is_of_few_roundings() -> None:
    """The count of roundings by hand: groups of a k chunk, and k chunks, ragged or not."""
    for group, k, want in ((16, 64, 4 + 4 + 1), (48, 1100, 4 + 20 + 2), (80, 1000, 4 + 12 + 2),
                           (2000, 4100, 4 + 3 + 1), (128, 4096, 4 + 8 + 4)):  # fmt: skip
        sums = Int4Case("bound", 1, 1, k, group).inputs().sums()
        assert reference.roundings(sums) == want
