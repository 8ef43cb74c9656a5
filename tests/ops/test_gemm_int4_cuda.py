"""gemm_int4's CUDA kernels against float64 with the bound of the docstring, on the emulator and on a GPU."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import random

import numpy as np
import pytest
import torch

from tests.reference.gemm import Expected
from tests.support.backends import (
    Backend,
    EmulatedKernel,
    cuda_backends,
    emu_ops,
    emulated_kernels,
    emulator_parameters,
    kernel_of,
)
from tests.support.cases import FLOAT_DTYPES, dtype_name, generator, with_row_stride
from tests.support.check import combinations, in_turn
from tests.support.compare import assert_equal, assert_within
from tests.support.int4_cases import Int4Case, Int4Inputs
from tests.support.on_emulator import check_caps, sites_without_conflicts

OP = "gemm_int4"
BACKENDS = pytest.mark.parametrize("backend", cuda_backends(OP))
STORES = pytest.mark.parametrize("backend", cuda_backends(OP, stores=True))
EMULATED = pytest.mark.parametrize("emulated", emulator_parameters(OP))
SEEDS = range(1, 10)

HALVES = (torch.float16, torch.bfloat16)
ROWS = (0, 1, 7, 16, 17, 33, 64, 65, 130)
COLUMNS = (0, 1, 15, 17, 64, 130)
DEPTHS = (0, 1, 15, 16, 17, 63, 65, 127, 129, 257, 1024, 1040, 2100)
ZERO_KINDS = (None, "bytes", "floats")
GROUPS = (16, 32, 48, 64, 128, 256, 2000, -1)


def half_inputs(case: Int4Case, dtype: torch.dtype, zero: str | None, bias: torch.dtype | None) -> Int4Inputs:
    """zero: "bytes", "floats" or None."""
    kind = {"bytes": torch.uint8, "floats": dtype, None: None}[zero]
    return case.inputs(zero=kind, scale=dtype, bias=bias).floats(dtype)


@functools.cache
def solved(group: int, k: int) -> tuple[Int4Inputs, torch.dtype, Expected]:
    """A problem of this depth, whose m, n and kinds of arguments vary with it, and its answer."""
    i = GROUPS.index(group) * len(DEPTHS) + DEPTHS.index(k)
    pick = random.Random(i).choice
    case = Int4Case("half", ROWS[i % len(ROWS)], COLUMNS[i % len(COLUMNS)], k, group)
    bias = pick((None, *FLOAT_DTYPES))
    inputs, dtype = half_inputs(case, pick(HALVES), pick(("bytes", "floats", None)), bias), pick(FLOAT_DTYPES)
    return inputs, dtype, inputs.half_product(dtype)


@BACKENDS
@pytest.mark.parametrize("group", GROUPS)
def test_every_depth(group: int, backend: Backend) -> None:
    """Groups that cross ring steps and k chunks, ragged last groups, groups larger than k."""
    for k in in_turn(backend, GROUPS.index(group), DEPTHS):
        inputs, dtype, expected = solved(group, k)
        assert_within(backend.gemm_int4(inputs, dtype), expected, dtype, f"k = {k}")


@functools.cache
def shaped(m: int, n: int) -> tuple[Int4Inputs, torch.dtype, Expected]:
    """The two dtypes as on a chess board."""
    dtype = HALVES[(ROWS.index(m) + COLUMNS.index(n)) % 2]
    inputs = half_inputs(Int4Case("shape", m, n, 290, 48), dtype, "floats", None)
    return inputs, dtype, inputs.half_product(dtype)


@BACKENDS
def test_every_shape(backend: Backend) -> None:
    for turn, m in enumerate(ROWS):
        for n in in_turn(backend, turn, COLUMNS):
            inputs, dtype, expected = shaped(m, n)
            assert_within(backend.gemm_int4(inputs), expected, dtype, (m, n))


@STORES
@pytest.mark.parametrize("zero", ZERO_KINDS)
def test_any_strides_and_ragged_tails(zero: str | None, backend: Backend) -> None:
    """Rows of a at every alignment; scales and zero points whose columns lie apart."""
    inputs = half_inputs(Int4Case("strides", 18, 144, 200, 32), torch.float16, zero, None)
    want = backend.gemm_int4(inputs)
    assert_within(want, inputs.half_product(torch.float16), torch.float16)
    apart = [None if t is None else t.T.contiguous().T for t in (inputs.w_scale, inputs.w_zero_point)]
    odd = inputs.but(w_scale=apart[0], w_zero_point=apart[1])
    for extra, lead in ((1, 0), (2, 0), (8, 0), (61, 3)):
        a = with_row_stride(inputs.a, extra, lead, 77)
        assert_equal(backend.gemm_int4(odd.but(a=a)), want, (extra, lead))
    for stride in (0, 8):  # one row for all, and rows that overlap, each at a multiple of 16 bytes
        shared = inputs.but(a=inputs.a.as_strided((18, 200), (stride, 1)))
        assert_within(backend.gemm_int4(shared), shared.half_product(torch.float16), torch.float16, stride)


@STORES
def test_what_follows_the_sums(backend: Backend) -> None:
    base = half_inputs(Int4Case("steps", 5, 70, 130, 32), torch.bfloat16, None, torch.float32)
    g = generator("steps")
    gate, residual = torch.randn(5, 75, generator=g)[:, :70], torch.randn(5, 70, generator=g).bfloat16()
    activations = (None, "gelu", "gelu_tanh", "silu")
    for *row, dtype in combinations(
        backend, activations, (None, gate.half()), (None, residual), FLOAT_DTYPES
    ):
        inputs = base.but(activation=row[0], gate=row[1], residual=row[2])
        assert_within(backend.gemm_int4(inputs, dtype), inputs.half_product(dtype), dtype, row)


@BACKENDS
@pytest.mark.parametrize("dtype", HALVES, ids=dtype_name)
def test_extreme_values(dtype: torch.dtype, backend: Backend) -> None:
    """Subnormal and huge scales, zero points far outside of the codes."""
    inputs = half_inputs(Int4Case("extreme", 9, 40, 100, 32), dtype, "floats", None)
    assert inputs.w_zero_point is not None
    tiny, huge = torch.finfo(dtype).smallest_normal / 4, 64.0
    inputs.w_scale[:, ::3], inputs.w_scale[:, 1::3] = tiny, huge
    inputs.w_zero_point[:, ::4], inputs.w_zero_point[:, 1::4] = -100.0, 40.5
    inputs.w_zero_point[:, 2::12] = 1999.0
    assert_within(backend.gemm_int4(inputs, torch.float32), inputs.half_product(torch.float32), torch.float32)


@STORES
@pytest.mark.parametrize("dtype", HALVES, ids=dtype_name)
def test_underflow_stays_within_the_bound(dtype: torch.dtype, backend: Backend) -> None:
    """Scales make weights subnormal, and in bf16 products too small for f32."""
    inputs = half_inputs(Int4Case("underflow", 9, 40, 300, 32), dtype, "floats", None)
    lowest = torch.finfo(dtype).smallest_normal
    of_a, of_scale = (2.0**-12, 2.0**-6) if dtype == torch.float16 else (2.0**-80, 2.0**-62)
    for problem in (
        inputs.but(w_scale=(inputs.w_scale.float() * (lowest * 4)).to(dtype)),
        inputs.but(a=inputs.a * of_a, w_scale=inputs.w_scale * of_scale),
    ):
        assert_within(
            backend.gemm_int4(problem, torch.float32), problem.half_product(torch.float32), torch.float32
        )


@STORES
def test_weights_are_rounded_as_the_docstring_says(backend: Backend) -> None:
    """Each row of a picks one weight."""
    k = 48
    inputs = half_inputs(Int4Case("weights", k, 40, k, 16), torch.float16, "floats", None)
    assert inputs.w_zero_point is not None
    got = backend.gemm_int4(inputs.but(a=torch.eye(k, dtype=torch.float16)), torch.float32)
    scale, zero = (t.float().repeat_interleave(16, 0).numpy() for t in (inputs.w_scale, inputs.w_zero_point))
    near = np.rint(zero.clip(0, 15))
    shift = ((near - zero) * scale).astype(np.float16)
    exact = (inputs.q.T.numpy() - near.astype(np.float64)) * scale + shift
    assert_equal(got, torch.from_numpy(exact.astype(np.float16).astype(np.float32)))


@BACKENDS
@pytest.mark.parametrize("dtype", HALVES, ids=dtype_name)
def test_nan_and_inf_reach_what_depends_on_them(dtype: torch.dtype, backend: Backend) -> None:
    inputs = half_inputs(Int4Case("nan", 9, 40, 128, 32), dtype, "floats", torch.float32)
    assert inputs.w_zero_point is not None and inputs.bias is not None
    for i, value in enumerate((torch.nan, torch.inf, -torch.inf)):
        inputs.a[i, 17 * i] = value
        inputs.w_scale[i % 4, 3 * i] = value
        inputs.w_zero_point[i % 4, 20 + 3 * i] = value
        inputs.bias[35 + i] = value
    got = backend.gemm_int4(inputs, torch.float32)
    zero, scale = (t.float().repeat_interleave(32, 0) for t in (inputs.w_zero_point, inputs.w_scale))
    want = inputs.a.float() @ ((inputs.q.T.float() - zero) * scale) + inputs.bias
    assert_equal(got.isfinite(), want.isfinite())
    assert_equal(got.isnan(), want.isnan())
    assert_equal(got[got.isinf()], want[want.isinf()])


@STORES
@pytest.mark.parametrize("features", [5, 400])
def test_act_order(features: int, backend: Backend) -> None:
    for m, k in ((1, 64), (18, 290), (33, 1100)):
        for dtype in HALVES:
            inputs = Int4Case("perm", m, 40, k, 48).inputs(zero=torch.uint8, scale=dtype).permuted(features)
            inputs = inputs.floats(dtype)
            inputs = inputs.but(a=with_row_stride(inputs.a, 3, 1, 77))
            assert_within(backend.gemm_int4(inputs), inputs.half_product(dtype), dtype, (m, k))


@BACKENDS
def test_a_feature_that_there_is_not_is_nan(backend: Backend) -> None:
    """The host cannot check perm, so all outputs become NaN."""
    for wrong in (-2, 70, 2**31 - 1):
        inputs = half_inputs(Int4Case("wrong", 3, 20, 70, 32), torch.float16, None, None)
        perm = torch.arange(70, dtype=torch.int32)
        perm[40] = wrong
        assert bool(backend.gemm_int4(inputs.but(perm=perm)).isnan().all())


@BACKENDS
def test_what_lies_beyond_k_takes_no_part(backend: Backend) -> None:
    """Codes past k are 0, which stands for the weight -8 * scale: here too large for f16."""
    for k in (1, 15, 17, 64, 65, 96, 129, 192, 1090):
        inputs = half_inputs(Int4Case("beyond", 20, 20, k, -1), torch.float16, None, None)
        inputs = inputs.but(q=torch.full_like(inputs.q, 9), a=torch.ones_like(inputs.a))
        for scale in (10000.0, torch.inf):
            got = backend.gemm_int4(inputs.but(w_scale=torch.full_like(inputs.w_scale, scale)), torch.float32)
            assert_equal(got, torch.full((20, 20), k * scale), (k, scale))


@BACKENDS
def test_rows_do_not_depend_on_the_batch(backend: Backend) -> None:
    inputs = half_inputs(Int4Case("rows", 130, 72, 1100, 64), torch.float16, "bytes", None)
    want = backend.gemm_int4(inputs, torch.float32)
    for begin, end in ((0, 1), (7, 14), (64, 128)):
        got = backend.gemm_int4(inputs.rows(begin, end), torch.float32)
        assert_equal(got, want[begin:end], (begin, end))


def test_no_kernel_shows() -> None:
    """The result does not depend on the kernel that the planner chooses, nor on its tile and split of k."""
    inputs = half_inputs(Int4Case("kernels", 70, 130, 3000, 128), torch.bfloat16, "floats", None)
    first, *others = emulated_kernels(OP)
    want = first.gemm_int4(inputs, torch.float32)
    for emulated in others:
        assert_equal(emulated.gemm_int4(inputs, torch.float32), want, str(emulated))


@pytest.mark.parametrize("k", [64, 192, 1088, 1216])
def test_no_kernel_shows_in_the_sign_of_zero(k: int) -> None:
    """All products are -0, so that a product of +0 from past k would show."""
    inputs = half_inputs(Int4Case("signs", 3, 20, k, -1), torch.float16, None, None)
    inputs = inputs.but(a=torch.zeros_like(inputs.a), q=torch.zeros_like(inputs.q))
    want = torch.full((3, 20), -0.0)
    for emulated in emulated_kernels(OP):
        assert_equal(emulated.gemm_int4(inputs, torch.float32), want, str(emulated))


@EMULATED
def test_a_cap_on_sms_caps_blocks_and_changes_nothing(emulated: EmulatedKernel) -> None:
    for m, n, k in ((40, 300, 600), (3, 200, 4500)):  # the second needs a reduction
        inputs = half_inputs(Int4Case("capped", m, n, k, 128), torch.float16, "bytes", None)
        check_caps(emulated, lambda sms, i=inputs: [emulated.gemm_int4(i.but(max_sms=sms), torch.float32)])


@EMULATED
@pytest.mark.parametrize("zero", ZERO_KINDS)
def test_every_schedule(zero: str | None, emulated: EmulatedKernel) -> None:
    inputs = half_inputs(Int4Case("schedules", 17, 37, 1203, 48), torch.float16, zero, None)
    want = emulated.gemm_int4(inputs)
    assert_within(want, inputs.half_product(torch.float16), torch.float16)
    for seed in in_turn(emulated, ZERO_KINDS.index(zero), SEEDS):
        assert_equal(dataclasses.replace(emulated, seed=seed).gemm_int4(inputs), want, f"seed {seed}")


@EMULATED
def test_no_bank_conflicts(emulated: EmulatedKernel) -> None:
    i = half_inputs(Int4Case("conflicts", 130, 128, 512, 64), torch.float16, "bytes", None)
    operands = (i.a, i.pack(emulated.int4_layout), i.w_scale, i.group, i.w_zero_point)
    sites = sites_without_conflicts(emulated, lambda ops: ops.gemm_int4(*operands))
    assert {site.function for site in sites} >= (
        {"load_shared"} if emulated.arch == 90 else {"load_shared", "ldmatrix"}
    )


@pytest.mark.parametrize(("capability", "arch"), [(80, "sm80"), (89, "sm80"), (90, "sm90a"), (120, "sm80")])
def test_all_batches_have_kernels_of_one_arch(capability: int, arch: str) -> None:
    """Tensor cores of different generations may add in different orders."""
    for m, sms in itertools.product((1, 17, 64, 256, 4096), (1, 132)):
        plan = str(emu_ops().explain_gemm_int4_cuda(m, 4096, 4096, capability, 132, 128, sms))
        assert kernel_of(plan).startswith(f"gemm_int4_{arch}_"), plan
