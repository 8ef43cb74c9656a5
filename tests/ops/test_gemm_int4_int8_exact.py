"""gemm_int4_int8 where instructions saturate, on shards of a weight, and with the steps of the epilogue."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
import torch

import lamina
from lamina.quant import quantize_weight_int4
from tests.reference import activation as activations
from tests.reference import gemm_int4 as reference
from tests.support.backends import Backend, cpu_backends
from tests.support.cases import FLOAT_DTYPES, generator, random_int8
from tests.support.check import check_int4
from tests.support.compare import assert_equal, assert_within
from tests.support.int4_cases import Int4Case, Int4Inputs, random_codes

OP = "gemm_int4_int8"
BACKENDS = pytest.mark.parametrize("backend", cpu_backends(OP))
ONE = torch.ones(1)
MAX_K = 2**19  # csrc/ops/gemm_int4_int8/gemm_int4_int8.h


def ones_scaled(a: torch.Tensor, q: torch.Tensor, group: int) -> Int4Inputs:
    """Inputs with scales of 1, so that the result is the sums, rounded to f32."""
    groups = -(-a.shape[1] // (a.shape[1] if group == -1 else group))
    return Int4Inputs(a, q, torch.ones(groups, len(q)), group, ONE)


@functools.cache
def extremes(group: int) -> list[tuple[Int4Inputs, torch.Tensor, torch.Tensor]]:
    """Problems in which every activation, code and zero point is at an end of its range; packed weights;
    results."""
    found = []
    for (m, n, k), code in itertools.product(((1, 16, 64), (4, 17, 300), (20, 33, 1100)), (0, 15)):
        q = torch.full((n, k), code, dtype=torch.uint8)
        data = torch.ops.lamina.pack_int4(q, "int4_rows")
        for a, (zero, a_zero) in itertools.product(
            (-128, 127), ((None, None), (0, None), (15, None), (None, 127), (15, -128))
        ):
            inputs = ones_scaled(torch.full((m, k), a, dtype=torch.int8), q, group)
            inputs = inputs.but(
                w_zero_point=None if zero is None else torch.full_like(inputs.w_scale, zero).to(torch.uint8),
                a_zero_point=None if a_zero is None else torch.tensor([a_zero], dtype=torch.int8),
            )
            one = inputs.rows(0, 1)
            found.append((inputs, data, one.expected_bits(one.sums()).expand(m, n)))
    return found


@BACKENDS
@pytest.mark.parametrize("group", [16, 32, 48, 64, 80, 96, 128, 256, 272, 2000, -1])
def test_extreme_values_everywhere(group: int, backend: Backend) -> None:
    """Sums of products in int16 reach their largest magnitude, for each group size."""
    for inputs, data, want in extremes(group):
        got = backend.gemm_int4_int8_packed(inputs, data)
        ends = (int(inputs.a[0, 0]), int(inputs.q[0, 0]), inputs.w_zero_point, inputs.a_zero_point)
        assert_equal(got, want, (tuple(inputs.a.shape), *ends))


@BACKENDS
@pytest.mark.parametrize("group", [16, 48, 64, 112, 256, -1])
def test_extreme_values_in_part(group: int, backend: Backend) -> None:
    """Signs differ within four products, and extreme values begin or end anywhere in a group."""
    g = generator(f"part {group}")
    for m, k in ((5, 256), (13, 700)):
        a = torch.where(torch.rand(m, k, generator=g) < 0.5, -128, 127).to(torch.int8)
        for row in range(m):
            a[row, 4 * row : -1 - 20 * row] = 127 if row % 2 else -128
        q = random_codes(g, 40, k) // 8 * 15
        q[:13] = 15
        inputs = ones_scaled(a, q, group)
        check_int4(backend, inputs, inputs.sums(), (m, k))


@BACKENDS
@pytest.mark.parametrize("a_zero", [False, True], ids=["plain", "a_zero"])
def test_every_code_and_activation(a_zero: bool, backend: Backend) -> None:
    """Every pair of a code and an activation, in every place of its group of four."""
    values = torch.arange(-128, 128).to(torch.int8)
    for place in range(4):
        a = torch.zeros(256, 64, dtype=torch.int8)
        a[:, 12 + place] = values
        q = torch.randint(0, 16, (16, 64), generator=generator("codes")).to(torch.uint8)
        q[:, 12 + place] = torch.arange(16)
        zeros = random_int8(generator("zeros"), 256, 1) if a_zero else None
        inputs = ones_scaled(a, q, 16).but(a_zero_point=zeros)
        assert_equal(backend.gemm_int4_int8(inputs), inputs.expected_bits(inputs.sums()))


@BACKENDS
@pytest.mark.parametrize("k", [MAX_K, MAX_K - 17, 70001])
def test_the_deepest_group(k: int, backend: Backend) -> None:
    """255 * 15 * 2^19 is below 2^31. Sums that f32 cannot hold are rounded once, and the bound counts
    this."""
    for m, a, a_zero, code in (
        (2, -128, 127, 15),
        (2, 127, -128, 15),
        (18, -128, None, 15),
        (2, 127, -128, 0),
    ):
        first = torch.full((1, k), a, dtype=torch.int8)
        first[0, 5::7] //= 2
        q = torch.full((3, k), code, dtype=torch.uint8)
        q[1, 1::3] ^= 5
        zero = None if a_zero is None else torch.tensor([a_zero], dtype=torch.int8)
        one = ones_scaled(first, q, -1).but(a_zero_point=zero, w_scale=torch.tensor([[0.3, 0.7, 1.1]]))
        sums = one.sums()
        for zeros in (None, torch.tensor([[7.3, 0.01, 15.0]])):
            one = one.but(w_zero_point=zeros)
            got = backend.gemm_int4_int8(one.but(a=first.expand(m, k)))
            assert_equal(got, one.expected_bits(sums).expand(m, 3), (m, a, zeros))
            assert_within(got[:1], one.expected(sums, torch.float32), torch.float32, (m, a, zeros))


@BACKENDS
def test_parts_of_a_packed_weight(backend: Backend) -> None:
    """A shard along n gives columns of the whole result; shards along k are separate problems whose results
    add up."""
    group = 64
    for zero in (None, torch.float16):
        inputs = Int4Case("parts", 7, 70, 330, group).inputs(zero=zero, a_zero="token")
        whole = backend.gemm_int4_int8(inputs)
        packed = lamina.pack_int4(inputs.q, "int4_rows")
        for begin, end in ((0, 16), (16, 64), (48, 70), (0, 70)):
            zeros = None if inputs.w_zero_point is None else inputs.w_zero_point[:, begin:end]
            columns = inputs.but(w_scale=inputs.w_scale[:, begin:end], w_zero_point=zeros)
            got = backend.gemm_int4_int8_packed(columns, packed.shard(n=(begin, end)).data)
            assert_equal(got, whole[:, begin:end], f"columns {begin} to {end}")
        total = torch.zeros(7, 70, dtype=torch.float64)
        for begin, end in ((0, 128), (128, 192), (192, 330)):
            groups = slice(begin // group, -(-end // group))
            part = inputs.but(
                a=inputs.a[:, begin:end],
                q=inputs.q[:, begin:end],
                w_scale=inputs.w_scale[groups],
                w_zero_point=None if inputs.w_zero_point is None else inputs.w_zero_point[groups],
            )
            got = backend.gemm_int4_int8_packed(part, packed.shard(k=(begin, end)).data)
            assert_equal(got, part.expected_bits(part.sums()), f"input features {begin} to {end}")
            total += got
        expected = inputs.expected(inputs.sums(), torch.float32)
        assert (np.abs(total.numpy() - expected.exact) <= expected.bound).all()


def with_steps(
    case: Int4Case, activation: str | None, gate: torch.dtype | None, residual: torch.dtype | None
) -> Int4Inputs:
    """Results lie around 1, where activations bend; gate and residual too. They are columns of wider
    tensors."""
    inputs = case.inputs(zero=torch.uint8, a_zero="token", bias=torch.float32)
    g = generator(f"steps {case}")
    assert inputs.a_scale is not None and inputs.bias is not None

    def operand(dtype: torch.dtype | None, extra: int) -> torch.Tensor | None:
        if dtype is None:
            return None
        return torch.randn(case.m, case.n + extra, generator=g).to(dtype)[:, extra // 2 : extra // 2 + case.n]

    return inputs.but(
        a_scale=inputs.a_scale * 10 / max(1, case.k) ** 0.5,
        bias=inputs.bias / max(1, case.k),
        activation=activation,
        gate=operand(gate, 5),
        residual=operand(residual, 16),
    )


@BACKENDS
@pytest.mark.parametrize("activation", (None, *activations.NAMES))
def test_every_activation_gate_and_residual(activation: str | None, backend: Backend) -> None:
    case, operands = Int4Case("steps", 11, 37, 170, 64), (None, *FLOAT_DTYPES)
    for gate, residual in itertools.product(operands, operands):
        inputs = with_steps(case, activation, gate, residual)
        check_int4(backend, inputs, inputs.sums(), f"gate {gate}, residual {residual}")


@BACKENDS
def test_the_epilogue_of_every_shape(backend: Backend) -> None:
    for m, n, k, group in (
        (0, 5, 70, 16),
        (3, 0, 5, 16),
        (3, 5, 0, 16),
        (1, 130, 300, -1),
        (66, 65, 1100, 48),
    ):
        for activation, dtype in zip(activations.NAMES, FLOAT_DTYPES, strict=True):
            inputs = with_steps(Int4Case("steps", m, n, k, group), activation, dtype, dtype)
            check_int4(backend, inputs, inputs.sums(), (m, n, k, activation))


def test_a_quantised_layer() -> None:
    """The use in a model: weights from quantize_weight_int4 and float activations give nearly the float
    product."""
    g = generator("layer")
    x, w = torch.randn(9, 384, generator=g), torch.randn(100, 384, generator=g)
    for symmetric, group in ((True, 32), (False, 128), (True, -1)):
        quantised = quantize_weight_int4(w, group, symmetric=symmetric)
        packed = lamina.pack_int4(quantised.q, "int4_rows")
        got = lamina.gemm_int4_int8(
            x, packed, quantised.scale, group=quantised.group, w_zero_point=quantised.zero_point
        )
        # Each input feature adds the error of half a step of an activation; weights are the quantised ones.
        step = x.abs().amax(1, keepdim=True) / 127
        near = x.double() @ quantised.dequantize().double().T
        most = 0.51 * step.double() * quantised.dequantize().double().abs().sum(1)
        assert ((got - near).abs() <= most).all()


def test_a_group_beyond_k_is_all_of_k() -> None:
    inputs = Int4Case("beyond", 5, 20, 100, -1).inputs(zero=torch.uint8)
    packed = lamina.pack_int4(inputs.q, "int4_rows")
    want = inputs.expected_bits(inputs.sums())
    for group in (-1, 112, 128, 2**20, 2**62):
        got = lamina.gemm_int4_int8(
            inputs.a, packed, inputs.w_scale, group=group, a_scale=inputs.a_scale,
            w_zero_point=inputs.w_zero_point,
        )  # fmt: skip
        assert_equal(got, want, group)


def test_k_chunks_are_the_documented_ones() -> None:
    """A k chunk is a multiple of the group and of a tile's k: the largest up to 1024, or else the
    smallest."""
    features = {
        group: reference.k_chunk_groups(group) * group for group in (16, 48, 80, 512, 1008, 1024, 2000)
    }
    assert features == {16: 1024, 48: 960, 80: 960, 512: 1024, 1008: 4032, 1024: 1024, 2000: 8000}
