"""Tests of fenced operands: they keep values, strides and alignment, and a read past their end kills the
process."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal

import pytest
import torch

from tests.support.memory import APART, MANY, SLOTS, alignment, extent, far_apart, fenced

TENSORS = {
    "vector": torch.arange(7.0),
    "column of a matrix": torch.arange(21.0).reshape(7, 3)[:, 1:2],
    "ragged rows": torch.arange(35).to(torch.int8).reshape(5, 7),
    "aligned rows": torch.arange(96).to(torch.int8).reshape(3, 32)[:, :21],
    "rows off by 3": torch.arange(105).to(torch.int8)[3:99].reshape(3, 32),
    "transposed": torch.arange(24).half().reshape(4, 6).T,
    "one row for all": torch.arange(8).bfloat16().expand(5, 8),
    "one element": torch.tensor(3.0),
    "many pages": torch.arange(9000.0).reshape(9, 1000),
}


@pytest.mark.parametrize("t", TENSORS.values(), ids=TENSORS.keys())
def test_fenced_operands_are_the_same(t: torch.Tensor) -> None:
    first = fenced(t)
    for copy in [first, *(fenced(t) for _ in range(SLOTS - 1))]:
        assert torch.equal(copy, t)
        assert (copy.stride(), copy.dtype) == (t.stride(), t.dtype)
        assert (copy.data_ptr() - t.data_ptr()) % alignment(t) == 0
    assert torch.equal(first, t)


@pytest.mark.parametrize("t", TENSORS.values(), ids=TENSORS.keys())
def test_who_reads_beyond_them_dies(t: torch.Tensor) -> None:
    copy = fenced(t)
    end = copy.data_ptr() + extent(t) * t.element_size()
    ctypes.string_at(end - 1, 1)
    assert dies_of_reading(end + alignment(t) - 1)


def dies_of_reading(address: int) -> bool:
    child = os.fork()
    if child == 0:
        faulthandler.disable()
        ctypes.string_at(address, 1)
        os._exit(0)
    return os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGSEGV


def test_empty_and_large_ones_stay_where_they_are() -> None:
    empty, far = torch.zeros(0, 5), far_apart(torch.ones(MANY, 3), APART)
    assert fenced(empty) is empty
    assert fenced(far) is far
    assert far.stride() == (APART, 1)
    assert far.sum() == 3 * MANY
