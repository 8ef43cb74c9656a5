"""The comparators must notice every way in which a kernel goes wrong."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests.reference.gemm import Expected
from tests.support.cases import FLOAT_DTYPES, GEMM_BY_NAME, dtype_name
from tests.support.compare import assert_equal, assert_within


def zero_a_tile(t: torch.Tensor) -> None:
    t[:4, 16:32] = 0


def flip_a_sign(t: torch.Tensor) -> None:
    t[-1, -1] *= -1


def shift_a_column(t: torch.Tensor) -> None:
    t[:, 1:] = t[:, :-1].clone()


def swap_two_rows(t: torch.Tensor) -> None:
    t[[0, 1]] = t[[1, 0]]


def plant_a_nan(t: torch.Tensor) -> None:
    t[2, 3] = torch.nan


def plant_an_inf(t: torch.Tensor) -> None:
    t[2, 3] = torch.inf


def swap_neighbours(t: torch.Tensor) -> None:
    t[0, [4, 5]] = t[0, [5, 4]]


def zero_the_last_column(t: torch.Tensor) -> None:
    t[:, -1] = 0


def scale_by_a_percent(t: torch.Tensor) -> None:
    t *= 1.01


MUTATIONS = (
    zero_a_tile,
    flip_a_sign,
    shift_a_column,
    swap_two_rows,
    swap_neighbours,
    zero_the_last_column,
    plant_a_nan,
    plant_an_inf,
    scale_by_a_percent,
)


def right_answer(dtype: torch.dtype) -> tuple[torch.Tensor, Expected]:
    inputs = GEMM_BY_NAME["ragged_everywhere"].inputs(bias=torch.float32)
    acc = inputs.accumulated()
    return inputs.expected_bits(acc, dtype), inputs.expected(acc, dtype)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=dtype_name)
def test_accepts_the_right_answer(dtype: torch.dtype) -> None:
    got, expected = right_answer(dtype)
    assert assert_within(got, expected, dtype) <= 1
    assert_equal(got, got.clone())


@pytest.mark.parametrize("mutate", MUTATIONS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=dtype_name)
def test_notices_a_wrong_float(dtype: torch.dtype, mutate: Callable[[torch.Tensor], None]) -> None:
    got, expected = right_answer(dtype)
    wrong = got.clone()
    mutate(wrong)
    with pytest.raises(AssertionError, match="elements are wrong"):
        assert_within(wrong, expected, dtype)
    with pytest.raises(AssertionError, match="elements are wrong"):
        assert_equal(wrong, got)


@pytest.mark.parametrize("mutate", [m for m in MUTATIONS if not m.__name__.startswith(("plant", "scale"))])
def test_notices_a_wrong_integer(mutate: Callable[[torch.Tensor], None]) -> None:
    right = GEMM_BY_NAME["ragged_everywhere"].inputs().a
    wrong = right.clone()
    mutate(wrong)
    with pytest.raises(AssertionError, match="elements are wrong"):
        assert_equal(wrong, right)


def test_notices_one_step_in_the_last_place() -> None:
    got, _ = right_answer(torch.float32)
    wrong = torch.nextafter(got, torch.tensor(torch.inf))
    with pytest.raises(AssertionError, match="elements are wrong"):
        assert_equal(wrong, got)


def test_notices_shape_and_dtype() -> None:
    got, expected = right_answer(torch.float32)
    for wrong in (got[:-1], got.T, got.to(torch.float64)):
        with pytest.raises(AssertionError, match="expected"):
            assert_within(wrong, expected, torch.float32)
        with pytest.raises(AssertionError, match="expected"):
            assert_equal(wrong, got)


def test_nan_and_inf_must_be_where_the_reference_has_them() -> None:
    exact = np.array([[np.nan, np.inf, -np.inf, 1.0]])
    expected = Expected(exact, np.abs(exact) * 2.0**-20)
    right = torch.tensor([[torch.nan, torch.inf, -torch.inf, 1.0]])
    assert_within(right, expected, torch.float32)
    for column, value in ((0, 0.0), (1, torch.nan), (1, -torch.inf), (2, -3e38), (3, torch.nan)):
        wrong = right.clone()
        wrong[0, column] = value
        with pytest.raises(AssertionError, match="1 of 4 elements are wrong"):
            assert_within(wrong, expected, torch.float32)


def test_overflow_to_inf_is_right_only_at_the_threshold() -> None:
    exact = np.array([[65000.0, 65519.0, 66000.0, -70000.0]])
    expected = Expected(exact, np.abs(exact) * 2.0**-11)
    assert_within(torch.tensor([[64992.0, 65504.0, torch.inf, -torch.inf]]).half(), expected, torch.float16)
    assert_within(torch.tensor([[64992.0, torch.inf, torch.inf, -torch.inf]]).half(), expected, torch.float16)
    for wrong in ([torch.inf, 65504, torch.inf, -torch.inf], [64992, 65504, torch.inf, -65504]):
        with pytest.raises(AssertionError, match="1 of 4 elements are wrong"):
            assert_within(torch.tensor([wrong]).half(), expected, torch.float16)


def test_the_sign_of_zero_and_the_payload_of_nan() -> None:
    with pytest.raises(AssertionError, match="1 of 1 elements are wrong"):
        assert_equal(torch.tensor([-0.0]), torch.tensor([0.0]))
    quiet = torch.tensor([0x7FC00000, -1], dtype=torch.int32).view(torch.float32)
    assert_equal(quiet, quiet.flip(0))
