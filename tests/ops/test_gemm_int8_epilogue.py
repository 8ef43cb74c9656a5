"""Activation, gate, residual and requantisation behind gemm_int8, on every kernel of kernels.inc."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
import torch

import lamina
from tests.reference import activation as activations
from tests.support.backends import Backend, backends, cpu_backends, cuda_backends
from tests.support.cases import FLOAT_DTYPES, GEMM_BY_NAME, GemmCase, GemmInputs, dtype_name, generator
from tests.support.check import check_gemm, combinations, in_turn
from tests.support.compare import Expected, assert_equal, assert_within

BACKENDS = pytest.mark.parametrize("backend", backends("gemm_int8", stores=True))
ACTIVATIONS = (None, *activations.NAMES)
OPERANDS = (None, *FLOAT_DTYPES)


def with_steps(
    case: GemmCase,
    activation: str | None = "silu",
    gate: torch.dtype | None = torch.bfloat16,
    residual: torch.dtype | None = torch.float32,
) -> GemmInputs:
    """Results lie around 1, where activations bend; gate and residual too. They are columns of wider
    tensors."""
    inputs = case.inputs(zero_point="token", bias=torch.float32)
    g = generator(f"steps {case}")
    size = 40 * max(1, case.k) ** 0.5

    def operand(dtype: torch.dtype | None, extra: int) -> torch.Tensor | None:
        if dtype is None:
            return None
        return torch.randn(case.m, case.n + extra, generator=g).to(dtype)[:, extra // 2 : extra // 2 + case.n]

    assert inputs.bias is not None
    return dataclasses.replace(
        inputs,
        a_scale=inputs.a_scale * 50 / size,
        w_scale=inputs.w_scale * 50 / size,
        bias=inputs.bias / max(1, case.k),
        activation=activation,
        gate=operand(gate, 5),
        residual=operand(residual, 16),
    )


def points(stride: int) -> torch.Tensor:
    """f32 values of every magnitude, and more of them where the activations bend."""
    patterns = np.arange(stride // 3, 2**32, stride, dtype=np.int64).astype(np.uint32).view(np.float32)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 3e38, -3e38], np.float32)
    return torch.from_numpy(np.concatenate([special, patterns, np.linspace(-16, 16, 8001, dtype=np.float32)]))


def check_activation(backend: Backend, name: str, y: torch.Tensor) -> None:
    """Only the bias reaches the activation: acc = 0, and scale -1 keeps the signs of the bias's zeros."""
    zeros = torch.zeros(1, 1, dtype=torch.int8), torch.zeros(len(y), 1, dtype=torch.int8)
    inputs = GemmInputs(*zeros, torch.tensor([-1.0]), torch.ones(1), None, y, activation=name)
    got = backend.gemm(inputs)
    y64 = y.double().numpy()[None]
    s = activations.exact(name, y64)
    assert_within(got, Expected(s, activations.bound(name, y64, s)), torch.float32, name)
    assert_equal(got, activations.steps(name, y.numpy()[None]), name)


@BACKENDS
@pytest.mark.parametrize("name", activations.NAMES)
def test_activations_over_all_floats(name: str, backend: Backend) -> None:
    check_activation(backend, name, points(2**19 - 1))


@pytest.mark.slow
@pytest.mark.parametrize("backend", cpu_backends("gemm_int8"))
@pytest.mark.parametrize("name", activations.NAMES)
def test_activations_at_length(name: str, backend: Backend) -> None:
    check_activation(backend, name, points(2**11 - 1))


@pytest.mark.parametrize("name", activations.NAMES)
def test_the_activations_are_torch_s(name: str) -> None:
    """The formulas of the reference equal torch's in float64."""
    y = torch.linspace(-30, 30, 10001, dtype=torch.float64)
    functions = torch.nn.functional
    want = {
        "gelu": functions.gelu(y),
        "gelu_tanh": functions.gelu(y, approximate="tanh"),
        "silu": functions.silu(y),
    }[name]
    np.testing.assert_allclose(activations.exact(name, y.numpy()), want.numpy(), rtol=1e-12, atol=1e-14)


@BACKENDS
def test_every_activation_gate_and_residual(backend: Backend) -> None:
    case = GemmCase("steps", 7, 37, 70)
    for row in combinations(backend, ACTIVATIONS, OPERANDS, OPERANDS, FLOAT_DTYPES):
        inputs = with_steps(case, *row[:3])
        check_gemm(backend, inputs, inputs.accumulated(), row, row[3:])


SHAPES = ("smallest", "no_rows", "no_columns", "no_depth", "row_ragged", "one_column", "ragged_amx_panel",
          "blocks_of_depth", "aligned", "several_panels", "deep_row")  # fmt: skip


@BACKENDS
@pytest.mark.parametrize("name", SHAPES)
def test_every_shape(name: str, backend: Backend) -> None:
    """CUDA kernels split some of these k, so that the epilogue runs in the reduction."""
    for turn, (activation, dtype) in enumerate(zip(activations.NAMES, FLOAT_DTYPES, strict=True)):
        inputs = with_steps(GEMM_BY_NAME[name], activation, gate=dtype, residual=dtype)
        dtypes = in_turn(backend, SHAPES.index(name) + turn, FLOAT_DTYPES)
        check_gemm(backend, inputs, inputs.accumulated(), f"{name} {activation}", dtypes)


@BACKENDS
def test_rows_at_multiples_of_16_bytes(backend: Backend) -> None:
    """TMA can store these rows: several boxes of several tiles, with aligned and unaligned operands."""
    case = GemmCase("boxes", 150, 200, 96)
    for activation, operand, dtype in combinations(backend, ACTIVATIONS, OPERANDS, FLOAT_DTYPES):
        inputs = with_steps(case, activation, operand, operand)
        check_gemm(backend, inputs, inputs.accumulated(), f"gate and residual {operand}", [dtype])


@BACKENDS
def test_sums_beyond_int32(backend: Backend) -> None:
    inputs = with_steps(GemmCase("deep", 3, 5, 70000))
    check_gemm(backend, inputs, inputs.accumulated(), "k = 70000", in_turn(backend, 0, FLOAT_DTYPES))


@BACKENDS
def test_any_row_stride_of_gate_and_residual(backend: Backend) -> None:
    """Rows lie apart, overlap, or are one row for all; the memory around them and the operands stay
    unchanged."""
    inputs = with_steps(GEMM_BY_NAME["seven_rows"], gate=None, residual=None)
    acc, (m, n) = inputs.accumulated(), (7, 31)
    g = generator("strides")
    for dtype, extra, lead in combinations(backend, FLOAT_DTYPES, (0, 1, 64), (0, 3)):
        wide = torch.randn(m, n + extra + lead, generator=g).to(dtype)
        x, row = wide[:, lead : lead + n], wide[:1, lead : lead + n].expand(m, n)
        before = wide.clone()
        for gate, residual in ((x, x), (row, x), (x, row), (x, x.flip(0))):
            strided = dataclasses.replace(inputs, gate=gate, residual=residual)
            want = strided.expected_bits(acc, torch.float32)
            assert_equal(backend.gemm(strided), want, f"{dtype} stride {gate.stride()} {residual.stride()}")
        assert_equal(wide, before)


@BACKENDS
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_and_inf(activation: str | None, backend: Backend) -> None:
    inputs = with_steps(GEMM_BY_NAME["ragged_everywhere"], activation)
    assert inputs.bias is not None and inputs.gate is not None and inputs.residual is not None
    for i, value in enumerate((torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 3e38, -3e38)):
        inputs.bias[6 * i] = value
        inputs.gate[i, 3::6] = value
        inputs.residual[i + 1, 1::7] = value
    acc = inputs.accumulated()
    for dtype in FLOAT_DTYPES:
        got = backend.gemm(inputs, dtype)
        assert_equal(got, inputs.expected_bits(acc, dtype), dtype_name(dtype))
        assert got.isnan().any() and got.isinf().any()


@BACKENDS
def test_a_row_is_the_same_in_every_batch(backend: Backend) -> None:
    inputs = with_steps(GemmCase("batch", 130, 49, 191), "gelu", torch.float16, torch.bfloat16)
    data, sums = backend.pack(inputs.w)
    whole = backend.gemm_packed(inputs, data, sums, torch.bfloat16)
    for size, begin in zip((1, 2, 5, 7, 31, 64), (0, 3, 125, 1, 99, 3), strict=True):
        part = backend.gemm_packed(inputs.rows(begin, begin + size), data, sums, torch.bfloat16)
        assert_equal(part, whole[begin : begin + size], f"rows {begin} to {begin + size}")


def check_quantized(
    backend: Backend, inputs: GemmInputs, scale: torch.Tensor | None, symmetric: bool, label: object
) -> None:
    """Checks the bits against gemm_int8 by its documented steps, then quantize_int8 on the CPU."""
    y = inputs.expected_bits(inputs.accumulated(), torch.float32)
    want = torch.ops.lamina.quantize_int8(y, scale, None, symmetric)
    got = backend.gemm_quantized(inputs, scale, symmetric)
    for part, a, b in zip(("q", "scale", "zero_point"), got, want, strict=True):
        assert_equal(a, b, f"{label} {part}")


GRIDS = ("per token", "asymmetric", "static", "static per token")


def grid_of(grid: str, m: int) -> tuple[torch.Tensor | None, bool]:
    """out_scale and symmetric. With static scales some values saturate."""
    if grid == "static":
        return torch.tensor([0.011]), True
    if grid == "static per token":
        return 0.005 * (1 + torch.arange(m, dtype=torch.float32)[:, None] / max(1, m)), True
    return None, grid == "per token"


@BACKENDS
@pytest.mark.parametrize("grid", GRIDS)
def test_quantized_equals_the_two_ops(grid: str, backend: Backend) -> None:
    for name in SHAPES:
        case = GEMM_BY_NAME[name]
        check_quantized(backend, with_steps(case), *grid_of(grid, case.m), name)
    case = GEMM_BY_NAME["ragged_everywhere"]
    for activation, operand in itertools.product(ACTIVATIONS, (None, torch.float16)):
        inputs = with_steps(case, activation, operand, operand)
        check_quantized(backend, inputs, *grid_of(grid, case.m), f"{activation} {operand}")


@BACKENDS
@pytest.mark.parametrize("grid", GRIDS)
def test_quantized_rows_with_nan_and_inf(grid: str, backend: Backend) -> None:
    """NaN is in the first, the last and an inner column; the rows beside them keep their values.

    Row 0 of 49 starts at a multiple of 16 bytes and does not end at one.
    """
    for n in (49, 64):
        inputs = with_steps(GemmCase("lost", 9, n, 65), None)
        assert inputs.residual is not None
        for row, column in ((0, n - 1), (1, 0), (2, n - 1), (4, 17)):
            inputs.residual[row, column] = torch.nan
        inputs.residual[6, 3], inputs.residual[7, n - 2] = torch.inf, -torch.inf
        check_quantized(backend, inputs, *grid_of(grid, 9), f"n = {n}")


@pytest.mark.parametrize("backend", cuda_backends("gemm_int8"))
def test_a_static_scale_that_is_not_allowed_on_cuda(backend: Backend) -> None:
    """CUDA cannot refuse the scale without waiting for the GPU, so its rows get the result of rows with a
    NaN."""
    scale = torch.tensor([[0.01], [0.0], [torch.nan], [-1.0], [torch.inf], [1e-40], [0.02]])
    inputs = with_steps(GEMM_BY_NAME["seven_rows"])
    q, got, _ = backend.gemm_quantized(inputs, scale)
    assert got.isnan().flatten().tolist() == [False, True, True, True, True, True, False]
    assert not q[1:6].any() and q[0].any() and q[6].any()


def test_python_functions_call_the_ops() -> None:
    i = with_steps(GEMM_BY_NAME["seven_rows"])
    packed, acc = lamina.pack_int8(i.w), i.accumulated()
    arguments = (i.a, packed, i.a_scale, i.w_scale)
    after: dict[str, Any] = {
        "activation": "silu",
        "a_zero_point": i.a_zero_point,
        "bias": i.bias,
        "gate": i.gate,
        "residual": i.residual,
    }
    got = lamina.gemm_int8(*arguments, **after, out_dtype=torch.float16)
    assert_equal(got, i.expected_bits(acc, torch.float16))
    y = i.expected_bits(acc, torch.float32)
    for scale, symmetric in ((None, True), (None, False), (torch.tensor(0.01), True)):
        both = lamina.gemm_int8_quantized(*arguments, **after, out_scale=scale, symmetric=symmetric)
        want = lamina.quantize_int8(y, scale=scale, symmetric=symmetric)
        assert_equal(both.q, want.q)
        assert_equal(both.scale, want.scale)
        assert (both.zero_point is None) == symmetric
        if both.zero_point is not None and want.zero_point is not None:
            assert_equal(both.zero_point, want.zero_point)
