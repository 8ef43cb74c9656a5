"""Offsets beyond 2^31 without the memory: rows and columns lie gigabytes apart, and few pages are touched."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from tests.reference import layout, quantize, rms_norm, silu_mul
from tests.support.backends import Backend, available, cpu_backends, emulated_kernels, emulator_parameters
from tests.support.cases import FLOAT_DTYPES, GemmCase, dtype_name, generator, grouped, random_int8
from tests.support.check import Inputs, check_product, followed
from tests.support.compare import assert_equal
from tests.support.int4_cases import Int4Case, Int4Inputs, random_codes
from tests.support.memory import APART, FAR, MANY, far_apart

INT4_OPS = ("gemm_int4", "gemm_int4_int8")
F32 = torch.float32


def backends(*ops: str, cpu: bool = True) -> Any:
    """The backends of each op on this host. A GPU cannot map memory that does not exist."""
    return pytest.mark.parametrize(
        ("op", "backend"),
        [
            pytest.param(op, *parameter.values, id=f"{op}-{parameter.id}", marks=parameter.marks)
            for op in ops
            for parameter in (
                *(cpu_backends(op.removesuffix("_grouped")) if cpu else ()),
                *emulator_parameters(op),
            )
        ],
    )


def far_columns(t: torch.Tensor) -> torch.Tensor:
    """The same [rows, columns], columns FAR elements apart."""
    return far_apart(t.T).T


def scattered(inputs: Inputs, columns: bool) -> Inputs:
    """The same inputs with rows far apart; with `columns`, scales that have rows and columns get far columns
    instead."""
    groups_apart = far_columns if columns else far_apart
    apart: dict[str, torch.Tensor] = {}
    for name in ("a", "gate", "residual", "a_scale", "a_zero_point", "w_scale", "w_zero_point"):
        t = getattr(inputs, name, None)
        if t is not None:
            of_groups = name.endswith(("scale", "w_zero_point")) and min(t.shape) > 1
            apart[name] = groups_apart(t) if of_groups else far_apart(t, APART)
    return dataclasses.replace(inputs, **apart)


def problem(op: str, m: int, n: int, k: int, group: int = 16) -> Inputs:
    """A problem with all operands that the op accepts."""
    if op == "gemm_int8":
        return GemmCase("far", m, n, k).inputs(zero_point="token", bias=F32)
    if op == "gemm_int8_grouped":
        return grouped(GemmCase("far", m, n, k), zero_point="token", bias=F32)
    case, half = Int4Case("far", m, n, k, group), torch.float16
    if op == "gemm_int4":
        return case.inputs(zero=half, scale=half, bias=F32).floats(half)
    return case.inputs(zero=half, scale=half, a_zero="token", bias=F32)


@backends("gemm_int8", "gemm_int8_grouped", *INT4_OPS)
@pytest.mark.parametrize("columns", [False, True], ids=["rows", "columns"])
def test_operands_far_apart(columns: bool, op: str, backend: Backend) -> None:
    """There are enough rows for several blocks and for several passes of one block."""
    inputs = followed(problem(op, MANY, 130, 150), "silu", torch.bfloat16, F32)
    check_product(backend, inputs, F32, given=scattered(inputs, columns))


@backends(*INT4_OPS)
def test_rows_that_are_gathered_far_apart(op: str, backend: Backend) -> None:
    base = problem(op, MANY, 20, 150)
    assert isinstance(base, Int4Inputs)
    inputs = base.permuted(199)
    inputs = inputs.floats(torch.float16) if op == "gemm_int4" else inputs
    check_product(backend, inputs, F32, given=inputs.but(a=far_apart(inputs.a, APART)))


@backends(*INT4_OPS)
def test_features_that_are_gathered_far_apart(op: str, backend: Backend) -> None:
    """There are as many features as an int32 can index, of one byte and of two bytes."""
    base = problem(op, 3, 20, 70)
    assert isinstance(base, Int4Inputs)
    inputs = base.but(perm=torch.randperm(70, generator=generator("far")).int())
    wide = far_apart(inputs.a[:, :0], FAR, 2**31 - 1)
    named = torch.randint(0, 2**31 - 1, (70,), generator=generator("named"))
    named[:3] = torch.tensor([2**31 - 2, 2**30 - 1, 2**30])
    wide[:, named] = inputs.a
    assert inputs.perm is not None
    check_product(backend, inputs, F32, given=inputs.but(a=wide, perm=named[inputs.perm.long()].int()))


@backends("gemm_int4_int8")
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=dtype_name)
def test_floats_that_are_quantised_far_apart(dtype: torch.dtype, op: str, backend: Backend) -> None:
    inputs = Int4Case("far", MANY, 20, 70, 16).inputs()
    x = torch.randn(MANY, 70, generator=generator("far")).to(dtype)
    q = quantize.quantize_int8(x.float().numpy())
    quantised = inputs.but(a=torch.from_numpy(q.q), a_scale=torch.from_numpy(q.scale))
    got = backend.gemm_int4_int8(inputs.but(a=far_apart(x, APART), a_scale=None))
    assert_equal(got, quantised.expected_bits(quantised.sums()))


@backends("gemm_int8", "gemm_int8_grouped", *INT4_OPS, cpu=False)
def test_operands_of_the_reduction_far_apart(op: str, backend: Backend) -> None:
    """k is split. With one group the reduction reads the scales too."""
    inputs = followed(problem(op, 3, 20, 3100, -1), None, torch.bfloat16, F32)
    far = {name: far_apart(getattr(inputs, name)) for name in ("gate", "residual", "a_scale")
           if getattr(inputs, name) is not None}  # fmt: skip
    if isinstance(inputs, Int4Inputs):
        far |= {name: far_columns(getattr(inputs, name)) for name in ("w_scale", "w_zero_point")}
    check_product(backend.on_sms(64), inputs, F32, given=dataclasses.replace(inputs, **far))


@backends("gemm_int8", "gemm_int8_grouped")
@pytest.mark.parametrize("is_static", [False, True], ids=["dynamic", "static"])
def test_requantised_rows_far_apart(is_static: bool, op: str, backend: Backend) -> None:
    inputs = followed(problem(op, MANY, 40, 70), None, F32, torch.float16)
    scale = 0.5 + torch.arange(MANY)[:, None] / MANY if is_static else None
    y = inputs.expected_bits(inputs.accumulated(), F32)
    want = quantize.quantize_int8(y.numpy(), None if scale is None else scale.numpy())
    far_scale = None if scale is None else far_apart(scale, APART)
    got = backend.gemm_quantized(scattered(inputs, False), far_scale)
    assert_equal(got[0], want.q)
    assert_equal(got[1], want.scale)


@backends("quantize_int8")
def test_quantize_reads_rows_far_apart(op: str, backend: Backend) -> None:
    x = torch.randn(MANY, 70, generator=generator("far"))
    for stride in (FAR, APART):
        want = quantize.quantize_int8(x.numpy())
        q, scale, _ = backend.quantize(far_apart(x, stride))
        assert_equal(q, want.q)
        assert_equal(scale, want.scale)
    zero = random_int8(generator("zero"), MANY, 1)
    fixed = 0.01 + torch.arange(MANY, dtype=F32)[:, None] / MANY
    want = quantize.quantize_int8(x.numpy(), fixed.numpy(), zero.numpy(), symmetric=False)
    q, scale, got_zero = backend.quantize(x, far_apart(fixed, APART), far_apart(zero, APART), False)
    assert_equal(q, want.q)
    assert_equal(got_zero, zero)


@backends("rms_norm")
def test_rms_norm_reads_rows_far_apart(op: str, backend: Backend) -> None:
    x, residual = torch.randn(2, MANY, 70, generator=generator("far"))
    z, weight = x + residual, torch.linspace(0.5, 2, 70)
    for stride in (FAR, APART):
        far = far_apart(x, stride), weight, 1e-6, far_apart(residual, stride)
        got, added = backend.run("rms_norm", *far)
        assert_equal(got, rms_norm.rms_norm_steps(z, weight, 1e-6))
        assert_equal(added, z)
        assert_equal(backend.run("rms_norm_int8", *far)[0], rms_norm.rms_norm_int8(z, weight, 1e-6, True).q)


@backends("silu_mul")
def test_silu_mul_reads_rows_far_apart(op: str, backend: Backend) -> None:
    gate, up = torch.randn(2, MANY, 70, generator=generator("far"))
    for stride in (FAR, APART):
        far = far_apart(gate, stride), far_apart(up, stride)
        assert_equal(backend.run("silu_mul", *far)[0], silu_mul.silu_mul_steps(gate, up))
        assert_equal(backend.run("silu_mul_int8", *far)[0], silu_mul.silu_mul_int8(gate, up, True).q)


def test_pack_reads_rows_far_apart() -> None:
    w = random_int8(generator("far"), MANY, 70)
    for backend in available("gemm_int8"):
        data, _ = backend.pack(far_apart(w, APART))
        assert_equal(data, layout.pack_int8(w.numpy()), backend)


@pytest.mark.parametrize("name", ["int4_rows", "int4_tile"])
def test_pack_int4_reads_rows_far_apart(name: str) -> None:
    q = random_codes(generator("far"), MANY, 70)
    perm = torch.randperm(70, generator=generator("far")).int()
    for order in (None, perm):
        want = layout.pack_int4((q if order is None else q[:, perm.long()]).numpy(), name)
        assert_equal(torch.ops.lamina.pack_int4(far_apart(q, APART), name, order), want)
        with emulated_kernels("gemm_int4")[0].active() as ops:
            assert_equal(ops.pack_int4(far_apart(q, APART), name, order), want)


def test_shapes_beyond_int32_on_meta() -> None:
    m, n, k = 2**20, 2**17, 2**15

    def meta(*shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    data, sums = torch.ops.lamina.pack_int8(meta(n, k, dtype=torch.int8))
    assert tuple(data.shape) == layout.packed_shape(n, k)
    assert data.numel() == 2**32
    assert torch.ops.lamina.unpack_int8(data, n, k).shape == (n, k)
    q, scale, zero_point = torch.ops.lamina.quantize_int8(meta(m, k, dtype=torch.bfloat16), None, None, False)
    out = torch.ops.lamina.gemm_int8(
        q, data, sums, scale, meta(n, dtype=torch.float32), zero_point, None, torch.float16
    )
    assert (tuple(out.shape), out.dtype, out.numel()) == ((m, n), torch.float16, 2**37)


def test_plans_of_huge_problems_do_not_overflow() -> None:
    for m, n, k in ((2**31 + 1, 2**29, 64), (2**40, 1, 1), (1, 2**40, 1000), (2**33, 3, 2**24 - 1)):
        text = torch.ops.lamina.explain_gemm_int8(m, n, k)
        assert f"m = {m}, n = {n}, k = {k}" in text
        assert " -" not in text.replace(" - ", "")
    text = torch.ops.lamina.explain_quantize_int8(2**40, 2**40)
    assert f"m = {2**40}, k = {2**40}" in text
    assert " -" not in text
