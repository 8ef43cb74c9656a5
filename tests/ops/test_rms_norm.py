"""rms_norm and rms_norm_int8 against float64 and their documented steps, on every kernel of kernels.inc."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch

import lamina
from tests.reference import rms_norm as reference
from tests.support.backends import Backend, backends, cpu_backends, kernel_of
from tests.support.cases import FLOAT_DTYPES, dtype_name, generator
from tests.support.compare import assert_equal, assert_within

BACKENDS = pytest.mark.parametrize("backend", backends("rms_norm"))
DTYPES = pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=dtype_name)
EPS = 1e-5
# Around the columns that a GPU's block takes at once (1024 and 2048); rows of SmolLM2-135M and Llama 3 8B.
SHAPES = (
    *((0, 5), (3, 0), (1, 1), (4, 3), (5, 17), (3, 64), (2, 255), (2, 257), (3, 576)),
    *((2, 1023), (2, 1024), (2, 1025), (2, 2047), (1, 2048), (2, 2050), (1, 4096), (1, 6145)),
)


def random_rows(m: int, n: int, dtype: torch.dtype, name: str = "rows") -> torch.Tensor:
    """Rows of different magnitude and offset, so that a row with another row's rms is wrong."""
    g = generator(f"rms {name} {m} {n}")
    spread = torch.pow(2.0, torch.randint(-6, 7, (m, 1), generator=g))
    return ((torch.randn(m, n, generator=g) + torch.randn(m, 1, generator=g)) * spread).to(dtype)


def random_weight(n: int, dtype: torch.dtype) -> torch.Tensor:
    return (torch.randn(n, generator=generator(f"weight {n}")) + 0.3).to(dtype)


def check(
    backend: Backend,
    x: torch.Tensor,
    weight: torch.Tensor,
    residual: torch.Tensor | None = None,
    eps: float = EPS,
    label: object = "",
) -> torch.Tensor:
    """Both ops: the bits of the documented steps, and the documented bound. Returns the normalised rows."""
    z = x if residual is None else reference.add(x, residual)
    want_residual = z[:0] if residual is None else z
    want = reference.rms_norm_steps(z, weight, eps)
    got, new_residual = backend.run("rms_norm", x, weight, eps, residual)
    assert_equal(new_residual, want_residual, f"new residual {label}")
    assert_equal(got, want, f"out {label}")
    exact, bound = reference.rms_norm(z, weight, eps)
    # Not covered: squares that overflow, and an infinite weight of a value that is rounded to 0.
    rows, columns = z.float().square().sum(1) < 2.0**127, weight.isfinite()
    covered = rows[:, None] & columns
    at = covered.numpy()
    assert_within(got[covered], reference.Expected(exact[at], bound[at]), x.dtype, label)
    for symmetric in (True, False):
        expected = reference.rms_norm_int8(z, weight, eps, symmetric)
        q, scale, zero_point, new_residual = backend.run("rms_norm_int8", x, weight, eps, residual, symmetric)
        assert_equal(q, expected.q, f"q {label}")
        assert_equal(scale, expected.scale, f"scale {label}")
        assert_equal(zero_point, expected.zero_point[: 0 if symmetric else None], f"zero point {label}")
        assert_equal(new_residual, want_residual, f"new residual of int8 {label}")
    return got


@BACKENDS
@DTYPES
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_reference(shape: tuple[int, int], dtype: torch.dtype, backend: Backend) -> None:
    x, weight = random_rows(*shape, dtype), random_weight(shape[1], dtype)
    check(backend, x, weight, label="alone")
    check(backend, x, weight, random_rows(*shape, dtype, "residual"), label="with a residual")


@BACKENDS
@DTYPES
def test_int8_is_close_to_float64(dtype: torch.dtype, backend: Backend) -> None:
    """The test compares to float64 and not to the steps: every value comes back to within half a step."""
    x, weight = random_rows(9, 321, dtype), random_weight(321, dtype)
    exact, bound = reference.rms_norm(x, weight, EPS)
    for symmetric in (True, False):
        q, scale, zero_point, _ = backend.run("rms_norm_int8", x, weight, EPS, None, symmetric)
        steps = q.double() - (0 if symmetric else zero_point.double())
        error = np.abs((steps * scale.double()).numpy() - exact)
        assert (error <= bound + scale.double().numpy() * (0.5 + 2.0**-14)).all()


def special_rows(dtype: torch.dtype, n: int) -> torch.Tensor:
    info, g = torch.finfo(dtype), generator(f"special {n}")
    normal = torch.randn(n, generator=g)
    rows = [
        torch.zeros(n),
        torch.full((n,), -0.0),
        normal.sign() * info.max,
        normal.sign() * info.smallest_normal * info.eps,
        normal * info.smallest_normal * 0.25,
        torch.where(normal > 1, info.max, normal * 1e-3),
        normal,
    ]
    for value, place in itertools.product((torch.nan, torch.inf, -torch.inf), (0, n // 2, n - 1)):
        rows.append(normal.clone())
        rows[-1][place] = value
    return torch.stack(rows).to(dtype)


@BACKENDS
@DTYPES
def test_special_rows(dtype: torch.dtype, backend: Backend) -> None:
    x, weight = special_rows(dtype, 37), random_weight(37, dtype)
    for eps in (1e-6, 2.0**-126, 0.5):
        got = check(backend, x, weight, eps=eps, label=eps)
        has_nan = x.isnan().any(1)
        assert got[has_nan].isnan().all()
        assert not got[~has_nan & x.isfinite().all(1)].isnan().any()
    for value in (torch.nan, torch.inf, 0.0):
        weight[5] = value
        check(backend, x, weight, label=f"weight with {value}")
    check(backend, x, weight, x.flip(0), label="with a residual")


@BACKENDS
@DTYPES
def test_a_sum_that_overflows_makes_an_infinity(dtype: torch.dtype, backend: Backend) -> None:
    """The new residual overflows as in torch, and its row is NaN at that place and 0 at the others."""
    x = torch.ones(2, 19, dtype=dtype)
    x[1, 3] = torch.finfo(dtype).max
    got, added = backend.run("rms_norm", x, torch.ones(19, dtype=dtype), EPS, x)
    assert_equal(added, x + x)
    assert added[1, 3] == torch.inf
    assert got[1].isnan().nonzero().tolist() == [[3]]
    check(backend, x, torch.ones(19, dtype=dtype), x)


@BACKENDS
@DTYPES
def test_any_row_stride(dtype: torch.dtype, backend: Backend) -> None:
    x, residual = random_rows(6, 131, dtype), random_rows(6, 131, dtype, "residual")
    weight = random_weight(131, dtype)

    def in_rows(values: torch.Tensor, lead: int, extra: int) -> torch.Tensor:
        wide = torch.full((len(values), lead + values.shape[1] + extra), torch.nan, dtype=dtype)
        view = wide[:, lead : lead + values.shape[1]]
        view.copy_(values)
        return view

    for lead, extra in ((0, 1), (1, 0), (5, 8)):
        label = f"{lead} before and {extra} after the row"
        check(backend, in_rows(x, lead, extra), weight, in_rows(residual, extra, lead), label=label)
    check(backend, x[:1].expand(3, 131), weight, residual[:3], label="row stride 0")


@BACKENDS
def test_a_row_is_the_same_in_every_batch(backend: Backend) -> None:
    x, residual = random_rows(70, 259, torch.bfloat16), random_rows(70, 259, torch.bfloat16, "residual")
    weight = random_weight(259, torch.bfloat16)
    x[50] = torch.nan
    for op in ("rms_norm", "rms_norm_int8"):
        whole = backend.run(op, x, weight, EPS, residual)
        for size, begin in itertools.product((1, 7), (0, 50, 63)):
            rows = slice(begin, begin + size)
            part = backend.run(op, x[rows], weight, EPS, residual[rows])
            for got, all_rows in zip(part, whole, strict=True):
                assert_equal(got, all_rows[rows] if len(all_rows) else all_rows, f"{op}: {rows}")


@pytest.mark.parametrize("backend", cpu_backends("rms_norm"))
@pytest.mark.usefixtures("restore_threads")
def test_independent_of_the_thread_count(backend: Backend) -> None:
    x, weight = random_rows(130, 2049, torch.float32), random_weight(2049, torch.float32)
    want = backend.run("rms_norm_int8", x, weight, EPS, x, False)
    for threads in (1, 2, 5, 16):
        torch.set_num_threads(threads)
        for got, right in zip(backend.run("rms_norm_int8", x, weight, EPS, x, False), want, strict=True):
            assert_equal(got, right, f"{threads} threads")


@pytest.mark.parametrize("backend", cpu_backends("rms_norm"))
@DTYPES
def test_long_rows(dtype: torch.dtype, backend: Backend) -> None:
    for n in (2**16 + 3, 2**20):
        check(backend, random_rows(1, n, dtype), random_weight(n, dtype), label=n)


@pytest.mark.parametrize("backend", cpu_backends("rms_norm"))
def test_the_forced_isa_is_the_one_that_runs(backend: Backend) -> None:
    with backend.active() as ops:
        assert kernel_of(ops.explain_rms_norm(64, 64)) == f"rms_norm_{backend.isa}"


def test_python_functions_call_the_ops() -> None:
    x, residual = random_rows(3, 33, torch.float16), random_rows(3, 33, torch.float16, "residual")
    weight, z = random_weight(33, torch.float16), reference.add(x, residual)
    assert_equal(lamina.rms_norm(x, weight), reference.rms_norm_steps(x, weight, 1e-6))
    out, added = lamina.rms_norm(x, weight, eps=0.25, residual=residual)
    assert_equal(out, reference.rms_norm_steps(z, weight, 0.25))
    assert_equal(added, z)
    for symmetric in (True, False):
        want = reference.rms_norm_int8(z, weight, 0.25, symmetric)
        q, added = lamina.rms_norm_int8(x, weight, eps=0.25, residual=residual, symmetric=symmetric)
        assert_equal(q.q, want.q)
        assert_equal(q.scale, want.scale)
        assert_equal(added, z)
        assert (q.zero_point is None) == symmetric
        if q.zero_point is not None:
            assert_equal(q.zero_point, want.zero_point)
    alone = lamina.rms_norm_int8(x, weight)
    assert_equal(alone.q, reference.rms_norm_int8(x, weight, 1e-6, True).q)


@pytest.mark.parametrize("call", [lamina.rms_norm, lamina.rms_norm_int8])
def test_nothing_is_written_in_place(call: Callable[..., object]) -> None:
    x, residual = random_rows(3, 33, torch.float32), random_rows(3, 33, torch.float32, "residual")
    weight = random_weight(33, torch.float32)
    before = [t.clone() for t in (x, residual, weight)]
    call(x, weight, residual=residual)
    for tensor, was in zip((x, residual, weight), before, strict=True):
        assert_equal(tensor, was)
