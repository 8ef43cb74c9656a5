"""Float zero points of int4 weights: against the nearest codes in float64, on any floats, and in layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import lamina
from lamina.checkpoint.formats.gguf import q4_1
from lamina.nn import Int4Linear
from lamina.quant import QuantizedInt4, gptq, hessian, quantize_weight_int4
from tests.python.test_gptq import correlated, output_error, slow_gptq
from tests.python.test_quantize_weight_int4 import SHAPES, U, exact, weight
from tests.support.cases import FLOAT_DTYPES, dtype_name, generator
from tests.support.compare import assert_equal

DTYPES = pytest.mark.parametrize("zeros", FLOAT_DTYPES, ids=dtype_name)


def quantize(w: Tensor, group: int = 16, zeros: torch.dtype = torch.float32, **more: Any) -> QuantizedInt4:
    return quantize_weight_int4(w, group, symmetric=False, zero_point_dtype=zeros, **more)


def check(w: Tensor, got: QuantizedInt4, scale_dtype: torch.dtype, zeros: torch.dtype) -> None:
    """Dtypes, ranges, codes that are the nearest ones on their grid, and the documented bound."""
    n, k = w.shape
    groups = -(-k // got.group)
    assert got.zero_point is not None
    assert (got.scale.shape, got.scale.dtype) == ((groups, n), scale_dtype)
    assert (got.zero_point.shape, got.zero_point.dtype) == ((groups, n), zeros)
    assert got.q.dtype == torch.uint8 and (got.q.numel() == 0 or int(got.q.max()) <= 15)
    assert bool((got.scale > 0).all()) and bool(got.scale.isfinite().all())
    assert bool((got.zero_point.double().abs() < 2**16).all())
    place = torch.arange(k) // got.group
    steps, origin = got.scale.double()[place].T, got.zero_point.double()[place].T
    error = (exact(got, k) - w.double()).abs()
    of_all = (torch.arange(16)[:, None, None] - origin) * steps - w.double()  # the errors of all codes
    slack = origin.abs() * 2.0**-22 + 2.0**-14
    assert bool((error <= of_all.abs().amin(0) + steps * slack).all())
    allowed = 0.5 + 15 * U[scale_dtype] + 2.0**-14 + origin.abs() * (U[zeros] + 2.0**-22)
    assert bool((error <= steps * allowed).all())


@DTYPES
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=dtype_name)
@pytest.mark.parametrize("group", [16, 48, -1])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_within_the_documented_bound(
    shape: tuple[int, int], group: int, dtype: torch.dtype, zeros: torch.dtype
) -> None:
    for offset in (0.0, 0.3, -7.0):  # also ranges that do not hold 0
        w = weight(*shape) + offset
        check(w, quantize(w, group, zeros, scale_dtype=dtype), dtype, zeros)


def any_float(dtype: torch.dtype) -> st.SearchStrategy[float]:
    """Finite values of a dtype, with -0.0, subnormal numbers and the largest ones."""
    limit = torch.finfo(dtype)
    tiny = limit.smallest_normal * limit.eps
    corners = st.sampled_from([0.0, -0.0, tiny, -tiny, 9 * tiny, limit.max, -limit.max, 1.0, -1.0])
    return corners | st.floats(-limit.max, limit.max, width=16 if dtype == torch.float16 else 32)


@st.composite
def groups_of_floats(draw: st.DrawFn) -> tuple[Tensor, torch.dtype]:
    """A weight of two rows. Values of a group often share a size, or a value."""
    dtype = draw(st.sampled_from([torch.float32, torch.float16]))
    value = any_float(dtype)
    base = draw(value)
    values = draw(st.lists(value | st.just(base), min_size=40, max_size=40))
    scale = draw(st.sampled_from([0.0, 1e-7, 1e-3, 1.0]))
    near = torch.tensor(values, dtype=torch.float64).clamp(-1, 1) * scale * base + base
    limit = torch.finfo(dtype).max
    w = torch.tensor(values, dtype=torch.float64) if draw(st.booleans()) else near
    return w.clamp(-limit, limit).to(dtype).view(2, 20), dtype


@given(groups_of_floats(), st.sampled_from(FLOAT_DTYPES), st.booleans())
def test_any_floats(given_weight: tuple[Tensor, torch.dtype], zeros: torch.dtype, search: bool) -> None:
    w, dtype = given_weight
    got = quantize(w, 16, zeros, search=search)
    if not search:
        check(w.float(), got, dtype, zeros)
    assert bool((got.scale > 0).all()) and bool(got.scale.isfinite().all())
    assert got.zero_point is not None and bool((got.zero_point.float().abs() < 2**16).all())


@DTYPES
def test_groups_of_one_value_are_that_value(zeros: torch.dtype) -> None:
    values = torch.tensor([0.0, -0.0, 0.125, -0.125, 3e4, -0.7, 1e-30, -1e-44])
    for search in (False, True):
        got = quantize(values[:, None].expand(8, 16).contiguous(), 16, zeros, search=search)
        assert_equal(got.dequantize()[:2], torch.zeros(2, 16))
        difference = (exact(got, 16) - values[:, None].double()).abs()
        assert bool((difference <= values.double().abs()[:, None] * 2.0**-15 + 1e-45).all())


def test_the_ends_of_the_range_are_the_codes_0_and_15() -> None:
    w = torch.randn(30, 64, generator=generator("ends")) + 0.5
    got = quantize(w)
    codes, values = got.q.view(30, 4, 16), w.view(30, 4, 16)
    assert bool((codes.gather(2, values.argmin(2, keepdim=True)) == 0).all())
    assert bool((codes.gather(2, values.argmax(2, keepdim=True)) == 15).all())
    ends = torch.stack([values.amin(2), values.amax(2)])
    kept = got.dequantize().view(30, 4, 16)
    assert torch.allclose(torch.stack([kept.amin(2), kept.amax(2)]), ends, rtol=1e-5, atol=1e-6)


def test_a_grid_of_q4_1_is_found_again() -> None:
    """Blocks of scale d f16, least value m f16 and codes; all 16 codes are in each block."""
    g = generator("q4_1")
    n, blocks = 24, 3
    d = (torch.rand(n, blocks, generator=g) * 0.02 + 1e-3).half()
    m = (torch.randn(n, blocks, generator=g) * 0.1).half()
    codes = torch.stack([torch.randperm(16, generator=g) for _ in range(n * blocks * 2)])
    nibbles = codes.view(n, blocks, 2, 16).to(torch.uint8)
    packed = nibbles[:, :, 0] | (nibbles[:, :, 1] << 4)
    head = torch.stack([d, m], 2).view(torch.uint8).view(n, blocks, 4)
    want = q4_1(torch.cat([head, packed], 2).flatten(1))
    w = d.float()[:, :, None] * nibbles.flatten(2).float() + m.float()[:, :, None]
    got = quantize(w.flatten(1), 32, scale_dtype=torch.float16)
    assert_equal(got.q, want.q)
    assert_equal(got.scale.float(), want.scale)
    assert_equal(got.zero_point, want.zero_point)
    searched = quantize(w.flatten(1), 32, search=True)  # and f32 scales, which d is too
    assert_equal(searched.q, want.q)
    assert (searched.dequantize() - w.flatten(1)).abs().max() < 1e-6


@DTYPES
def test_a_search_is_never_worse_and_better_than_one_of_integers(zeros: torch.dtype) -> None:
    w = weight(24, 256)

    def errors(kind: torch.dtype, search: bool) -> Tensor:
        got = quantize(w, 32, kind, search=search)
        return (exact(got, 256) - w.double()).square().reshape(24, 8, 32).sum(2)

    plain, searched, integers = errors(zeros, False), errors(zeros, True), errors(torch.uint8, True)
    assert bool((searched <= plain * (1 + 1e-5)).all())
    assert searched.sum() < 0.83 * plain.sum()
    assert searched.sum() < 0.81 * integers.sum()


@pytest.mark.parametrize("search", [False, True])
def test_a_ragged_last_group_is_quantised_alone(search: bool) -> None:
    """Padding with zeros would widen the range of a group without zeros."""
    w = weight(9, 70) + 0.4
    whole, last = quantize(w, 32, search=search), quantize(w[:, 64:], 32, search=search)
    assert_equal(whole.q[:, 64:], last.q)
    assert_equal(whole.scale[2:], last.scale)
    assert whole.zero_point is not None and last.zero_point is not None
    assert_equal(whole.zero_point[2:], last.zero_point)


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_subnormal_scale_is_not_rounded_down(symmetric: bool) -> None:
    """1.4 units of f16 rounded to 1 would leave a third of the range without codes."""
    w = torch.linspace(-1, 1, 16)[None] * 1.4 * 2.0**-24 * (7 if symmetric else 7.5)
    zeros = None if symmetric else torch.float32
    got = quantize_weight_int4(w, 16, symmetric=symmetric, scale_dtype=torch.float16, zero_point_dtype=zeros)
    assert got.scale.item() == 2.0**-23
    assert (exact(got, 16) - w.double()).abs().max() <= 0.51 * 2.0**-23


ORDERS: tuple[dict[str, Any], ...] = ({}, {"act_order": True}, {"act_order": True, "static_groups": False})


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize(("n", "k", "group"), [(5, 40, 16), (9, 100, 48), (3, 48, -1)])
def test_gptq_is_the_slow_one(n: int, k: int, group: int, order: dict[str, Any]) -> None:
    w, x = correlated(n, k, 200)
    w += 0.02
    h = hessian(x)
    got = gptq(w, h, group, symmetric=False, zero_point_dtype=torch.float32, search=False, **order)
    flags = (order.get("act_order", False), order.get("static_groups", True))
    q, scale, zero, _ = slow_gptq(
        w.double().numpy(), h.double().numpy(), k if group == -1 else group, False, *flags, 0.01,
        float_zeros=True,
    )  # fmt: skip
    assert_equal(got.q.long(), q)
    assert got.zero_point is not None
    assert torch.allclose(got.scale.double(), torch.from_numpy(scale), rtol=1e-4)
    assert torch.allclose(got.zero_point.double(), torch.from_numpy(zero), rtol=1e-3)


@DTYPES
def test_gptq_is_better_than_with_integers(zeros: torch.dtype) -> None:
    w, x = correlated(33, 200, 3000)
    h = hessian(x[:2000])
    integers = gptq(w, h, 16, symmetric=False)
    got = gptq(w, h, 16, symmetric=False, zero_point_dtype=zeros)
    assert got.zero_point is not None and got.zero_point.dtype == zeros
    assert output_error(w, got, x[2000:]) < output_error(w, integers, x[2000:])


@pytest.mark.parametrize("activations", ["float", "int8"])
@DTYPES
def test_a_layer_multiplies_with_them(zeros: torch.dtype, activations: str) -> None:
    linear = torch.nn.Linear(100, 37)
    linear.weight.data = weight(37, 100) + 0.01
    x = torch.randn(6, 100, generator=generator("x"))
    options: dict[str, Any] = {"group": 32, "symmetric": False, "activations": activations}
    module = Int4Linear.from_linear(linear, zero_point_dtype=zeros, **options)
    assert module.weight_zero_point is not None and module.weight_zero_point.dtype == zeros
    a = x if activations == "float" else lamina.quantize_int8(x)
    rows = a if isinstance(a, Tensor) else a.q * a.scale
    with torch.inference_mode():
        want = rows.double() @ module.dequantize_weight().double().T + linear.bias
        size = rows.double().abs() @ module.dequantize_weight().double().abs().T
        assert bool(((module(x) - want).abs() <= 1e-5 * size).all())
        fresh = Int4Linear(100, 37, symmetric=False)
        fresh.load_state_dict(module.state_dict())
        assert_equal(fresh(x), module(x))
        part = module.shard((16, 37), (0, 100))
        assert_equal(part(x), module(x)[:, 16:])


W = torch.ones(3, 32)
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "symmetric": (
        {"zero_point_dtype": torch.float32},
        "zero_point_dtype was given; it is allowed only with symmetric = False",
    ),
    "f64": (
        {"symmetric": False, "zero_point_dtype": torch.float64},
        "zero_point_dtype must be uint8, float32, float16 or bfloat16, got torch.float64",
    ),
    "scale beyond f16": (
        {"symmetric": False, "zero_point_dtype": torch.float32, "scale_dtype": torch.float16, "w": W * 4e9},
        "scale_dtype = torch.float16 has no scale of 122070; float32 has",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str) -> None:
    options, message = BAD[case]
    options = {"w": W} | options
    with pytest.raises(ValueError, match=f"quantize_weight_int4: {message}"):
        quantize_weight_int4(**options)
    with pytest.raises(ValueError, match=f"gptq: {message}"):
        gptq(hessian=torch.eye(32), search=False, **options)
