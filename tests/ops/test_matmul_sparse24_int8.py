"""matmul_sparse24_int8 has the bits of gemm_int8 with zeros in place, on every kernel of kernels.inc."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import lamina
from tests.reference.sparse24 import PAIRS
from tests.support.backends import Backend, EmulatedKernel, backends, cpu_backends, kernel_of
from tests.support.cases import FLOAT_DTYPES, GEMM_CASES, GemmCase, GemmInputs, dtype_name, generator, grouped
from tests.support.check import followed
from tests.support.compare import assert_equal, assert_within
from tests.support.sparse24_cases import DTYPES, SHAPES, at_whole_groups, bits, pruned, sparse_weight

OP = "matmul_sparse24_int8"
BACKENDS = pytest.mark.parametrize("backend", backends(OP))
CASES = tuple(at_whole_groups(case) for case in GEMM_CASES)
ONE = torch.ones(1)


def check(
    backend: Backend, inputs: GemmInputs, label: object, dtypes: tuple[torch.dtype, ...] = FLOAT_DTYPES
) -> None:
    """Within the documented bound, and the bits of the documented f32 steps."""
    acc = inputs.accumulated()
    for dtype in dtypes:
        got = backend.matmul_sparse24_int8(inputs, dtype)
        assert_within(got, inputs.expected(acc, dtype), dtype, f"{label} {dtype}")
        assert_equal(got, inputs.expected_bits(acc, dtype), f"{label} {dtype}")


@BACKENDS
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_reference(case: GemmCase, backend: Backend) -> None:
    check(backend, pruned(case.inputs(zero_point="token", bias=torch.float32)), case)


@pytest.mark.parametrize("backend", cpu_backends(OP))
@pytest.mark.parametrize("shape", [(1, 17, 128), (7, 31, 1028), (33, 97, 4300), (0, 5, 200)], ids=str)
def test_scales_along_k(shape: tuple[int, int, int], backend: Backend) -> None:
    check(backend, pruned(grouped(GemmCase("groups", *shape), zero_point="token", bias=torch.float32)), shape)


@BACKENDS
def test_every_step_of_the_epilogue(backend: Backend) -> None:
    inputs = pruned(GemmCase("epilogue", 9, 70, 132).inputs(zero_point="token", bias=torch.float16))
    for activation, dtype in (("silu", torch.bfloat16), ("gelu", torch.float32), (None, torch.float16)):
        check(backend, followed(inputs, activation, dtype, torch.float32), activation)


@BACKENDS
@pytest.mark.parametrize("pair", PAIRS.values(), ids=str)
def test_each_pair_of_kept_places(pair: tuple[int, int], backend: Backend) -> None:
    """Every group keeps the same two places, and every activation and weight differs from its neighbours."""
    m, n, k = 7, 81, 76
    a = torch.arange(m * k).view(m, k) * 37 % 251 - 125
    w = torch.arange(n * k).view(n, k) * 29 % 253 - 126
    w[w == 0] = 127
    kept = torch.tensor([place in pair for place in range(4)]).repeat(k // 4)
    inputs = GemmInputs(a.to(torch.int8), (w * kept).to(torch.int8), ONE, ONE, None, None)
    assert_equal(backend.matmul_sparse24_int8(inputs), inputs.accumulated().astype(np.float32))


@pytest.mark.parametrize("backend", cpu_backends(OP))
@pytest.mark.parametrize("a", [-128, 127, -1, 0])
@pytest.mark.parametrize("w", [-128, 127, 1])
def test_extreme_values_everywhere(a: int, w: int, backend: Backend) -> None:
    """Each product and each pair of products has its largest magnitude; no instruction may saturate."""
    for m, n, k in ((1, 16, 4), (2, 33, 68), (17, 16, 512), (40, 65, 1032)):
        weight = torch.tensor([0, w, w, 0], dtype=torch.int8).repeat(n, k // 4)
        zero = torch.tensor([-128 if a > 0 else 127], dtype=torch.int8)
        inputs = GemmInputs(torch.full((m, k), a, dtype=torch.int8), weight, ONE, ONE, zero, None)
        want = np.full((m, n), float((a - int(zero)) * w * k // 2), np.float32)
        assert_equal(backend.matmul_sparse24_int8(inputs), want, f"{m} x {n} x {k}")


@pytest.mark.parametrize("backend", cpu_backends(OP))
def test_saturating_pairs_next_to_small_ones(backend: Backend) -> None:
    patterns = list(itertools.product((-128, 127, 3), repeat=4))
    a = torch.tensor([p * 16 for p in patterns], dtype=torch.int8)
    inputs = pruned(GemmInputs(a, a.clone(), ONE, ONE, None, None))
    assert_equal(backend.matmul_sparse24_int8(inputs), inputs.accumulated().astype(np.float32))


@pytest.mark.parametrize("backend", cpu_backends(OP))
@pytest.mark.parametrize("minima", [0, 1, 5, 64], ids="{} of 64".format)
@pytest.mark.parametrize("m", [1, 3, 17])
def test_the_lowest_activation_in_few_and_in_many_places(m: int, minima: int, backend: Backend) -> None:
    """-128 has no negative in int8; kernels that negate bytes treat it separately, by row or by tile of k."""
    g = generator(f"minima {m} {minima}")
    for highest in (126, 127):
        a = torch.randint(-127, highest + 1, (m, 1100), generator=g)
        a[torch.rand(m, 1100, generator=g) < minima / 64] = -128
        a[:, 77] = highest
        w = torch.randint(-128, 128, (70, 1100), generator=g).to(torch.int8)
        inputs = pruned(GemmInputs(a.to(torch.int8), w, ONE, ONE, None, None))
        assert_equal(backend.matmul_sparse24_int8(inputs), inputs.accumulated().astype(np.float32))


# The emulator takes seconds for this depth, so it gets one number of rows.
DEEP = [
    pytest.param(m, *backend.values, id=f"{m}-{backend.id}", marks=backend.marks)
    for backend in backends(OP, stores=True)
    for m in (1, 5, 40)
    if not isinstance(backend.values[0], EmulatedKernel) or m == 5
]


@pytest.mark.parametrize(("m", "backend"), DEEP)
def test_sums_beyond_int32(m: int, backend: Backend) -> None:
    k = 140_000
    a = torch.full((m, k), -128, dtype=torch.int8)
    a[0, ::3] = 5
    w = torch.tensor([-128, 0, 0, -128], dtype=torch.int8).repeat(3, k // 4)
    w[1] = w[1].neg().clamp(max=127)
    zero = torch.full((m, 1), 127, dtype=torch.int8)
    check(backend, GemmInputs(a, w, ONE, ONE, zero, None), f"{m} rows", FLOAT_DTYPES[:1])


@BACKENDS
def test_a_row_is_the_same_in_every_batch(backend: Backend) -> None:
    inputs = pruned(GemmCase("batch", 97, 70, 1104).inputs(zero_point="token", bias=torch.bfloat16))
    whole = backend.matmul_sparse24_int8(inputs)
    for begin, size in ((0, 1), (3, 2), (90, 4), (2, 5), (11, 6), (60, 17), (0, 64)):
        part = backend.matmul_sparse24_int8(inputs.rows(begin, begin + size))
        assert_equal(part, whole[begin : begin + size], f"rows {begin} to {begin + size}")


@pytest.mark.parametrize("backend", cpu_backends(OP))
@pytest.mark.usefixtures("restore_threads")
def test_independent_of_the_thread_count(backend: Backend) -> None:
    inputs = pruned(GemmCase("threads", 40, 330, 300).inputs(zero_point="token", bias=torch.float32))
    want = inputs.expected_bits(inputs.accumulated(), torch.float32)
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        assert_equal(backend.matmul_sparse24_int8(inputs), want, f"{threads} threads")


@pytest.mark.parametrize("backend", cpu_backends(OP))
def test_the_forced_isa_is_the_one_that_runs(backend: Backend) -> None:
    with backend.active() as ops:
        assert kernel_of(ops.explain_matmul_sparse24_int8(64, 64, 64)) == f"{OP}_{backend.isa}"


@pytest.mark.parametrize("out_dtype", FLOAT_DTYPES, ids=dtype_name)
def test_python_function_calls_the_op(out_dtype: torch.dtype) -> None:
    i = pruned(GemmCase("python", 7, 31, 132).inputs(zero_point="token", bias=torch.float16))
    packed = lamina.pack_sparse24(lamina.compress_sparse24(i.w))
    got = lamina.matmul_sparse24_int8(
        i.a, packed, i.a_scale, i.w_scale, a_zero_point=i.a_zero_point, bias=i.bias, out_dtype=out_dtype
    )
    assert_equal(got, i.expected_bits(i.accumulated(), out_dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pack_and_unpack(shape: tuple[int, int], dtype: torch.dtype) -> None:
    w = sparse_weight(*shape, dtype)
    sparse = lamina.compress_sparse24(w % 16 if dtype == torch.uint8 else w)
    packed = lamina.pack_sparse24(sparse)
    again = packed.unpack()
    assert_equal(torch.from_numpy(bits(again.values)), bits(sparse.values))
    assert_equal(again.metadata, sparse.metadata)
    if dtype == torch.int8:
        assert_equal(packed.column_sums, w.sum(1, dtype=torch.int32))
        assert packed.nbytes == -(-shape[0] // 16) * -(-shape[1] // 64) * 640 + shape[0] * 4


@pytest.mark.parametrize("layout", ["sparse24_rows", "sparse24_tile"])
def test_rows_of_values_and_of_metadata_may_be_apart(layout: str) -> None:
    sparse = lamina.compress_sparse24(pruned(GemmCase("rows", 1, 37, 132).inputs()).w)
    values, metadata = (torch.zeros(37, 200, dtype=part.dtype) for part in (sparse.values, sparse.metadata))
    values[:, : sparse.values.shape[1]], metadata[:, : sparse.metadata.shape[1]] = (
        sparse.values,
        sparse.metadata,
    )
    apart = values[:, : sparse.values.shape[1]], metadata[:, : sparse.metadata.shape[1]]
    for got, want in zip(
        torch.ops.lamina.pack_sparse24(*apart, 132, layout),
        torch.ops.lamina.pack_sparse24(sparse.values, sparse.metadata, 132, layout),
        strict=True,
    ):
        assert_equal(got, want, layout)
