"""silu_mul and silu_mul_int8 against float64 and their documented steps, on every kernel of kernels.inc."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import lamina
from tests.reference import silu_mul as reference
from tests.support.backends import Backend, backends, cpu_backends, kernel_of
from tests.support.cases import FLOAT_DTYPES, dtype_name, generator
from tests.support.compare import assert_equal, assert_within

BACKENDS = pytest.mark.parametrize("backend", backends("silu_mul"))
DTYPES = pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=dtype_name)
# The last ones: around the columns that a GPU's block takes at once, and rows of SmolLM2-135M.
SHAPES = ((0, 5), (3, 0), (1, 1), (4, 3), (5, 17), (3, 64), (7, 257), (2, 1025), (1, 2050), (3, 1536))


def random_pair(m: int, n: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Gate and up, with rows of different magnitude."""
    g = generator(f"silu {m} {n}")
    spread = torch.pow(2.0, torch.randint(-4, 5, (m, 1), generator=g))
    gate, up = torch.randn(2, m, n, generator=g)
    return (gate * 3 + 0.2).to(dtype), ((up - 0.4) * spread).to(dtype)


def check(
    backend: Backend, gate: torch.Tensor, up: torch.Tensor, label: object = "", *, beside: bool = False
) -> torch.Tensor:
    """Both ops: the bits of the documented steps, and the documented bound.

    beside: gate and up are one tensor.
    """
    given = (torch.cat([gate, up], 1),) if beside else (gate, up)
    (got,) = backend.run("silu_mul", *given)
    assert_equal(got, reference.silu_mul_steps(gate, up), f"out {label}")
    exact, bound = reference.silu_mul(gate, up)
    covered = up.isfinite()  # an infinity times a silu that underflows is NaN
    at = covered.numpy()
    assert_within(got[covered], reference.Expected(exact[at], bound[at]), gate.dtype, label)
    for symmetric in (True, False):
        want = reference.silu_mul_int8(gate, up, symmetric)
        q, scale, zero_point = backend.run("silu_mul_int8", *given, symmetric=symmetric)
        assert_equal(q, want.q, f"q {label}")
        assert_equal(scale, want.scale, f"scale {label}")
        assert_equal(zero_point, want.zero_point[: 0 if symmetric else None], f"zero point {label}")
    return got


@BACKENDS
@DTYPES
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_reference(shape: tuple[int, int], dtype: torch.dtype, backend: Backend) -> None:
    gate, up = random_pair(*shape, dtype)
    check(backend, gate, up, "two tensors")
    check(backend, gate, up, "one tensor", beside=True)


@BACKENDS
@DTYPES
def test_int8_is_close_to_float64(dtype: torch.dtype, backend: Backend) -> None:
    """The test compares to float64 and not to the steps: every value comes back to within half a step."""
    gate, up = random_pair(9, 321, dtype)
    exact, bound = reference.silu_mul(gate, up)
    for symmetric in (True, False):
        q, scale, zero_point = backend.run("silu_mul_int8", gate, up, symmetric)
        steps = q.double() - (0 if symmetric else zero_point.double())
        error = np.abs((steps * scale.double()).numpy() - exact)
        assert (error <= bound + scale.double().numpy() * (0.5 + 2.0**-14)).all()


@BACKENDS
@DTYPES
def test_special_values(dtype: torch.dtype, backend: Backend) -> None:
    """Every pair of special values, in rows of one value and in rows of all."""
    info = torch.finfo(dtype)
    values = torch.tensor(
        [
            *(0.0, -0.0, 1.0, -1.0, 20.0, -20.0, 88.0, -88.0, -104.0, -109.5, -110.0),
            *(info.max, -info.max, info.smallest_normal, -info.smallest_normal * info.eps),
            *(torch.inf, -torch.inf, torch.nan),
        ]
    ).to(dtype)
    pairs = torch.tensor(list(itertools.product(values.tolist(), repeat=2))).to(dtype)
    check(backend, pairs[:, :1], pairs[:, 1:], "one value a row")
    check(backend, *pairs.T.contiguous().view(2, len(values), -1), "a row for each gate")


@pytest.mark.parametrize("backend", cpu_backends("silu_mul"))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=dtype_name)
def test_every_gate(dtype: torch.dtype, backend: Backend) -> None:
    gate = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16).view(dtype)[None]
    for factor in (1.0, -0.37):
        check(backend, gate, torch.full_like(gate, factor), factor)


@BACKENDS
@DTYPES
def test_any_row_stride(dtype: torch.dtype, backend: Backend) -> None:
    gate, up = random_pair(6, 131, dtype)

    def in_rows(values: torch.Tensor, lead: int, extra: int) -> torch.Tensor:
        wide = torch.full((len(values), lead + values.shape[1] + extra), torch.nan, dtype=dtype)
        view = wide[:, lead : lead + values.shape[1]]
        view.copy_(values)
        return view

    for lead, extra in ((0, 1), (1, 0), (5, 8)):
        label = f"{lead} before and {extra} after the row"
        check(backend, in_rows(gate, lead, extra), in_rows(up, extra, lead), label)
    both = in_rows(torch.cat([gate, up], 1), 3, 4)
    assert_equal(backend.run("silu_mul", both)[0], reference.silu_mul_steps(gate, up), "one tensor")
    check(backend, gate[:1].expand(3, 131), up[:3], "row stride 0")


@BACKENDS
def test_a_row_is_the_same_in_every_batch(backend: Backend) -> None:
    gate, up = random_pair(70, 259, torch.bfloat16)
    gate[50] = torch.nan
    for op in ("silu_mul", "silu_mul_int8"):
        whole = backend.run(op, gate, up)
        for size, begin in itertools.product((1, 7), (0, 50, 63)):
            rows = slice(begin, begin + size)
            for got, all_rows in zip(backend.run(op, gate[rows], up[rows]), whole, strict=True):
                assert_equal(got, all_rows[rows] if len(all_rows) else all_rows, f"{op}: {rows}")


@pytest.mark.parametrize("backend", cpu_backends("silu_mul"))
@pytest.mark.usefixtures("restore_threads")
def test_independent_of_the_thread_count(backend: Backend) -> None:
    gate, up = random_pair(130, 2049, torch.float32)
    want = backend.run("silu_mul_int8", gate, up, False)
    for threads in (1, 2, 5, 16):
        torch.set_num_threads(threads)
        for got, right in zip(backend.run("silu_mul_int8", gate, up, False), want, strict=True):
            assert_equal(got, right, f"{threads} threads")


@pytest.mark.parametrize("backend", cpu_backends("silu_mul"))
def test_the_forced_isa_is_the_one_that_runs(backend: Backend) -> None:
    with backend.active() as ops:
        assert kernel_of(ops.explain_silu_mul(64, 64)) == f"silu_mul_{backend.isa}"


def test_python_functions_call_the_ops() -> None:
    gate, up = random_pair(3, 33, torch.float16)
    both = torch.cat([gate, up], 1)
    want = reference.silu_mul_steps(gate, up)
    assert_equal(lamina.silu_mul(gate, up), want)
    assert_equal(lamina.silu_mul(both), want)
    for symmetric in (True, False):
        expected = reference.silu_mul_int8(gate, up, symmetric)
        for q in (
            lamina.silu_mul_int8(gate, up, symmetric=symmetric),
            lamina.silu_mul_int8(both, symmetric=symmetric),
        ):
            assert_equal(q.q, expected.q)
            assert_equal(q.scale, expected.scale)
            assert (q.zero_point is None) == symmetric
            if q.zero_point is not None:
                assert_equal(q.zero_point, expected.zero_point)
