"""pack_int8 against the layout written out one weight at a time, and unpack_int8 as its inverse."""

from __future__ import annotations

import pytest
import torch

import lamina
from lamina.ops.pack_int8 import packed_shape
from tests.reference import layout as reference
from tests.support.backends import available
from tests.support.cases import generator, random_int8
from tests.support.compare import assert_equal

SHAPES = ((1, 1), (1, 64), (16, 1), (3, 5), (15, 63), (16, 64), (17, 65), (31, 127), (33, 200), (100, 4))
EMPTY = ((0, 0), (0, 70), (20, 0))


def weight(n: int, k: int) -> torch.Tensor:
    return random_int8(generator(f"pack {n} {k}"), n, k)


@pytest.mark.parametrize("shape", SHAPES + EMPTY, ids=str)
def test_layout_is_the_documented_one(shape: tuple[int, int]) -> None:
    w = weight(*shape)
    data, sums = torch.ops.lamina.pack_int8(w)
    assert_equal(data, reference.pack_int8(w.numpy()))
    assert_equal(sums, reference.column_sums(w.numpy()))


def test_every_byte_of_a_tile_has_its_own_place() -> None:
    """Each weight holds its own position: the places (n, k) of one tile are numbered modulo 256 in two
    planes."""
    position = torch.arange(16 * 64).reshape(16, 64)
    for plane in (position % 256 - 128, position // 256):
        w = plane.to(torch.int8)
        data, _ = torch.ops.lamina.pack_int8(w)
        assert_equal(data[0, 0].permute(1, 0, 2).reshape(16, 64), w)


@pytest.mark.parametrize("shape", [*SHAPES, *EMPTY, (384, 1536), (257, 4097)], ids=str)
def test_unpack_is_the_inverse(shape: tuple[int, int]) -> None:
    w = weight(*shape)
    for backend in available("gemm_int8"):
        data, _ = backend.pack(w)
        with backend.active() as ops:
            assert_equal(ops.unpack_int8(data, *shape), w, backend)


def test_every_isa_packs_the_same_bytes() -> None:
    w = weight(70, 300)
    want = torch.ops.lamina.pack_int8(w)
    for backend in available("gemm_int8"):
        for got, right in zip(backend.pack(w), want, strict=True):
            assert_equal(got, right, backend)


def test_padding_is_zero_whatever_the_memory_held() -> None:
    """The allocator hands out freed memory that is full of 0x55."""
    w = weight(17, 65)
    for _ in range(8):
        dirty = torch.full((2 * 2 * 1024,), 0x55, dtype=torch.int8)
        del dirty
        data, _ = torch.ops.lamina.pack_int8(w)
        assert_equal(data, reference.pack_int8(w.numpy()))


def test_column_sums_at_their_largest() -> None:
    w = torch.full((3, 70_000), -128, dtype=torch.int8)
    w[1] = 127
    _, sums = torch.ops.lamina.pack_int8(w)
    assert sums.tolist() == [-128 * 70_000, 127 * 70_000, -128 * 70_000]


@pytest.mark.parametrize("stride", [65, 66, 1000])
def test_any_row_stride(stride: int) -> None:
    w = weight(20, 65)
    wide = torch.full((20, stride), 99, dtype=torch.int8)
    wide[:, :65] = w
    data, sums = torch.ops.lamina.pack_int8(wide[:, :65])
    assert_equal(data, reference.pack_int8(w.numpy()))
    assert_equal(sums, reference.column_sums(w.numpy()))
    shared = w[:1].expand(20, 65)
    assert_equal(torch.ops.lamina.pack_int8(shared)[0], reference.pack_int8(shared.numpy()))


@pytest.mark.usefixtures("restore_threads")
def test_independent_of_the_thread_count() -> None:
    w = weight(500, 300)
    want = torch.ops.lamina.pack_int8(w)
    for threads in (1, 3, 16):
        torch.set_num_threads(threads)
        for got, right in zip(torch.ops.lamina.pack_int8(w), want, strict=True):
            assert_equal(got, right, f"{threads} threads")
        assert_equal(torch.ops.lamina.unpack_int8(want[0], 500, 300), w, f"{threads} threads")


def test_packed_weight_object() -> None:
    w = weight(33, 130)
    packed = lamina.pack_int8(w)
    assert (packed.n, packed.k) == (33, 130)
    assert_equal(packed.unpack(), w)
    assert packed.nbytes == 3 * 3 * 1024 + 33 * 4
    assert tuple(packed.data.shape) == reference.packed_shape(33, 130)
    assert_equal(packed.to("cpu").data, packed.data)
    for n, k in (*SHAPES, *EMPTY):
        assert packed_shape(n, k) == reference.packed_shape(n, k)


def test_the_source_is_not_changed() -> None:
    w = weight(40, 90)
    before = w.clone()
    lamina.pack_int8(w)
    assert_equal(w, before)
