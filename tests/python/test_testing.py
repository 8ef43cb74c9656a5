"""lamina.testing: its definitions against the independent ones of tests/reference, and its comparison."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lamina.testing import error_over_bound, reference, same_values, using_isa
from lamina.testing.reference import Expected
from tests.reference.gemm import Expected as Independent
from tests.reference.quantize import quantize_int8
from tests.support.cases import FLOAT_DTYPES, GemmCase, dtype_name, generator, grouped
from tests.support.compare import assert_equal
from tests.support.int4_cases import Int4Case, Int4Inputs

DTYPES = pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=dtype_name)


def assert_agree(got: Expected, want: Independent) -> None:
    """Both are computed in float64, in orders of their own."""
    np.testing.assert_allclose(got.exact.numpy(), want.exact, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(got.bound.numpy(), want.bound, rtol=1e-9, atol=0)


@DTYPES
@pytest.mark.parametrize("k", [1, 128, 1500])
@pytest.mark.parametrize("group", [None, 128])
def test_gemm_int8(group: int | None, k: int, dtype: torch.dtype) -> None:
    case = GemmCase("testing", 5, 7, k)
    given = {"zero_point": "token", "bias": torch.float32}
    i = case.inputs(**given) if group is None else grouped(case, **given)  # type: ignore[arg-type]
    w_scale = i.w_scale.reshape(-1, 7)
    got = reference.gemm_int8(
        i.a, i.w, i.a_scale, w_scale, dtype, group=group, a_zero_point=i.a_zero_point, bias=i.bias
    )
    assert_agree(got, i.expected(i.accumulated(), dtype))


@DTYPES
@pytest.mark.parametrize("group", [16, 48, 512, -1])
@pytest.mark.parametrize("zero", [None, torch.float32, torch.uint8], ids=str)
def test_gemm_int4_int8(zero: torch.dtype | None, group: int, dtype: torch.dtype) -> None:
    i = Int4Case("testing", 5, 7, 4500, group).inputs(zero=zero, a_zero="token", bias=torch.float32)
    assert i.a_scale is not None
    got = reference.gemm_int4_int8(
        i.a, i.q, i.w_scale, group, i.a_scale, dtype,
        w_zero_point=i.w_zero_point, a_zero_point=i.a_zero_point, bias=i.bias,
    )  # fmt: skip
    assert_agree(got, i.expected(i.sums(), dtype))


@DTYPES
@pytest.mark.parametrize("on_cuda", [False, True], ids=["cpu", "cuda"])
@pytest.mark.parametrize("zero", [None, torch.float32, torch.uint8], ids=str)
def test_gemm_int4(zero: torch.dtype | None, on_cuda: bool, dtype: torch.dtype) -> None:
    kept = torch.bfloat16 if on_cuda else torch.float32
    i = Int4Case("testing", 5, 7, 1500, 48).inputs(zero=zero, scale=kept, bias=torch.float16).floats(kept)
    assert_agree(
        _gemm_int4(i, dtype, on_cuda), i.half_product(dtype) if on_cuda else i.float_product(dtype)[0]
    )


def _gemm_int4(i: Int4Inputs, dtype: torch.dtype, on_cuda: bool = False) -> Expected:
    return reference.gemm_int4(
        i.a, i.q, i.w_scale, i.group, dtype, w_zero_point=i.w_zero_point, bias=i.bias, on_cuda=on_cuda
    )


@pytest.mark.parametrize("zero", [None, torch.float32, torch.uint8], ids=str)
def test_gemm_int4_of_bf16_has_the_larger_bound(zero: torch.dtype | None) -> None:
    """Small activations: then the bound of bf16 products is the larger one."""
    i = Int4Case("testing", 5, 7, 1500, 48).inputs(zero=zero).floats(torch.bfloat16)
    for small in (1.0, 2.0**-125):
        given = i.but(a=(i.a * small).to(torch.bfloat16))
        f32, bf16 = (given.float_product(torch.float32, isa)[0] for isa in ("generic", "avx512_bf16"))
        assert_agree(
            _gemm_int4(given, torch.float32), Independent(f32.exact, np.maximum(f32.bound, bf16.bound))
        )


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("static", [True, False])
def test_quantize_int8(static: bool, symmetric: bool) -> None:
    g = generator("testing")
    x = torch.randn(9, 70, generator=g) * torch.logspace(-45, 30, 9)[:, None]
    x[0], x[1, 3], x[2, 4] = 0.0, math.nan, math.inf
    scale = torch.rand(9, 1, generator=g) + 0.1 if static else None
    zero = torch.randint(-128, 128, (9, 1), generator=g).to(torch.int8) if static and not symmetric else None
    got = reference.quantize_int8(x, scale, zero, symmetric)
    numpy = (None if t is None else t.numpy() for t in (scale, zero))
    for ours, want in zip(got, quantize_int8(x.numpy(), *numpy, symmetric=symmetric), strict=True):
        assert_equal(ours.to(torch.from_numpy(want).dtype), want)


EXPECTED = Expected(torch.tensor([[1.0, 2.0]]).double(), torch.tensor([[0.5, 0.25]]).double())


@pytest.mark.parametrize(
    ("got", "ratio"),
    [
        ([[1.0, 2.0]], 0.0),
        ([[1.25, 2.0]], 0.5),
        ([[1.0, 2.5]], 2.0),
        ([[math.nan, 2.0]], math.inf),
        ([[1.0, -math.inf]], math.inf),
        ([[1.0], [2.0]], math.inf),
    ],
)
def test_error_over_bound(got: list[list[float]], ratio: float) -> None:
    assert error_over_bound(torch.tensor(got), EXPECTED) == ratio


@pytest.mark.parametrize(("got", "ratio"), [(3.0, 0.0), (3.5, math.inf)])
def test_error_over_a_bound_of_zero(got: float, ratio: float) -> None:
    exact = Expected(torch.tensor([3.0, 1.0]).double(), torch.tensor([0.0, 0.5]).double())
    assert error_over_bound(torch.tensor([got, 1.0]), exact) == ratio


def test_same_values() -> None:
    x = torch.tensor([1.0, math.nan])
    assert same_values(x, x.half())
    assert not same_values(x, torch.tensor([1.0, 2.0]))
    assert not same_values(x, x[None])


def test_the_isa_is_restored_after_an_error() -> None:
    before = torch.ops.lamina.cpu_isa()
    with pytest.raises(ZeroDivisionError), using_isa("generic"):
        assert torch.ops.lamina.cpu_isa() == "generic"
        raise ZeroDivisionError
    assert torch.ops.lamina.cpu_isa() == before
