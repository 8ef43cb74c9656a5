"""The only ways in which tests compare results. Every element counts; a failure names the worst one."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from tests.reference.gemm import Expected

# The largest finite value plus half a step: from here on round-to-nearest gives Inf.
OVERFLOW = {
    torch.float32: (2 - 2.0**-24) * 2.0**127,
    torch.float16: 65520.0,
    torch.bfloat16: (2 - 2.0**-8) * 2.0**127,
}
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes an element


def assert_equal(got: torch.Tensor, want: torch.Tensor | NDArray[np.generic], label: object = "") -> None:
    """Asserts the same shape, dtype and bits. Every NaN is alike, and -0.0 differs from 0.0."""
    want = torch.from_numpy(want) if isinstance(want, np.ndarray) else want
    _assert_same_kind(got, tuple(want.shape), want.dtype, label)
    _fail_where(bit_patterns(got) != bit_patterns(want), got, want, label)


def assert_within(got: torch.Tensor, expected: Expected, dtype: torch.dtype, label: object = "") -> float:
    """Asserts |got - exact| <= bound for each element, and NaN and Inf at the places of the reference.

    Returns the largest error / bound. Inf is right where exact +- bound reaches the overflow threshold
    of the dtype, and wrong elsewhere.
    """
    exact, bound = expected
    _assert_same_kind(got, exact.shape, dtype, label)
    value = got.to(torch.float64).numpy()
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        reach = np.abs(exact) + bound
        may_overflow = np.isinf(exact) | (reach >= OVERFLOW[dtype])
        must_overflow = np.isinf(exact) | (np.abs(exact) - bound >= OVERFLOW[dtype] * (1 + 2.0**-8))
        error = np.abs(value - exact)
        right_infinity = may_overflow & np.isinf(value) & (np.sign(value) == np.sign(exact))
        right_finite = np.isfinite(value) & ~must_overflow & (error <= bound)
        right_nan = np.isnan(exact) & np.isnan(value)
        ratio = np.where(right_finite & (bound > 0), error / bound, 0.0)
    wrong = ~(right_infinity | right_finite | right_nan)
    _fail_where(torch.from_numpy(wrong), got, torch.from_numpy(exact), label, torch.from_numpy(bound))
    return float(ratio.max(initial=0.0))


def bit_patterns(tensor: torch.Tensor) -> torch.Tensor:
    """Integers that are equal exactly where the values are the same; all NaNs are the same."""
    if not tensor.is_floating_point():
        return tensor
    quiet = torch.where(tensor.isnan(), torch.full_like(tensor, torch.nan), tensor)
    return quiet.contiguous().view(BITS[tensor.element_size()])


def _assert_same_kind(got: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype, label: object) -> None:
    assert tuple(got.shape) == shape, f"{label}: shape {tuple(got.shape)}, expected {shape}"
    assert got.dtype == dtype, f"{label}: dtype {got.dtype}, expected {dtype}"


def _fail_where(
    wrong: torch.Tensor,
    got: torch.Tensor,
    want: torch.Tensor,
    label: object,
    bound: torch.Tensor | None = None,
) -> None:
    places = wrong.nonzero().tolist()
    if not places:
        return
    lines = []
    for place in places[:6]:
        at = tuple(place)
        within = "" if bound is None else f" +- {bound[at].item():.3g}"
        lines.append(f"  {list(at)}: got {got[at].item()!r}, expected {want[at].item()!r}{within}")
    count, total = len(places), wrong.numel()
    raise AssertionError(f"{label}: {count} of {total} elements are wrong\n" + "\n".join(lines))
