"""Layouts as functions of indices: each formula a second time, and what memory and banks ask of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.backends import NO_PROBE, probe

if probe() is None:
    pytest.skip(NO_PROBE, allow_module_level=True)
layout = probe().layout
Swizzle, Descriptor = layout.Swizzle, layout.MatrixDescriptor

SWIZZLES = st.sampled_from((Swizzle.none, Swizzle.b32, Swizzle.b64, Swizzle.b128))
LARGEST = 2**63 - 1
Pair = tuple[int, int]
BANK_GROUPS = 8  # of 16 bytes: so many lanes that read 16 bytes each are served together


def tiles(extent: int, tile: int) -> int:
    return (extent + tile - 1) // tile


@given(n=st.integers(0, 2**40), k=st.integers(0, 2**20), more=st.integers(0, 2**16))
def test_int8_tile_is_its_formula(n: int, k: int, more: int) -> None:
    tiles_k = k // 64 + 1 + more
    group = (n // 16 * tiles_k + k // 64) * 16 + k % 64 // 4
    assert layout.int8_tile_offset(n, k, tiles_k) == (group * 16 + n % 16) * 4 + k % 4


@given(n=st.integers(1, 70), k=st.integers(1, 300))
def test_int8_tile_gives_each_weight_a_byte(n: int, k: int) -> None:
    offsets = [layout.int8_tile_offset(i, p, tiles(k, 64)) for i in range(n) for p in range(k)]
    assert len(set(offsets)) == n * k
    assert min(offsets) >= 0 and max(offsets) < layout.int8_tile_bytes(n, k)


@given(n=st.integers(0, LARGEST), k=st.integers(0, LARGEST))
def test_packed_sizes_are_whole_tiles_or_refused(n: int, k: int) -> None:
    for packed_bytes, tile_bytes in ((layout.int8_tile_bytes, 1024), (layout.int4_bytes, 512)):
        want = tiles(n, 16) * tiles(k, 64) * tile_bytes
        assert packed_bytes(n, k) == (want if want <= LARGEST else None)


def half_of_tile(n: int, k: int) -> int:
    return 32 * (n // 2 * 4 + k % 8 // 2) + 8 * (k // 16) + n % 2 + 2 * (k % 16 // 8) + 4 * (k % 2)


def half_of_rows(n: int, k: int) -> int:
    return 2 * (k // 8 * 64 + n * 4 + k % 4) + k % 8 // 4


@pytest.mark.parametrize(
    ("place", "at", "half"),
    [
        (layout.int4_tile_place, layout.int4_tile_at, half_of_tile),
        (layout.int4_rows_place, layout.int4_rows_at, half_of_rows),
    ],
    ids=["int4_tile", "int4_rows"],
)
def test_int4_places_are_their_formula_and_back(
    place: Callable[[int, int], Pair], at: Callable[[int, int], Pair], half: Callable[[int, int], int]
) -> None:
    halves = set()
    for n, k in itertools.product(range(16), range(64)):
        byte, shift = place(n, k)
        assert at(byte, shift) == (n, k)
        assert byte * 2 + shift // 4 == half(n, k)
        halves.add(half(n, k))
    assert halves == set(range(1024))


@pytest.mark.parametrize("per_register", [2, 4])
def test_mma_operands_are_those_of_the_isa(per_register: int) -> None:
    """PTX ISA, "Matrix Fragments for mma.m16n8k16 / mma.m16n8k32": groupID and threadID_in_group."""
    columns = 8 * per_register
    a, b, of_warpgroup = set(), set(), set()
    for lane, i, e in itertools.product(range(32), range(4), range(per_register)):
        group, thread = lane >> 2, lane & 3
        row = group if i in (0, 2) else group + 8
        column = thread * per_register + e + (0 if i < 2 else columns // 2)
        assert layout.mma_a(per_register, lane, i, e) == (row, column)
        a.add((row, column))
        if i < 2:
            at = thread * per_register + e + (columns // 2 if i else 0), group
            assert layout.mma_b(per_register, lane, i, e) == at
            b.add(at)
        of_warpgroup |= {layout.wgmma_a(per_register, warp * 32 + lane, i, e) for warp in range(4)}
    assert a == set(itertools.product(range(16), range(columns)))
    assert b == set(itertools.product(range(columns), range(8)))
    assert of_warpgroup == set(itertools.product(range(64), range(columns)))


@given(n=st.integers(1, 32).map(lambda eighths: 8 * eighths))
def test_results_of_wgmma_fill_the_tile(n: int) -> None:
    places = [layout.wgmma_d(thread, i) for thread in range(128) for i in range(n // 2)]
    assert len(places) == 64 * n
    assert set(places) == set(itertools.product(range(64), range(n)))
    assert {layout.wgmma_d(thread, i) for thread in range(32) for i in range(4)} == {
        layout.mma_c(lane, i) for lane in range(32) for i in range(4)
    }


def test_ldmatrix_fills_8_rows_of_8() -> None:
    every = list(itertools.product(range(32), range(2)))
    assert {layout.ldmatrix(*at) for at in every} == set(itertools.product(range(8), range(8)))
    assert all(layout.ldmatrix_trans(*at) == layout.ldmatrix(*at)[::-1] for at in every)


def assert_no_conflict(chunks: list[int]) -> None:
    """Chunks of 16 bytes that lanes read at once."""
    assert sorted(chunk % BANK_GROUPS for chunk in chunks) == list(range(BANK_GROUPS))


@given(first=st.integers(0, 2**20), chunk=st.integers(0, 31), row_chunks=st.sampled_from((8, 16, 32)))
def test_row_swizzle(first: int, chunk: int, row_chunks: int) -> None:
    """Eight rows from any on, a chunk of each, as ldmatrix reads them."""
    rows, chunk = range(first, first + BANK_GROUPS), chunk % row_chunks
    assert_no_conflict([row * row_chunks + layout.row_chunk(row, chunk) for row in rows])
    assert all(layout.row_chunk(row, layout.row_chunk(row, chunk)) == chunk for row in rows)


@given(first=st.integers(0, 2**20).map(lambda pairs: 2 * pairs), chunk=st.integers(0, 3))
def test_half_row_swizzle(first: int, chunk: int) -> None:
    rows = range(first, first + BANK_GROUPS)
    assert_no_conflict([row * 4 + layout.half_row_chunk(row, chunk) for row in rows])
    assert all(layout.half_row_chunk(row, layout.half_row_chunk(row, chunk)) == chunk for row in rows)


@given(first=st.sampled_from((0, 4, 8, 12)), lanes=st.sampled_from((0, 8, 16, 24)))
def test_tile_swizzle(first: int, lanes: int) -> None:
    """A lane of an mma reads chunk lane / 4 % 4 of row lane % 4."""
    at = [(first + lane % 4, lane // 4 % 4) for lane in range(lanes, lanes + 8)]
    assert_no_conflict([row * 4 + layout.tile_chunk(row, chunk) for row, chunk in at])
    assert all(layout.tile_chunk(row, layout.tile_chunk(row, chunk)) == chunk for row, chunk in at)


@given(swizzle=SWIZZLES, address=st.integers(0, 2**32 - 1))
def test_hardware_swizzle(swizzle: Any, address: int) -> None:
    """PTX ISA, "Swizzling modes": chunks of 16 bytes change places by the number of their 128-byte line."""
    chunks = max(swizzle.row_bytes // 16, 1)
    moved = layout.swizzled(swizzle, address)
    assert moved // 16 == address // 16 ^ address // 128 % chunks
    assert moved % 16 == address % 16
    assert layout.swizzled(swizzle, moved) == address


SIXTEENTHS = st.integers(0, 2**14 - 1).map(lambda count: 16 * count)


@given(SIXTEENTHS, SIXTEENTHS, SIXTEENTHS, SWIZZLES, st.integers(0, 7))
def test_descriptors_are_read_back(address: int, leading: int, stride: int, swizzle: Any, base: int) -> None:
    bits = Descriptor(address, leading, stride, swizzle, base).encode()
    code = {Swizzle.none: 0, Swizzle.b128: 1, Swizzle.b64: 2, Swizzle.b32: 3}[swizzle]
    assert bits == address // 16 | leading << 12 | stride << 28 | base << 49 | code << 62
    back = Descriptor.decode(bits)
    assert (back.address, back.leading_bytes, back.stride_bytes) == (address, leading, stride)
    assert (back.swizzle, back.base_offset) == (swizzle, base)
    further = Descriptor.decode(layout.advance_descriptor(bits & ~0x3FFF, address))
    assert (further.address, further.leading_bytes) == (address, leading)


@given(swizzle=SWIZZLES, atoms=st.integers(1, 4), is_mn_major=st.booleans(), start=st.integers(0, 15))
def test_matrices_fill_their_atoms(swizzle: Any, atoms: int, is_mn_major: bool, start: int) -> None:
    """Eight runs an atom: no byte is used twice, and none lies outside."""
    is_plain, address = swizzle == Swizzle.none, 1024 * start
    atom, run = Descriptor(swizzle=swizzle).atom_bytes, Descriptor(swizzle=swizzle).run_bytes
    stride = 2 * atom if is_plain and not is_mn_major else atom
    leading = atoms * atom if is_mn_major else atom
    if is_plain and is_mn_major:
        stride, leading = atoms * atom, atom
    matrix = Descriptor(address, leading, stride, swizzle)
    along = run if is_mn_major else 32
    places = {
        (matrix.mn_major(byte, i) if is_mn_major else matrix.k_major(i, byte)) - address
        for i in range(8 * atoms)
        for byte in range(along)
    }
    assert len(places) == 8 * atoms * along
    assert min(places) >= 0 and max(places) < 8 * atoms * max(along, run)
