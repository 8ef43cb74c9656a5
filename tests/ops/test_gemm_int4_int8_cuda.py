"""gemm_int4_int8's CUDA kernels: the documented f32 steps, bit for bit, on the emulator and on a GPU."""

from __future__ import annotations

import dataclasses
import functools
import random

import pytest
import torch

from tests.reference import quantize
from tests.support.backends import (
    Backend,
    EmulatedKernel,
    cuda_backends,
    emulator_parameters,
)
from tests.support.cases import FLOAT_DTYPES, dtype_name, generator, with_row_stride
from tests.support.check import combinations, in_turn
from tests.support.compare import assert_equal, assert_within
from tests.support.int4_cases import Int4Case, Int4Inputs
from tests.support.on_emulator import check_caps, sites_without_conflicts

OP = "gemm_int4_int8"
BACKENDS = pytest.mark.parametrize("backend", cuda_backends(OP))
STORES = pytest.mark.parametrize("backend", cuda_backends(OP, stores=True))
EMULATED = pytest.mark.parametrize("emulated", emulator_parameters(OP))
SEEDS = range(9)

ROWS = (0, 1, 7, 16, 17, 33, 64, 65, 130)
COLUMNS = (0, 1, 15, 17, 64, 130)
DEPTHS = (0, 1, 15, 16, 17, 63, 65, 127, 129, 257, 1024, 1040, 2100)
GROUPS = (16, 32, 48, 64, 128, 256, 400, 2000, -1)
ZEROS = (None, torch.uint8, *FLOAT_DTYPES)


@functools.cache
def solved(group: int, k: int) -> tuple[Int4Inputs, torch.dtype, torch.Tensor]:
    """A problem of this depth, whose m, n and kinds of arguments vary with it, and its answer."""
    i = GROUPS.index(group) * len(DEPTHS) + DEPTHS.index(k)
    pick = random.Random(i).choice
    inputs = Int4Case("cuda", ROWS[i % len(ROWS)], COLUMNS[i % len(COLUMNS)], k, group).inputs(
        zero=pick(ZEROS),
        scale=pick(FLOAT_DTYPES),
        a_zero=pick(("none", "none", "tensor", "token")),
        per_token=pick((False, True)),
        bias=pick((None, *FLOAT_DTYPES)),
    )
    dtype = pick(FLOAT_DTYPES)
    return inputs, dtype, inputs.expected_bits(inputs.sums(), dtype)


@BACKENDS
@pytest.mark.parametrize("group", GROUPS)
def test_every_depth(group: int, backend: Backend) -> None:
    """Groups that cross ring steps and k chunks, ragged last groups, groups larger than k."""
    for k in in_turn(backend, GROUPS.index(group), DEPTHS):
        inputs, dtype, bits = solved(group, k)
        assert_equal(backend.gemm_int4_int8(inputs, dtype), bits, f"k = {k}")


@functools.cache
def shaped(m: int, n: int) -> tuple[Int4Inputs, torch.Tensor]:
    inputs = Int4Case("shape", m, n, 290, 48).inputs(zero=torch.float16, a_zero="token")
    return inputs, inputs.expected_bits(inputs.sums())


@BACKENDS
def test_every_shape(backend: Backend) -> None:
    for turn, m in enumerate(ROWS):
        for n in in_turn(backend, turn, COLUMNS):
            inputs, bits = shaped(m, n)
            assert_equal(backend.gemm_int4_int8(inputs), bits, (m, n))


@STORES
def test_every_scale_and_zero_point(backend: Backend) -> None:
    for row in combinations(backend, ZEROS, ("none", "tensor", "token"), FLOAT_DTYPES, (False, True)):
        zero, a_zero, scale, per_token = row
        case = Int4Case("combination", 13, 37, 300, 64)
        inputs = case.inputs(zero=zero, scale=scale, a_zero=a_zero, per_token=per_token, bias=scale)
        assert_equal(backend.gemm_int4_int8(inputs), inputs.expected_bits(inputs.sums()), row)


@BACKENDS
@pytest.mark.parametrize("value", [-128, 127])
def test_largest_sums(value: int, backend: Backend) -> None:
    """Every product has the largest possible magnitude."""
    inputs = Int4Case("largest", 3, 20, 5000, -1).inputs(zero=torch.uint8, a_zero="token")
    inputs.a[:], inputs.q[:] = value, 15
    assert inputs.a_zero_point is not None
    inputs.a_zero_point[:] = -value - 1
    assert_equal(backend.gemm_int4_int8(inputs), inputs.expected_bits(inputs.sums()))


@STORES
@pytest.mark.parametrize("zero", [torch.uint8, *FLOAT_DTYPES], ids=dtype_name)
def test_any_strides(zero: torch.dtype, backend: Backend) -> None:
    """Rows of a at every alignment; scales and zero points whose columns lie apart."""
    scale = torch.float32 if zero == torch.uint8 else zero
    inputs = Int4Case("strides", 18, 144, 200, 32).inputs(zero=zero, scale=scale, a_zero="token")
    want = inputs.expected_bits(inputs.sums())
    apart = [None if t is None else t.T.contiguous().T for t in (inputs.w_scale, inputs.w_zero_point)]
    odd = inputs.but(w_scale=apart[0], w_zero_point=apart[1])
    for extra, lead in ((1, 0), (2, 0), (8, 0), (61, 3)):
        a = with_row_stride(inputs.a, extra, lead, 77)
        assert_equal(backend.gemm_int4_int8(odd.but(a=a)), want, (extra, lead))
    assert_equal(backend.gemm_int4_int8(inputs), want)


@BACKENDS
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=dtype_name)
def test_float_activations_are_quantised(dtype: torch.dtype, backend: Backend) -> None:
    for m, n, k, extra in ((1, 65, 300, 5), (7, 40, 1100, 4), (33, 17, 64, 0), (3, 5, 0, 1)):
        inputs = Int4Case("floats", m, n, k, 64).inputs(zero=torch.uint8, bias=torch.float32)
        x = (torch.randn(m, k + extra, generator=generator(f"floats {m} {k}")) * 3).to(dtype)[:, extra // 2 :]
        x = x[:, :k]
        if m > 5:
            x[0, 3], x[2, k - 1], x[4, 0] = torch.nan, torch.inf, -torch.inf
            x[5] = 0
        q = quantize.quantize_int8(x.float().numpy())
        quantised = inputs.but(a=torch.from_numpy(q.q), a_scale=torch.from_numpy(q.scale))
        got = backend.gemm_int4_int8(inputs.but(a=x, a_scale=None))
        assert_equal(got, quantised.expected_bits(quantised.sums()), (m, n, k))


@STORES
@pytest.mark.parametrize("features", [5, 400])
def test_act_order(features: int, backend: Backend) -> None:
    for m, k, a_zero in ((1, 64, "none"), (18, 290, "token"), (33, 1100, "tensor")):
        inputs = Int4Case("perm", m, 40, k, 48).inputs(zero=torch.uint8, a_zero=a_zero).permuted(features)
        inputs = inputs.but(a=with_row_stride(inputs.a, 3, 1, 77))
        assert_equal(backend.gemm_int4_int8(inputs), inputs.expected_bits(inputs.sums()), (m, k))
    x = torch.randn(9, features, generator=generator(f"{features}")).bfloat16()
    inputs = Int4Case("perm", 9, 40, 290, 48).inputs().permuted(features)
    q = quantize.quantize_int8(x.float().numpy())
    quantised = inputs.but(a=torch.from_numpy(q.q), a_scale=torch.from_numpy(q.scale))
    got = backend.gemm_int4_int8(inputs.but(a=x, a_scale=None))
    assert_equal(got, quantised.expected_bits(quantised.sums()))


@BACKENDS
def test_a_feature_that_there_is_not_is_nan(backend: Backend) -> None:
    """The host cannot check perm, so all outputs become NaN."""
    for wrong in (-2, 70, 2**31 - 1):
        inputs = Int4Case("wrong", 3, 20, 70, 32).inputs()
        perm = torch.arange(70, dtype=torch.int32)
        perm[40] = wrong
        assert bool(backend.gemm_int4_int8(inputs.but(perm=perm)).isnan().all())


@STORES
def test_what_follows_the_sums(backend: Backend) -> None:
    base = Int4Case("steps", 5, 70, 130, 32).inputs(bias=torch.float32)
    g = generator("steps")
    gate, residual = torch.randn(5, 75, generator=g)[:, :70], torch.randn(5, 70, generator=g).bfloat16()
    sums = base.sums()
    activations = (None, "gelu", "gelu_tanh", "silu")
    for *row, dtype in combinations(
        backend, activations, (None, gate.half()), (None, residual), FLOAT_DTYPES
    ):
        inputs = base.but(activation=row[0], gate=row[1], residual=row[2])
        got = backend.gemm_int4_int8(inputs, dtype)
        if row[0] is None:
            assert_equal(got, inputs.expected_bits(sums, dtype), (row, dtype))
        else:
            assert_within(got, inputs.expected(sums, dtype), dtype, (row, dtype))


@BACKENDS
@pytest.mark.parametrize("zero", [None, torch.float32], ids=str)
def test_nan_and_inf(zero: torch.dtype | None, backend: Backend) -> None:
    inputs = Int4Case("lost", 17, 70, 500, 48).inputs(zero=zero, a_zero="token", bias=torch.float32)
    assert inputs.a_scale is not None and inputs.bias is not None
    inputs.a[4] = 0  # 0 * Inf
    for i, value in enumerate((torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 3e38)):
        inputs.a_scale[i] = value
        inputs.w_scale[10 - i, 7 * i + 1] = value
        inputs.bias[5 * i] = value
        if inputs.w_zero_point is not None:
            inputs.w_zero_point[i, 9 * i + 3] = value
    got = backend.gemm_int4_int8(inputs)
    assert_equal(got, inputs.expected_bits(inputs.sums()))
    assert got.isnan().any() and got.isinf().any() and got.isfinite().any()


@BACKENDS
def test_rows_do_not_depend_on_the_batch(backend: Backend) -> None:
    inputs = Int4Case("rows", 130, 72, 1100, 64).inputs(zero=torch.uint8, a_zero="token")
    want = backend.gemm_int4_int8(inputs)
    for begin, end in ((0, 1), (7, 14), (64, 128)):
        assert_equal(backend.gemm_int4_int8(inputs.rows(begin, end)), want[begin:end], (begin, end))


@EMULATED
def test_a_cap_on_sms_caps_blocks_and_changes_nothing(emulated: EmulatedKernel) -> None:
    inputs = Int4Case("capped", 40, 300, 2600, 128).inputs(zero=torch.uint8)
    check_caps(emulated, lambda max_sms: [emulated.gemm_int4_int8(inputs.but(max_sms=max_sms))])


@EMULATED
@pytest.mark.parametrize("zero", ZEROS[:3], ids=str)
def test_every_schedule(zero: torch.dtype | None, emulated: EmulatedKernel) -> None:
    a_zero = "none" if zero is None else "token"
    inputs = Int4Case("schedules", 17, 37, 1203, 48).inputs(zero=zero, a_zero=a_zero)
    bits = inputs.expected_bits(inputs.sums())
    for seed in in_turn(emulated, ZEROS.index(zero), SEEDS):
        got = dataclasses.replace(emulated, seed=seed).gemm_int4_int8(inputs)
        assert_equal(got, bits, f"seed {seed}")


@EMULATED
def test_groups_of_several_warps(emulated: EmulatedKernel) -> None:
    """There are more groups than pack_activations handles at once."""
    inputs = Int4Case("warps", 3, 17, 5000, 608).inputs(zero=torch.uint8, a_zero="token")
    assert_equal(emulated.gemm_int4_int8(inputs), inputs.expected_bits(inputs.sums()))


@EMULATED
def test_floats_in_every_schedule(emulated: EmulatedKernel) -> None:
    inputs = Int4Case("schedules", 9, 37, 1203, -1).inputs()
    x = torch.randn(9, 1203, generator=generator("schedules"))
    q = quantize.quantize_int8(x.numpy())
    quantised = inputs.but(a=torch.from_numpy(q.q), a_scale=torch.from_numpy(q.scale))
    bits = quantised.expected_bits(quantised.sums())
    for seed in SEEDS:
        got = dataclasses.replace(emulated, seed=seed).gemm_int4_int8(inputs.but(a=x, a_scale=None))
        assert_equal(got, bits, f"seed {seed}")


@EMULATED
@pytest.mark.parametrize("scale", FLOAT_DTYPES, ids=dtype_name)
def test_no_bank_conflicts(scale: torch.dtype, emulated: EmulatedKernel) -> None:
    case = Int4Case("conflicts", 66, 128, 512, 48)
    for zero in (torch.uint8, scale):
        i = case.inputs(zero=zero, scale=scale, a_zero="token")
        data, zeros = i.pack(emulated.int4_layout), (i.w_zero_point, i.a_zero_point)
        operands = (i.a, data, i.w_scale, i.group, i.a_scale, *zeros)
        sites = sites_without_conflicts(emulated, lambda ops, o=operands: ops.gemm_int4_int8(*o))
        assert {site.function for site in sites} >= (
            {"load_shared"} if emulated.arch == 90 else {"load_shared", "ldmatrix"}
        )
