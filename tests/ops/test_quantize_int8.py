"""quantize_int8 against its formula in float32 steps, on every kernel of kernels.inc."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

import lamina
from tests.reference import quantize as reference
from tests.support.backends import Backend, EmulatedKernel, available, backends, cpu_backends, kernel_of
from tests.support.cases import FLOAT_DTYPES, QUANTIZE_SHAPES, dtype_name, generator, random_int8
from tests.support.compare import assert_equal

BACKENDS = pytest.mark.parametrize("backend", backends("quantize_int8"))
DTYPES = pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=dtype_name)
SYMMETRIC = pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])


def random_rows(m: int, k: int, dtype: torch.dtype) -> torch.Tensor:
    """Rows of different magnitude and offset, so that a row with another row's scale is wrong."""
    g = generator(f"quantize {m} {k}")
    spread = torch.pow(2.0, torch.randint(-6, 7, (m, 1), generator=g))
    return ((torch.randn(m, k, generator=g) + torch.randn(m, 1, generator=g)) * spread).to(dtype)


def check(
    backend: Backend,
    x: torch.Tensor,
    scale: torch.Tensor | None = None,
    zero_point: torch.Tensor | None = None,
    *,
    symmetric: bool = True,
    label: object = "",
) -> reference.Quantized:
    want = reference.quantize_int8(
        x.float().numpy(),
        None if scale is None else scale.numpy(),
        None if zero_point is None else zero_point.numpy(),
        symmetric=symmetric,
    )
    q, out_scale, out_zero_point = backend.quantize(x, scale, zero_point, symmetric)
    assert_equal(q, want.q, f"q {label}")
    assert_equal(out_scale, want.scale, f"scale {label}")
    zero_points = want.zero_point[:0] if symmetric else want.zero_point
    assert_equal(out_zero_point, zero_points, f"zero_point {label}")
    return want


def static_grid(m: int, count: int, symmetric: bool) -> dict[str, Any]:
    g = generator(f"static {m} {count}")
    scale = torch.rand(count, 1, generator=g) * 0.1 + 0.003
    return {
        "scale": scale,
        "zero_point": None if symmetric else random_int8(g, count, 1),
        "symmetric": symmetric,
    }


@BACKENDS
@DTYPES
@SYMMETRIC
@pytest.mark.parametrize("shape", QUANTIZE_SHAPES, ids=str)
def test_matches_reference(
    shape: tuple[int, int], symmetric: bool, dtype: torch.dtype, backend: Backend
) -> None:
    x = random_rows(*shape, dtype)
    check(backend, x, symmetric=symmetric, label="dynamic")
    check(backend, x, **static_grid(shape[0], 1, symmetric), label="one static scale")
    check(backend, x, **static_grid(shape[0], shape[0], symmetric), label="static scale per token")


@BACKENDS
@DTYPES
@SYMMETRIC
def test_error_is_half_a_step(symmetric: bool, dtype: torch.dtype, backend: Backend) -> None:
    """The test compares to float64 and not to the formula: every value comes back to within half a step."""
    x = random_rows(64, 257, dtype)
    q, scale, zero_point = (t.double() for t in backend.quantize(x, symmetric=symmetric))
    steps = q - (0 if symmetric else zero_point)
    assert ((x.double() / scale - steps).abs() <= reference.GRID_ERROR).all()
    assert ((steps * scale - x.double()).abs() <= scale * (0.5 + 2.0**-14)).all()
    assert (q.abs().amax(1) == 127).all() or not symmetric
    assert int(q.min()) >= (-127 if symmetric else -128)


def special_rows(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Rows of 37 values that are easy to get wrong; a vector body and a tail see each special value."""
    info, g = torch.finfo(dtype), generator("special")
    normal = torch.randn(37, generator=g)
    rows = {
        "zeros": torch.zeros(37),
        "negative zeros": torch.full((37,), -0.0),
        "one value": torch.full((37,), 3.0),
        "one negative value": torch.full((37,), -3.0),
        "largest": normal.sign() * info.max,
        "largest, one sign": torch.full((37,), -info.max),
        "smallest subnormal": normal.sign() * info.smallest_normal * info.eps,
        "subnormals": normal * info.smallest_normal * 0.25,
        "smallest normal": normal.sign() * info.smallest_normal,
        "huge next to tiny": torch.where(normal > 1, info.max, normal * 1e-3),
        "ties": (torch.arange(37) - 18) * 0.5 * 127 / 9,
        "ordinary": normal,
    }
    for name, value in (("nan", torch.nan), ("inf", torch.inf), ("-inf", -torch.inf)):
        for place in (0, 17, 36):
            rows[f"{name} at {place}"] = normal.clone()
            rows[f"{name} at {place}"][place] = value
    rows["nan everywhere"] = torch.full((37,), torch.nan)
    rows["inf and -inf"] = normal.sign() * torch.inf
    rows["inf and nan"] = torch.where(normal > 0, torch.inf, torch.nan)
    return {name: row.to(dtype) for name, row in rows.items()}


@BACKENDS
@DTYPES
@SYMMETRIC
def test_special_rows(symmetric: bool, dtype: torch.dtype, backend: Backend) -> None:
    rows = special_rows(dtype)
    x = torch.stack(list(rows.values()))
    want = check(backend, x, symmetric=symmetric)
    for name, scale, q in zip(rows, want.scale, want.q, strict=True):
        lost = "nan" in name or "inf" in name
        assert bool(np.isnan(scale[0])) == lost, name
        assert scale[0] > 0 or lost, name
        assert not (lost and q.any()), name
    for scale in (1.0, 0.02, 2.0**-126, 3e38):
        zero_point = None if symmetric else torch.tensor([-3], dtype=torch.int8)
        check(backend, x, torch.tensor([scale]), zero_point, symmetric=symmetric, label=scale)


@BACKENDS
def test_negative_nan_and_every_payload(backend: Backend) -> None:
    """The kernel recognises a NaN by its bits: both signs, quiet and signalling, smallest and largest
    payload."""
    patterns = [0x7F800001, 0x7FC00000, 0x7FFFFFFF, 0xFF800001, 0xFFC00000, 0xFFFFFFFF]
    for bits in patterns:
        x = torch.ones(3, 21)
        x.view(torch.int32)[1, 20] = bits - (1 << 32 if bits >> 31 else 0)
        for symmetric in (True, False):
            q, scale, _ = backend.quantize(x, symmetric=symmetric)
            assert scale.isnan().flatten().tolist() == [False, True, False], hex(bits)
            assert not q[1].any()
            assert q[0].all() or not symmetric


@BACKENDS
def test_every_f16_and_bf16_value(backend: Backend) -> None:
    """All 65536 bit patterns, each as a row of one value, and all as one row with a static scale."""
    for dtype in (torch.float16, torch.bfloat16):
        # The emulator takes half a millisecond a row. One pattern in 31 still has every exponent and sign.
        step = 31 if isinstance(backend, EmulatedKernel) else 1
        x = torch.arange(-32768, 32768, step, dtype=torch.int32).to(torch.int16).view(dtype)
        finite = x[x.isfinite()]
        check(backend, finite[None], torch.tensor([0.37]), label=dtype)
        q, scale, _ = backend.quantize(x[:, None])
        assert_equal(scale[:, 0].isnan(), ~x.isfinite(), dtype)
        want = torch.maximum(finite.float().abs() / 127, torch.tensor(2.0**-126))
        assert_equal(scale[x.isfinite(), 0], want, dtype)
        full = finite.float().abs() >= 127 * 2.0**-126
        assert_equal(q[x.isfinite(), 0][full].float(), 127 * finite[full].float().sign(), dtype)


@BACKENDS
def test_rounds_to_even_and_saturates(backend: Backend) -> None:
    x = torch.arange(-600, 601)[None] * 0.25
    one = torch.tensor([1.0])
    check(backend, x, one)
    q, *_ = backend.quantize(x, one)
    assert_equal(q, x.round().clamp(-127, 127).to(torch.int8))
    zero_point = torch.tensor([-100], dtype=torch.int8)
    q, *_ = backend.quantize(x, one, zero_point, False)
    assert_equal(q, (x.round() - 100).clamp(-128, 127).to(torch.int8))
    far = torch.tensor([[1e30, -1e30, torch.inf, -torch.inf, 2.0**31, -(2.0**31)]])
    assert backend.quantize(far, one)[0].tolist() == [[127, -127] * 3]
    assert backend.quantize(far, one, zero_point, False)[0].tolist() == [[127, -128] * 3]


@BACKENDS
@DTYPES
@SYMMETRIC
def test_any_row_stride(symmetric: bool, dtype: torch.dtype, backend: Backend) -> None:
    x = random_rows(9, 131, dtype)
    want = backend.quantize(x, symmetric=symmetric)
    for extra, lead in ((1, 0), (0, 1), (500, 7)):
        wide = torch.full((9, lead + 131 + extra), torch.nan, dtype=dtype)
        view = wide[:, lead : lead + 131]
        view.copy_(x)
        for got, right in zip(backend.quantize(view, symmetric=symmetric), want, strict=True):
            assert_equal(got, right, f"row stride {view.stride(0)}")
    check(backend, x[:1].expand(4, 131), symmetric=symmetric, label="row stride 0")


@BACKENDS
@SYMMETRIC
def test_a_row_is_the_same_in_every_batch(symmetric: bool, backend: Backend) -> None:
    x = random_rows(257, 67, torch.float32)
    x[50] = torch.nan
    whole = backend.quantize(x, symmetric=symmetric)
    for size, begin in itertools.product((1, 7, 64), (0, 50, 193)):
        part = backend.quantize(x[begin : begin + size], symmetric=symmetric)
        for got, all_rows in zip(part, whole, strict=True):
            assert_equal(got, all_rows[begin : begin + size], f"rows {begin} to {begin + size}")


@BACKENDS
@pytest.mark.usefixtures("restore_threads")
def test_independent_of_the_thread_count(backend: Backend) -> None:
    x = random_rows(130, 2049, torch.bfloat16)
    want = backend.quantize(x, symmetric=False)
    for threads in (1, 2, 5, 16):
        torch.set_num_threads(threads)
        for got, right in zip(backend.quantize(x, symmetric=False), want, strict=True):
            assert_equal(got, right, f"{threads} threads")


@DTYPES
def test_all_isas_agree(dtype: torch.dtype) -> None:
    x = torch.cat([torch.stack(list(special_rows(dtype).values())), random_rows(40, 37, dtype)])
    everywhere = available("quantize_int8")
    for symmetric in (True, False):
        want = everywhere[0].quantize(x, symmetric=symmetric)
        for backend in everywhere[1:]:
            for got, right in zip(backend.quantize(x, symmetric=symmetric), want, strict=True):
                assert_equal(got, right, backend)


@pytest.mark.parametrize("backend", cpu_backends("quantize_int8"))
def test_the_forced_isa_is_the_one_that_runs(backend: Backend) -> None:
    with backend.active() as ops:
        assert kernel_of(ops.explain_quantize_int8(64, 64)) == f"quantize_int8_{backend.isa}"


def test_quantised_rows_with_nan_poison_their_own_products_only() -> None:
    """The two ops together: a token with NaN gives NaN outputs, and its neighbours keep their values."""
    x, w = random_rows(6, 70, torch.float32), random_int8(generator("poison"), 5, 70)
    packed, w_scale = lamina.pack_int8(w), torch.rand(5) + 0.1
    clean = lamina.quantize_int8(x, symmetric=False)
    x[2, 3], x[4, 69] = torch.nan, -torch.inf
    dirty = lamina.quantize_int8(x, symmetric=False)
    want = lamina.gemm_int8(clean.q, packed, clean.scale, w_scale, a_zero_point=clean.zero_point)
    got = lamina.gemm_int8(dirty.q, packed, dirty.scale, w_scale, a_zero_point=dirty.zero_point)
    want[[2, 4]] = torch.nan
    assert_equal(got, want)


def test_python_function_calls_the_op() -> None:
    x = random_rows(5, 33, torch.float16)
    grid = static_grid(5, 5, symmetric=False)
    emulated, want = (
        lamina.quantize_int8(x, **grid),
        reference.quantize_int8(
            x.float().numpy(), grid["scale"].numpy(), grid["zero_point"].numpy(), symmetric=False
        ),
    )
    assert emulated.zero_point is not None
    assert_equal(emulated.q, want.q)
    assert_equal(emulated.scale, want.scale)
    assert_equal(emulated.zero_point, want.zero_point)
    assert lamina.quantize_int8(x).zero_point is None


def test_returned_grid_is_a_copy() -> None:
    x, scale = random_rows(4, 8, torch.float32), torch.full((4, 1), 0.1)
    result = lamina.quantize_int8(x, scale=scale)
    assert result.scale.data_ptr() != scale.data_ptr()
    result.scale.zero_()
    assert_equal(scale, torch.full((4, 1), 0.1))
