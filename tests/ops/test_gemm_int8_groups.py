"""gemm_int8 with scales along k, on every kernel that has them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import lamina
from lamina.testing import using_cuda_kernel
from tests.reference import gemm as reference
from tests.support.backends import (
    Backend,
    EmulatedKernel,
    cpu_backends,
    emu_ops,
    emulator_parameters,
    grouped_backends,
)
from tests.support.cases import FLOAT_DTYPES, GemmCase, dtype_name, generator, grouped
from tests.support.check import check_gemm, combinations, in_turn
from tests.support.compare import assert_equal, assert_within
from tests.support.on_emulator import check_caps, emulated_ops, sites_without_conflicts

GROUP = reference.GROUP
BACKENDS = pytest.mark.parametrize("backend", grouped_backends())
STORES = pytest.mark.parametrize("backend", grouped_backends(stores=True))
EMULATED = emulator_parameters("gemm_int8_grouped")

CASES = (
    GemmCase("smallest", 1, 1, 1),
    GemmCase("no_rows", 0, 5, 200),
    GemmCase("no_columns", 3, 0, 200),
    GemmCase("no_depth", 3, 5, 0),
    GemmCase("one_group", 1, 17, 128),
    GemmCase("one_more", 2, 33, 129),
    GemmCase("ragged", 5, 15, 255),
    GemmCase("one_k_chunk", 7, 31, 1024),
    GemmCase("k_chunk_and_one", 16, 64, 1025),
    GemmCase("ragged_everywhere", 17, 49, 1391),
    GemmCase("many_columns", 1, 300, 520),
    GemmCase("k_chunks", 33, 97, 4300),
    GemmCase("several_panels", 130, 70, 700),
)
BY_NAME = {case.name: case for case in CASES}


@BACKENDS
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_reference(case: GemmCase, backend: Backend) -> None:
    inputs = grouped(case, zero_point="token", bias=torch.float32)
    check_gemm(backend, inputs, inputs.accumulated(), case, in_turn(backend, CASES.index(case), FLOAT_DTYPES))


@STORES
def test_every_scale_and_zero_point(backend: Backend) -> None:
    scales = ("tensor", "token", "group"), ("tensor", "channel", "group")
    for row in combinations(backend, *scales, ("none", "tensor", "token"), FLOAT_DTYPES):
        a, w, zero_point, dtype = row
        inputs = grouped(GemmCase("combination", 7, 37, 300), a=a, w=w, zero_point=zero_point)
        check_gemm(backend, inputs, inputs.accumulated(), row, [dtype])


@STORES
def test_scales_of_any_stride(backend: Backend) -> None:
    inputs = grouped(GemmCase("strides", 5, 40, 500))
    want = inputs.expected_bits(inputs.accumulated(), torch.float32)
    for stretch in (1, 3):
        a_scale = inputs.a_scale.T.repeat_interleave(stretch, 0).contiguous().T[:, ::stretch]
        w_scale = inputs.w_scale.T.repeat_interleave(stretch, 1).contiguous()[:, ::stretch].T
        assert not w_scale.is_contiguous()
        again = dataclasses.replace(inputs, a_scale=a_scale, w_scale=w_scale)
        assert_equal(backend.gemm(again), want, f"stretched {stretch}")
    same = dataclasses.replace(
        inputs, a_scale=inputs.a_scale[:1].expand(5, 4), w_scale=inputs.w_scale[:, :1].expand(4, 40)
    )
    assert_equal(backend.gemm(same), same.expected_bits(same.accumulated(), torch.float32), "expanded")


@BACKENDS
@pytest.mark.parametrize("k", [1, 64, 127, 128])
def test_one_group_is_as_none(k: int, backend: Backend) -> None:
    inputs = grouped(GemmCase("one", 6, 33, k), a="token", w="channel", bias=torch.float16)
    inputs.a[2], inputs.w_scale[3] = 0, -1.0  # a product of -0
    plain = dataclasses.replace(inputs, group=None)
    assert_equal(backend.gemm(inputs), plain.expected_bits(plain.accumulated(), torch.float32))
    unbiased, plain = (dataclasses.replace(i, bias=None) for i in (inputs, plain))
    assert_equal(backend.gemm(unbiased), plain.expected_bits(plain.accumulated(), torch.float32))


@BACKENDS
@pytest.mark.parametrize("a, w, zero", [(-128, -128, 127), (127, -128, -128), (-128, 127, 127)])
def test_largest_sums(a: int, w: int, zero: int, backend: Backend) -> None:
    inputs = grouped(GemmCase("largest", 7, 33, 1300), zero_point="tensor")
    assert inputs.a_zero_point is not None
    inputs.a.fill_(a), inputs.w.fill_(w), inputs.a_zero_point.fill_(zero)
    check_gemm(backend, inputs, inputs.accumulated(), (a, w, zero), in_turn(backend, a, FLOAT_DTYPES))


@STORES
@pytest.mark.parametrize("out_dtype", FLOAT_DTYPES, ids=dtype_name)
def test_nan_and_inf_of_scales(out_dtype: torch.dtype, backend: Backend) -> None:
    inputs = grouped(BY_NAME["ragged_everywhere"], bias=torch.float32)
    inputs.a[4] = 0  # 0 * Inf
    for i, value in enumerate((torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 3e38)):
        inputs.a_scale[i, i] = value
        inputs.w_scale[10 - i, 7 * i + 1] = value
    got = backend.gemm(inputs, out_dtype)
    assert_equal(got, inputs.expected_bits(inputs.accumulated(), out_dtype))
    assert got.isnan().any()
    assert got.isinf().any()
    assert got.isfinite().any()


@BACKENDS
@pytest.mark.parametrize("n, k", [(49, 391), (40, 4300)])
def test_a_row_is_the_same_in_every_batch(n: int, k: int, backend: Backend) -> None:
    """Few rows have a split of k and many rows have none, so the split does not change a row either."""
    inputs = grouped(GemmCase("batch", 80, n, k), zero_point="token", bias=torch.bfloat16)
    data, sums = backend.pack(inputs.w, GROUP)
    whole = backend.gemm_packed(inputs, data, sums)
    for begin, end in ((0, 1), (3, 4), (60, 67), (40, 80)):
        part = backend.gemm_packed(inputs.rows(begin, end), data, sums)
        assert_equal(part, whole[begin:end], f"rows {begin} to {end}")


@pytest.mark.parametrize("backend", cpu_backends("gemm_int8"))
@pytest.mark.usefixtures("restore_threads")
def test_independent_of_the_thread_count(backend: Backend) -> None:
    inputs = grouped(GemmCase("threads", 40, 130, 300), zero_point="token")
    want = inputs.expected_bits(inputs.accumulated(), torch.float32)
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        assert_equal(backend.gemm(inputs), want, f"{threads} threads")


@STORES
def test_the_whole_epilogue_follows(backend: Backend) -> None:
    inputs = grouped(GemmCase("epilogue", 9, 40, 1200), zero_point="token", bias=torch.float32)
    g = generator("steps")
    inputs = dataclasses.replace(
        inputs,
        a_scale=inputs.a_scale / 50,
        w_scale=inputs.w_scale / 50,
        activation="silu",
        gate=torch.randn(9, 40, generator=g).bfloat16(),
        residual=torch.randn(9, 40, generator=g),
    )
    acc = inputs.accumulated()
    check_gemm(backend, inputs, acc, "steps")
    y = inputs.expected_bits(acc, torch.float32)
    for scale, symmetric in ((None, True), (None, False), (torch.tensor([0.02]), True)):
        want = torch.ops.lamina.quantize_int8(y, scale, None, symmetric)
        for a, b in zip(backend.gemm_quantized(inputs, scale, symmetric), want, strict=True):
            assert_equal(a, b, (scale, symmetric))


def test_a_block_quantised_layer() -> None:
    """Activations get their scales as documented, and weights one scale for each block of 128 x 128."""
    g = generator("blocks")
    x, weight = torch.randn(9, 384, generator=g), torch.randn(256, 384, generator=g)
    blocks = weight.reshape(2, 128, 3, 128)
    block_scale = blocks.abs().amax((1, 3)) / 127  # [n / 128, k / 128]
    w = (blocks / block_scale[:, None, :, None]).round().to(torch.int8).reshape(256, 384)
    q, scale, _ = lamina.quantize_int8(x.view(-1, GROUP))
    a, a_scale, w_scale = q.view(9, 384), scale.view(9, 3), block_scale.repeat_interleave(128, 0).T
    got = lamina.gemm_int8(a, lamina.pack_int8(w, group=GROUP), a_scale, w_scale)
    acc = reference.accumulate_groups(a.numpy(), w.numpy())
    expected = reference.gemm_int8(acc, a_scale.numpy(), w_scale.numpy(), None, torch.float32)
    assert_within(got, expected, torch.float32)
    assert (got - x @ weight.T).abs().max() < 0.04 * (x @ weight.T).abs().max()


def test_a_packed_weight_knows_its_groups() -> None:
    w = torch.ones(5, 300, dtype=torch.int8)
    plain, packed = lamina.pack_int8(w), lamina.pack_int8(w, group=GROUP)
    assert (plain.group, packed.group) == (None, GROUP)
    assert torch.equal(plain.data, packed.data)
    assert packed.column_sums.tolist() == [[128] * 5, [128] * 5, [44] * 5]
    assert packed.to("cpu").group == GROUP
    assert torch.equal(packed.unpack(), w)


def test_the_reference_rounds_once() -> None:
    """Neither the product nor the sum in float64 is rounded before the result."""
    x = np.array([1 + 2.0**-12], np.float32)  # its square, 1 + 2^-11 + 2^-24, is half way between two floats
    for z, want in (
        (-1 - 2.0**-11, 2.0**-24),
        (2.0**-60, 1 + 2.0**-11 + 2.0**-23),
        (-(2.0**-60), 1 + 2.0**-11),
    ):
        got = reference.fused_multiply_add(x, x, np.array([z], np.float32))
        assert got.tolist() == [want]


@pytest.mark.parametrize("case", [BY_NAME["ragged_everywhere"], BY_NAME["k_chunks"]], ids=str)
@pytest.mark.parametrize("emulated", EMULATED)
def test_exact_under_every_schedule(emulated: EmulatedKernel, case: GemmCase) -> None:
    inputs = grouped(case, zero_point="token", bias=torch.float16)
    want = inputs.expected_bits(inputs.accumulated(), torch.float32)
    for seed in in_turn(emulated, case.m, range(9)):
        assert_equal(dataclasses.replace(emulated, seed=seed).gemm(inputs), want, f"seed {seed}")


@pytest.mark.parametrize("out_dtype", [torch.float32, torch.float16], ids=dtype_name)
@pytest.mark.parametrize("emulated", EMULATED)
def test_no_bank_conflicts(emulated: EmulatedKernel, out_dtype: torch.dtype) -> None:
    i = grouped(GemmCase("conflicts", 130, 128, 2048), zero_point="token")
    operands = (i.a, *emu_ops().pack_int8(i.w, GROUP), i.a_scale, i.w_scale, i.a_zero_point)
    sites = sites_without_conflicts(emulated, lambda ops: ops.gemm_int8(*operands, out_dtype=out_dtype))
    assert {site.function for site in sites} >= {"load_shared"}


@pytest.mark.parametrize("emulated", EMULATED)
def test_a_cap_on_sms_caps_blocks_and_changes_nothing(emulated: EmulatedKernel) -> None:
    inputs = grouped(GemmCase("capped", 150, 140, 2100), zero_point="token")
    check_caps(emulated, lambda sms: [emulated.gemm(dataclasses.replace(inputs, max_sms=sms))], (1, 3))


@pytest.mark.parametrize("arch", [80, 90, 120])
def test_the_planner_finds_a_kernel(arch: int) -> None:
    for m, n, k in ((1, 70, 5000), (40, 70, 300), (200, 130, 200)):
        inputs = grouped(GemmCase("planned", m, n, k))
        with emulated_ops(arch, 132) as ops:
            got = ops.gemm_int8(inputs.a, *ops.pack_int8(inputs.w, GROUP), inputs.a_scale, inputs.w_scale)
        assert_equal(got, inputs.expected_bits(inputs.accumulated(), torch.float32))


def test_a_kernel_without_scales_along_k_refuses_them() -> None:
    ops, inputs = emu_ops(), grouped(GemmCase("refused", 3, 5, 200))
    with_groups = (inputs.a, *ops.pack_int8(inputs.w, GROUP), inputs.a_scale, inputs.w_scale)
    without = (inputs.a, *ops.pack_int8(inputs.w), torch.ones(1), torch.ones(1))
    for kernel, operands, reason in (
        ("gemm_int8_sm80_m16", with_groups, "no CUDA kernel .* scales along k"),
        ("gemm_int8_grouped_sm80_m16", without, "no CUDA kernel"),
    ):
        refused = f'name = "{kernel}": {reason}'
        with emulated_ops(80), using_cuda_kernel(kernel, ops), pytest.raises(ValueError, match=refused):
            ops.gemm_int8(*operands)
