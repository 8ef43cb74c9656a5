"""quantize_weight_int4 against its documented bound in float64, and the search against no search."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import lamina
from lamina.quant import QuantizedInt4, quantize_weight_int4
from tests.support.cases import FLOAT_DTYPES, dtype_name, generator
from tests.support.compare import assert_equal

U = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
SHAPES = ((1, 1), (5, 16), (7, 100), (33, 257), (16, 512), (0, 32), (3, 0))


def weight(n: int, k: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Heavy tails, a group of zeros, columns of one sign."""
    g = generator(f"weight {n} {k}")
    w = torch.randn(n, k, generator=g) * torch.rand(n, k, generator=g).pow(-0.3) * 0.02
    w[: n // 3] = w[: n // 3].abs()
    w[n // 2 : n // 2 + 1, : k // 2] = 0
    return w.to(dtype)


def exact(quantized: QuantizedInt4, k: int) -> torch.Tensor:
    """(q - zero_point) * scale in float64, an element at a time."""
    g = torch.arange(k) // quantized.group
    zero = 8.0 if quantized.zero_point is None else quantized.zero_point.double()[g].T
    return (quantized.q.double() - zero) * quantized.scale.double()[g].T


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=dtype_name)
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("group", [16, 48, 128, -1])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_within_the_documented_bound(
    shape: tuple[int, int], group: int, symmetric: bool, dtype: torch.dtype
) -> None:
    n, k = shape
    w = weight(n, k)
    got = quantize_weight_int4(w, group, symmetric=symmetric, scale_dtype=dtype)
    groups = -(-k // got.group)
    assert got.group == (max(k, 1) if group == -1 else group)
    assert (got.q.shape, got.q.dtype) == ((n, k), torch.uint8)
    assert (got.scale.shape, got.scale.dtype) == ((groups, n), dtype)
    assert got.q.numel() == 0 or int(got.q.max()) <= 15
    assert bool((got.scale > 0).all())
    assert (got.zero_point is None) == symmetric
    error = (exact(got, k) - w.double()).abs()
    steps = got.scale.double()[torch.arange(k) // got.group].T
    assert bool((error <= steps * (0.5 + 15 * U[dtype] + 2.0**-14)).all())
    assert_equal(got.dequantize(), exact(got, k).float())


@pytest.mark.parametrize("symmetric", [True, False])
def test_codes_that_fit_come_back(symmetric: bool) -> None:
    g = generator("fit")
    codes = torch.randint(0, 16, (9, 64), generator=g)
    codes[:, ::16], codes[:, 1::16] = 1, 15  # the ends of the range, symmetric about 8
    if not symmetric:
        codes[:, ::16] = 0
    codes = codes.clamp(min=1 if symmetric else 0)
    step = torch.exp2(torch.randint(-8, 0, (9, 4), generator=g).float()).repeat_interleave(16, 1)
    got = quantize_weight_int4((codes - 8) * step, 16, symmetric=symmetric)
    assert_equal(got.q.long(), codes)
    assert_equal(got.dequantize(), (codes - 8) * step)


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_search_is_never_worse_and_better_with_outliers(symmetric: bool) -> None:
    w = weight(24, 256)

    def errors(search: bool) -> torch.Tensor:
        got = quantize_weight_int4(w, 64, symmetric=symmetric, search=search)
        return (exact(got, 256) - w.double()).square().reshape(24, 4, 64).sum(2)

    plain, searched = errors(False), errors(True)
    assert bool((searched <= plain * (1 + 1e-5)).all())
    assert searched.sum() < 0.97 * plain.sum()


def test_scales_are_of_the_weight_s_dtype_and_tiny_ones_do_not_vanish() -> None:
    w = torch.tensor([[1e-8, -3e-8] * 8, [0.0] * 16])
    assert quantize_weight_int4(w.half(), 16).scale.dtype == torch.float16
    got = quantize_weight_int4(w, 16, scale_dtype=torch.float16)
    assert got.scale.tolist() == [[2.0**-24, 1.0]]
    assert got.q[1].tolist() == [8] * 16


def test_the_codes_pack() -> None:
    got = quantize_weight_int4(weight(33, 100), 32)
    assert_equal(lamina.pack_int4(got.q).unpack(), got.q)


BAD: dict[str, tuple[Any, dict[str, Any], str]] = {
    "1-D": (torch.ones(3), {}, r"w must be 2-D \[n, k\], got 1-D \[3\]"),
    "f64": (torch.ones(3, 3).double(), {}, "w must be float32, float16 or bfloat16, got torch.float64"),
    "NaN": (torch.tensor([[1.0, torch.nan]]), {}, r"the first at \[0, 1\] \(nan\)"),
    "group 8": (torch.ones(3, 3), {"group": 8}, "group = 8; must be a positive multiple of 16, or -1"),
    "group 0": (torch.ones(3, 3), {"group": 0}, "group = 0; must"),
    "scale f64": (
        torch.ones(3, 3),
        {"scale_dtype": torch.float64},
        "scale_dtype must be .* got torch.float64",
    ),
    "scale beyond f16": (
        torch.full((3, 3), 1e6),
        {"scale_dtype": torch.float16},
        "scale_dtype = torch.float16 has no scale of 142857; float32 has",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str) -> None:
    w, options, message = BAD[case]
    with pytest.raises(ValueError, match=f"quantize_weight_int4: .*{message}"):
        quantize_weight_int4(w, **options)
