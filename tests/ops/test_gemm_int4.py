"""gemm_int4 against its documented f32 steps and float64, on every kernel of kernels.inc."""

from __future__ import annotations

import functools
import itertools
import random

import numpy as np
import pytest
import torch

import lamina
from lamina.ops.gemm_int4 import GRADIENT_ROWS
from tests.reference.gemm import Expected
from tests.reference.gemm_int4 import UNDERFLOW
from tests.support.backends import Backend, available_cpu, cpu_backends, kernel_of
from tests.support.cases import FLOAT_DTYPES, dtype_name, generator, with_row_stride
from tests.support.compare import assert_equal, assert_within
from tests.support.int4_cases import BF16_ISAS, Int4Case, Int4Inputs

OP = "gemm_int4"
BACKENDS = pytest.mark.parametrize("backend", cpu_backends(OP))

ROWS = (0, 1, 2, 3, 4, 5, 6, 7, 13, 33, 66)
COLUMNS = (0, 1, 15, 16, 17, 64, 65, 130)
DEPTHS = (0, 1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 255, 257, 1024, 1100, 2100)
GROUPS = (16, 32, 48, 128, 2000, -1)
ZEROS = (None, torch.uint8, *FLOAT_DTYPES)


@functools.cache
def varied(group: int, k: int) -> tuple[Int4Inputs, torch.dtype]:
    """A problem of this depth, whose m, n and kinds of arguments vary with it."""
    i = GROUPS.index(group) * len(DEPTHS) + DEPTHS.index(k)
    pick = random.Random(i).choice
    case = Int4Case("float", ROWS[i % len(ROWS)], COLUMNS[i % len(COLUMNS)], k, group)
    inputs = case.inputs(zero=pick(ZEROS), scale=pick(FLOAT_DTYPES), bias=pick((None, *FLOAT_DTYPES)))
    return inputs.floats(pick(FLOAT_DTYPES)), pick(FLOAT_DTYPES)


@functools.cache
def solved(group: int, k: int, isa: str) -> tuple[Expected, torch.Tensor]:
    inputs, dtype = varied(group, k)
    return inputs.float_product(dtype, isa)


def check_solved(backend: Backend, group: int, k: int) -> None:
    inputs, dtype = varied(group, k)
    expected, bits = solved(group, k, backend.isa if inputs.takes_bf16(backend.isa) else "generic")
    got, label = backend.gemm_int4(inputs, dtype), f"k = {k}, m, n = {tuple(bits.shape)}"
    assert_within(got, expected, dtype, label)
    assert_equal(got, bits, label)


@BACKENDS
@pytest.mark.parametrize("group", GROUPS)
def test_every_depth(group: int, backend: Backend) -> None:
    """Groups that cross blocks and k chunks, ragged last groups, groups larger than k."""
    for k in DEPTHS:
        check_solved(backend, group, k)


@functools.cache
def shaped(m: int, n: int) -> tuple[Int4Inputs, torch.Tensor]:
    inputs = Int4Case("shape", m, n, 290, 48).inputs(zero=torch.float16).floats(torch.float32)
    return inputs, inputs.float_product(torch.float32)[1]


@BACKENDS
def test_every_shape(backend: Backend) -> None:
    for m, n in itertools.product(ROWS, COLUMNS):
        inputs, want = shaped(m, n)
        assert_equal(backend.gemm_int4(inputs), want, (m, n))


@BACKENDS
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=dtype_name)
def test_every_dtype_stride_and_kind_of_zero_point(dtype: torch.dtype, backend: Backend) -> None:
    for zero, scale in itertools.product(ZEROS, FLOAT_DTYPES):
        inputs = Int4Case("kinds", 7, 37, 300, 64).inputs(zero=zero, scale=scale, bias=scale).floats(dtype)
        expected, want = inputs.float_product(dtype, backend.isa)
        assert_within(backend.gemm_int4(inputs), expected, dtype, (zero, scale))
        assert_equal(backend.gemm_int4(inputs), want, (zero, scale))
        transposed = inputs.w_scale.T.contiguous().T
        for extra, lead in ((1, 0), (61, 3)):
            a = with_row_stride(inputs.a, extra, lead, 77)
            assert_equal(backend.gemm_int4(inputs.but(a=a, w_scale=transposed)), want, (extra, lead))


@BACKENDS
@pytest.mark.parametrize("activation", [None, "gelu", "gelu_tanh", "silu"])
def test_what_follows_the_sums(activation: str | None, backend: Backend) -> None:
    base = Int4Case("steps", 5, 70, 130, 32).inputs(bias=torch.float32).floats(torch.float32)
    g = generator("steps")
    gate, residual = torch.randn(5, 75, generator=g)[:, :70], torch.randn(5, 70, generator=g).bfloat16()
    for chosen in itertools.product((None, gate, gate.half()), (None, residual)):
        inputs = base.but(activation=activation, gate=chosen[0], residual=chosen[1])
        for dtype in FLOAT_DTYPES:
            expected, bits = inputs.float_product(dtype)
            got = backend.gemm_int4(inputs, dtype)
            assert_within(got, expected, dtype)
            assert_equal(got, bits)


@BACKENDS
@pytest.mark.parametrize("lost", ["weights", "products"])
def test_underflow_stays_within_the_bound(lost: str, backend: Backend) -> None:
    """Without its terms for underflow the bound does not hold here, so the terms are needed."""
    inputs = Int4Case("underflow", 5, 40, 1100, 32).inputs(zero=torch.float16).floats(torch.float32)
    of_a, of_scale = (2.0**20, 2.0**-142) if lost == "weights" else (2.0**-100, 2.0**-43)
    inputs = inputs.but(a=inputs.a * of_a, w_scale=inputs.w_scale * of_scale)
    expected, bits = inputs.float_product(torch.float32)
    got = backend.gemm_int4(inputs)
    assert_equal(got, bits)
    assert_within(got, expected, torch.float32)
    underflow = UNDERFLOW * (inputs.a.shape[1] + inputs.a.abs().double().sum(1, keepdim=True).numpy())
    assert (np.abs(got.double().numpy() - expected.exact) > expected.bound - underflow).any()


@BACKENDS
def test_nan_and_inf_reach_what_depends_on_them(backend: Backend) -> None:
    inputs = Int4Case("nan", 9, 40, 100, 32).inputs(zero=torch.float32, bias=torch.float32)
    inputs = inputs.floats(torch.float32)
    assert inputs.w_zero_point is not None and inputs.bias is not None
    for i, value in enumerate((torch.nan, torch.inf, -torch.inf, 3e38)):
        inputs.a[i, 17 * i] = value
        inputs.w_scale[i % 4, 3 * i] = value
        inputs.w_zero_point[i % 4, 20 + 3 * i] = value
        inputs.bias[35 + i] = value
    got = backend.gemm_int4(inputs)
    assert_equal(got, inputs.float_product(torch.float32)[1])
    assert bool(got[4:, 4].isfinite().all())


def test_no_kernel_no_batch_and_no_thread_count_shows() -> None:
    inputs = Int4Case("rows", 257, 130, 1500, 128).inputs(zero=torch.uint8).floats(torch.float16)
    kernels = [b for b in available_cpu(OP) if str(b) != "generic"] or available_cpu(OP)
    want = kernels[-1].gemm_int4(inputs, torch.float32)
    few = available_cpu(OP)[0].gemm_int4(inputs.but(a=inputs.a[:2]), torch.float32)
    assert_equal(few, want[:2])
    threads = torch.get_num_threads()
    try:
        for backend, count in itertools.product(kernels, (1, 2, 3)):
            torch.set_num_threads(count)
            for m in (1, 7, 64, 257):
                got = backend.gemm_int4(inputs.but(a=inputs.a[:m]), torch.float32)
                assert_equal(got, want[:m], f"{backend}, {count} threads, m = {m}")
    finally:
        torch.set_num_threads(threads)


def test_the_plan_names_the_kernel() -> None:
    for backend in available_cpu(OP):
        with backend.active() as ops:
            bf16, f32 = (kernel_of(ops.explain_gemm_int4(7, 64, 64, 32, flag)) for flag in (True, False))
        assert bf16 == f"gemm_int4_{backend.isa}"
        assert f32 == (bf16 if backend.isa not in BF16_ISAS else "gemm_int4_avx512_vnni")


@pytest.mark.parametrize("zero", [None, torch.uint8], ids=["symmetric", "zeros"])
def test_gradients(zero: torch.dtype | None) -> None:
    inputs = Int4Case("gradient", 3, 40, 70, 32).inputs(zero=zero).floats(torch.float32)
    packed = lamina.pack_int4(inputs.q, "int4_rows")
    scale = inputs.w_scale.T.repeat_interleave(32, 1)[:, :70]
    shift = 8.0 if inputs.w_zero_point is None else inputs.w_zero_point.T.repeat_interleave(32, 1)[:, :70]
    weight = (inputs.q.float() - shift) * scale
    a, bias, residual = inputs.a, torch.randn(40), torch.randn(3, 40)

    def product(a: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return lamina.gemm_int4(
            a,
            packed,
            inputs.w_scale,
            group=32,
            w_zero_point=inputs.w_zero_point,
            bias=bias,
            residual=residual,
        )

    leaves = [t.clone().requires_grad_() for t in (a, bias, residual)]
    copies = [t.clone().requires_grad_() for t in (a, bias, residual)]
    pull = torch.randn(3, 40)
    product(*leaves).backward(pull)
    (copies[0] @ weight.T + copies[1] + copies[2]).backward(pull)
    for leaf, copy in zip(leaves, copies, strict=True):
        assert leaf.grad is not None and copy.grad is not None
        torch.testing.assert_close(leaf.grad, copy.grad)
    # The op is linear, so large steps are exact but for f32 rounding.
    assert torch.autograd.gradcheck(
        lambda a: product(a, bias, residual), (leaves[0],), eps=0.1, atol=1e-3, rtol=1e-3, nondet_tol=0.0
    )


@pytest.mark.parametrize("zero", [None, torch.uint8], ids=["symmetric", "zeros"])
def test_the_gradient_of_more_rows_than_are_unpacked_at_once(zero: torch.dtype | None) -> None:
    n = 2 * GRADIENT_ROWS + 37
    inputs = Int4Case("gradient", 2, n, 70, 32).inputs(zero=zero).floats(torch.float32)
    a, pull = inputs.a.clone().requires_grad_(), torch.randn(2, n, generator=generator("pull"))
    packed, group = lamina.pack_int4(inputs.q, "int4_rows"), torch.arange(70) // 32
    out = lamina.gemm_int4(a, packed, inputs.w_scale, group=32, w_zero_point=inputs.w_zero_point)
    out.backward(pull)
    shift = 8.0 if inputs.w_zero_point is None else inputs.w_zero_point[group].T.double()
    weight = (inputs.q.double() - shift) * inputs.w_scale[group].T
    torch.testing.assert_close(a.grad, (pull.double() @ weight).float())


def test_no_gradient_through_what_has_none() -> None:
    inputs = Int4Case("gradient", 3, 40, 70, 32).inputs().floats(torch.float32)
    packed, a = lamina.pack_int4(inputs.q, "int4_rows"), inputs.a.clone().requires_grad_()
    for name, value in (("activation", "silu"), ("gate", torch.ones(3, 40))):
        options: dict[str, object] = {name: value}
        out = lamina.gemm_int4(a, packed, inputs.w_scale, group=32, **options)  # type: ignore[arg-type]
        with pytest.raises(NotImplementedError, match=f"no gradient with {name}"):
            out.sum().backward()


def test_a_quantised_weight_goes_in_with_the_group_it_has() -> None:
    """-1 and groups larger than k become k, even if 16 does not divide k; the op and its gradient accept
    k."""
    w, a = torch.randn(24, 100, generator=generator("group")), torch.ones(2, 100, requires_grad=True)
    for group in (-1, 2**40):
        quantised = lamina.quant.quantize_weight_int4(w, group)
        packed = lamina.pack_int4(quantised.q, "int4_rows")
        for given in {quantised.group, group, -1, 2**20}:
            out = lamina.gemm_int4(a, packed, quantised.scale, group=given)
            out.sum().backward()
            assert_within(out.detach(), Expected(*_sums(quantised)), torch.float32)
    empty = torch.zeros(3, 0, requires_grad=True)
    none = lamina.pack_int4(torch.zeros(5, 0, dtype=torch.uint8), "int4_rows")
    lamina.gemm_int4(empty, none, torch.zeros(0, 5), group=-1).sum().backward()
    assert empty.grad is not None and empty.grad.shape == (3, 0)


def _sums(quantised: lamina.quant.QuantizedInt4) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    weight = quantised.dequantize().double()
    exact = weight.sum(1).expand(2, -1).numpy()
    return exact, weight.abs().sum(1).expand(2, -1).numpy() * 104 * 2.0**-24
