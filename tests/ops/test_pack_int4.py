"""pack_int4 against the layouts written out one code at a time, and unpack_int4 as its inverse."""

from __future__ import annotations

import pytest
import torch

import lamina
from lamina.ops.pack_int4 import INT4_LAYOUTS
from tests.reference import layout as reference
from tests.support.backends import Backend, emu_ops, emulator_parameters, gpus
from tests.support.cases import generator
from tests.support.compare import assert_equal

SHAPES = ((1, 1), (1, 64), (16, 1), (3, 5), (15, 63), (16, 64), (17, 65), (33, 200), (0, 0), (0, 70), (20, 0))
LAYOUTS = pytest.mark.parametrize("layout", INT4_LAYOUTS)
DEVICES = pytest.mark.parametrize("device", [*emulator_parameters("gemm_int4")[:1], *gpus("gemm_int4")[:1]])


def codes(n: int, k: int) -> torch.Tensor:
    g = generator(f"int4 {n} {k}")
    return torch.randint(0, 16, (n, k), generator=g).to(torch.uint8)


@LAYOUTS
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_layout_is_the_documented_one(shape: tuple[int, int], layout: str) -> None:
    q = codes(*shape)
    data = torch.ops.lamina.pack_int4(q, layout)
    assert_equal(data, reference.pack_int4(q.numpy(), layout))
    assert_equal(torch.ops.lamina.unpack_int4(data, *shape, layout), q)


@LAYOUTS
def test_every_code_of_a_tile_has_its_own_place(layout: str) -> None:
    """One code after another is 15, and the rest are 0."""
    seen = set()
    for place in range(16 * 64):
        q = torch.zeros(16, 64, dtype=torch.uint8)
        q.view(-1)[place] = 15
        data = torch.ops.lamina.pack_int4(q, layout).flatten()
        assert data.count_nonzero() == 1
        at = int(data.nonzero()[0])
        seen.add((at, int(data[at])))
    assert len(seen) == 16 * 64
    assert {value for _, value in seen} == {0x0F, 0xF0}


def test_a_lane_s_word_is_two_registers_of_bytes() -> None:
    """int4_tile as 8-bit integers: the low halves are an even row, the high halves the next row."""
    q = codes(16, 64)
    words = torch.ops.lamina.pack_int4(q, "int4_tile").view(32, 4, 4)  # lane, step, byte
    order = [2 * (p // 4) + 8 * (p % 2) + p % 4 // 2 for p in range(16)]
    assert sorted(order) == list(range(16))
    for lane in range(32):
        for step in range(4):
            k = [16 * step + order[4 * (lane % 4) + byte] for byte in range(4)]
            assert (words[lane, step] & 15).tolist() == q[lane // 4 * 2, k].tolist()
            assert (words[lane, step] >> 4).tolist() == q[lane // 4 * 2 + 1, k].tolist()


def test_rows_unfold_to_int8_tile() -> None:
    """int4_rows: the low halves of a row of 64 bytes are a row of int8_tile, the high halves the next row."""
    q = codes(16, 64)
    data = torch.ops.lamina.pack_int4(q, "int4_rows").view(8, 1, 64)
    rows = torch.cat([data & 15, data >> 4], 1).view(16, 16, 4)
    want, _ = torch.ops.lamina.pack_int8(q.to(torch.int8))
    assert_equal(rows.to(torch.int8), want[0, 0])


@LAYOUTS
def test_padding_is_zero_whatever_the_memory_held(layout: str) -> None:
    """The allocator hands out freed memory that is full of 0x55."""
    q = codes(17, 65)
    for _ in range(8):
        dirty = torch.full((2 * 2 * 512,), 0x55, dtype=torch.uint8)
        del dirty
        assert_equal(torch.ops.lamina.pack_int4(q, layout), reference.pack_int4(q.numpy(), layout))


@LAYOUTS
@pytest.mark.parametrize("stride", [65, 66, 1000])
def test_any_row_stride(stride: int, layout: str) -> None:
    q = codes(20, 65)
    wide = torch.full((20, stride), 255, dtype=torch.uint8)
    wide[:, :65] = q
    assert_equal(torch.ops.lamina.pack_int4(wide[:, :65], layout), reference.pack_int4(q.numpy(), layout))


@LAYOUTS
@pytest.mark.usefixtures("restore_threads")
def test_independent_of_the_thread_count(layout: str) -> None:
    q = codes(500, 300)
    want = torch.ops.lamina.pack_int4(q, layout)
    for threads in (1, 3, 16):
        torch.set_num_threads(threads)
        assert_equal(torch.ops.lamina.pack_int4(q, layout), want, f"{threads} threads")
        assert_equal(torch.ops.lamina.unpack_int4(want, 500, 300, layout), q, f"{threads} threads")


@LAYOUTS
@pytest.mark.usefixtures("restore_threads")
def test_the_first_wrong_code_is_named(layout: str) -> None:
    q = codes(100, 300)
    q[17, 250], q[90, 3], q[17, 299] = 16, 255, 200
    for threads in (1, 4):
        torch.set_num_threads(threads)
        with pytest.raises(ValueError, match=r"pack_int4: q\[17, 250\] = 16; allowed: 0 to 15"):
            lamina.pack_int4(q, layout)


@LAYOUTS
def test_a_part_is_what_packing_the_part_gives(layout: str) -> None:
    q = codes(70, 300)
    packed = lamina.pack_int4(q, layout)
    for n, k in (
        ((16, 48), (64, 192)),
        ((48, 70), (256, 300)),
        ((0, 70), None),
        (None, (0, 0)),
        ((32, 32), None),
    ):
        part = packed.shard(n, k)
        (n0, n1), (k0, k1) = n or (0, 70), k or (0, 300)
        want = lamina.pack_int4(q[n0:n1, k0:k1], layout)
        assert_equal(part.data, want.data)
        assert (part.n, part.k, part.layout) == (n1 - n0, k1 - k0, layout)
        assert_equal(part.unpack(), q[n0:n1, k0:k1])
    for n, k, name in (
        ((8, 16), None, "n"),
        ((0, 71), None, "n"),
        (None, (64, 100), "k"),
        (None, (-64, 64), "k"),
    ):
        with pytest.raises(ValueError, match=rf"PackedInt4.shard: {name} = \("):
            packed.shard(n, k)


def test_packed_weight_object() -> None:
    q = codes(33, 130)
    packed = lamina.pack_int4(q)
    assert (packed.n, packed.k, packed.layout) == (33, 130, "int4_tile")
    assert packed.nbytes == 3 * 3 * 512
    assert_equal(packed.to("cpu").unpack(), q)


def test_the_emulated_library_packs_the_same() -> None:
    ops = emu_ops()
    if ops is None:
        pytest.skip("the emulated library is not built")
    q = codes(40, 100)
    for layout in INT4_LAYOUTS:
        assert_equal(ops.pack_int4(q, layout), torch.ops.lamina.pack_int4(q, layout))


@DEVICES
@LAYOUTS
def test_packed_on_a_device(layout: str, device: Backend) -> None:
    for n, k in (*SHAPES, (70, 1000)):
        q = codes(n, k)
        rows = torch.full((n, k + 3), 255, dtype=torch.uint8)
        rows[:, :k] = q
        with device.active() as ops:
            data = ops.pack_int4(device.place(rows[:, :k]), layout)
            assert_equal(ops.unpack_int4(data, n, k, layout).cpu(), q, (n, k))
        assert_equal(data.cpu(), reference.pack_int4(q.numpy(), layout), (n, k))


@pytest.mark.slow
@DEVICES
def test_more_codes_than_a_launch_has_threads(device: Backend) -> None:
    """A thread of 2^16 blocks of 256 unpacks a second code. Packing divides its words among threads alike."""
    n, k = 4097, 4100
    q = torch.randint(0, 16, (n, k), dtype=torch.uint8, generator=generator("launch"))
    data = torch.ops.lamina.pack_int4(q, "int4_tile")
    with device.active() as ops:
        assert_equal(ops.unpack_int4(device.place(data), n, k, "int4_tile").cpu(), q)


@DEVICES
@LAYOUTS
def test_packed_in_another_order_on_a_device(layout: str, device: Backend) -> None:
    """An index of perm out of range, which only the caller can check, counts as a place without a feature."""
    q = codes(20, 100)
    perm = torch.randint(-1, 100, (130,), generator=generator("perm"), dtype=torch.int32)
    want = torch.ops.lamina.pack_int4(q, layout, perm)
    perm[perm == -1] = 100
    with device.active() as ops:
        data = ops.pack_int4(device.place(q), layout, device.place(perm))
    assert_equal(data.cpu(), want)
