"""append_paged_kv and gather_paged_kv against their formulas: the same bits on every kernel."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import lamina
from tests.reference import paged_kv as reference
from tests.support.backends import (
    Backend,
    EmulatedKernel,
    available,
    available_cpu,
    backends,
    cpu_backends,
    kernel_of,
)
from tests.support.cases import FLOAT_DTYPES, dtype_name, generator
from tests.support.compare import assert_equal
from tests.support.kv_cases import (
    CACHE_DTYPES,
    LAYOUTS,
    QUANTIZED,
    Caches,
    angles,
    caches,
    filled,
    paged,
    rows,
    run,
    scales_of,
)

BACKENDS = pytest.mark.parametrize("backend", backends("paged_kv"))
CPU_BACKENDS = pytest.mark.parametrize("backend", cpu_backends("paged_kv"))
CACHES = pytest.mark.parametrize(
    ("dtype", "scales"),
    [(dtype, scales) for dtype in CACHE_DTYPES for scales in scales_of(dtype)],
    ids=lambda value: dtype_name(value) if isinstance(value, torch.dtype) else value,
)
DTYPES = pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=dtype_name)


def shuffled_slots(count: int, room: int, seed: str = "slots") -> Tensor:
    return torch.randperm(room, generator=generator(seed))[:count]


def check_append(
    backend: Backend,
    case: Caches,
    k: Tensor,
    v: Tensor,
    slots: Tensor,
    q: Tensor | None = None,
    rope: tuple[Tensor, Tensor] | None = None,
    positions: Tensor | None = None,
    interleaved: bool = False,
    label: object = "",
) -> None:
    """Runs the op and the formula; caches, scales and q have the same bits, and nothing else has changed."""
    want, want_q = case.clone(), None if q is None else q.clone()
    places = [] if positions is None else positions.tolist()
    reference.append_paged_kv(
        k, v, want.k, want.v, slots.tolist(), want.k_scale, want.v_scale, rope, places, interleaved, want_q
    )  # fmt: skip
    between = case.bytes_between()
    cos, sin = (None, None) if rope is None else rope
    run(
        backend, "append_paged_kv", k=k, v=v, k_cache=case.k, v_cache=case.v, slot_mapping=slots,
        **case.scales, cos=cos, sin=sin, positions=positions, interleaved=interleaved, q=q,
    )  # fmt: skip
    for got, right in zip(case.tensors, want.tensors, strict=True):
        assert_same(got, right, label)
    if q is not None and want_q is not None:
        assert_equal(q, want_q, f"q {label}")
    for now, then in zip(case.bytes_between(), between, strict=True):
        assert torch.equal(now, then), f"{label}: memory between the rows has changed"


def gather(
    backend: Backend, case: Caches, table: Tensor, offsets: Tensor, out_dtype: torch.dtype | None = None
) -> tuple[Tensor, ...]:
    return run(
        backend, "gather_paged_kv", k_cache=case.k, v_cache=case.v, block_table=table, cu_seqlens_k=offsets,
        tokens=int(offsets[-1]), **case.scales, out_dtype=out_dtype,
    )  # fmt: skip


def assert_same(got: Tensor, want: Tensor, label: object) -> None:
    if got.dtype == torch.float8_e4m3fn:  # exact in f32
        got, want = got.float(), want.float()
    assert_equal(got.contiguous(), want.contiguous(), label)


@BACKENDS
@CACHES
@pytest.mark.parametrize("layout", LAYOUTS)
def test_append_matches_the_formula(layout: str, dtype: torch.dtype, scales: str, backend: Backend) -> None:
    for given, (tokens, heads, dims) in itertools.product(
        FLOAT_DTYPES, [(1, 1, (8, 8)), (7, 3, (40, 24)), (19, 2, (128, 256))]
    ):
        case = caches(layout, 5, 4, heads, dims, dtype, scales)
        k, v = (rows(tokens, heads, d, given) for d in dims)
        slots = shuffled_slots(tokens, 20)
        slots[1::5] = -1
        check_append(backend, case, k, v, slots, label=f"{given} {tokens} {heads} {dims}")


@BACKENDS
@CACHES
@pytest.mark.parametrize("interleaved", [False, True])
def test_rope_then_append(interleaved: bool, dtype: torch.dtype, scales: str, backend: Backend) -> None:
    for given, table, wide in itertools.product(FLOAT_DTYPES, FLOAT_DTYPES, (torch.int32, torch.int64)):
        for rotary in (2, 20, 48):
            case = caches("hnd", 3, 8, 2, (48, 16), dtype, scales)
            k, v, q = rows(9, 2, 48, given), rows(9, 2, 16, table), rows(9, 4, 48, table, "q")
            slots, positions = shuffled_slots(9, 24), shuffled_slots(9, 30, "positions").to(wide)
            slots[3] = -1
            rope = angles(30, rotary // 2, table)
            check_append(
                backend, case, k, v, slots, q, rope, positions, interleaved, f"{given} {table} {rotary}"
            )


@BACKENDS
def test_what_is_not_rotated_keeps_its_bits(backend: Backend) -> None:
    """Signalling NaNs: v, k without rope, and q from rotary_dim on are copied or left alone."""
    nan = torch.full((2, 1, 16), 0x7C01, dtype=torch.int16).view(torch.float16)
    case, q = caches("nhd", 1, 4, 1, (16, 16), torch.float16), nan.clone()
    cos, sin, first, last = torch.ones(1, 3), torch.zeros(1, 3), torch.tensor([0, 1]), torch.tensor([2, 3])
    shared = {"k": nan, "v": nan, "k_cache": case.k, "v_cache": case.v}
    run(backend, "append_paged_kv", **shared, slot_mapping=first, cos=cos, sin=sin, positions=first * 0, q=q)
    run(backend, "append_paged_kv", **shared, slot_mapping=last)
    for copied in (q[..., 6:], case.v, case.k[:, 2:]):
        assert (copied.contiguous().view(torch.int16) == 0x7C01).all()


def test_rope_is_the_rotation_of_complex_numbers() -> None:
    """In float64 and without the formula: the pairs turn by the angle of their position, both pairings."""
    g = generator("complex")
    x, v = torch.randn(6, 1, 16, generator=g), torch.zeros(6, 1, 8)
    turns = torch.arange(6)[:, None] * torch.tensor([1.0, 0.3, 0.1, 0.01, 3.0, 0.5, 0.7, 0.2])
    slots = torch.arange(6)
    for interleaved in (False, True):
        case = caches("nhd", 2, 3, 1, (16, 8), torch.float32)
        lamina.append_paged_kv(
            x, v, case.k, case.v, slots, cos=turns.cos(), sin=turns.sin(), positions=slots,
            interleaved=interleaved,
        )  # fmt: skip
        pairs = x[:, 0].double().reshape(6, 8, 2) if interleaved else x[:, 0].double().reshape(6, 2, 8).mT
        turned = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * torch.polar(
            torch.ones(6, 8, dtype=torch.float64), turns.double()
        ))  # fmt: skip
        want = turned.reshape(6, 16) if interleaved else turned.mT.reshape(6, 16)
        got = case.k.reshape(6, 16).double()
        assert (got - want).abs().max() < 1e-6


@BACKENDS
@pytest.mark.parametrize("dtype", QUANTIZED, ids=dtype_name)
def test_special_rows(dtype: torch.dtype, backend: Backend) -> None:
    """Zeros, NaN, Inf, subnormals and the largest numbers, with every kind of scale."""
    special = [
        0.0,
        -0.0,
        torch.nan,
        -torch.nan,
        torch.inf,
        -torch.inf,
        1e-45,
        1e-38,
        3e38,
        -3e38,
        448.0,
        465.0,
    ]
    k = torch.randn(len(special), 2, 16, generator=generator("special"))
    for i, value in enumerate(special):
        k[i, 0, 5] = value
        k[i, 1] = value
    for scales in scales_of(dtype):
        case = caches("nhd", 4, 4, 2, (16, 16), dtype, scales)
        check_append(backend, case, k, k.flip(0), torch.arange(len(special)), label=scales)
        if scales == "token":
            lost, scale = case.k.reshape(16, 2, 16), case.k_scale.reshape(16, 2)  # type: ignore[union-attr]
            assert scale[2:6].isnan().all()
            assert (lost[2:6].float() == 0).all()
            assert scale[0, 1] == 2.0**-126


@BACKENDS
def test_e4m3_is_torchs_float8(backend: Backend) -> None:
    """All f32 numbers by their leading 16 bits, and the neighbours of every middle between codes."""
    # The emulator is slow. One pattern in 31 still has every exponent and sign.
    step = 31 if isinstance(backend, EmulatedKernel) else 1
    patterns = torch.arange(0, 2**16, step, dtype=torch.int64) << 16
    low = torch.randint(0, 2**16, patterns.shape, generator=generator("low bits"))
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    positive = codes[:127]
    middles = ((positive[1:] + positive[:-1]) / 2).repeat(3).view(torch.int32)
    middles += torch.tensor([-1, 0, 1], dtype=torch.int32).repeat_interleave(126)
    values = torch.cat([(patterns + low).to(torch.int32).view(torch.float32), middles.view(torch.float32)])
    values = torch.cat([values, -values, codes])
    values = torch.cat([values, values.new_zeros(-len(values) % 256)]).reshape(-1, 1, 256)
    tokens = len(values)
    k, v = paged("nhd", tokens, 1, 1, (256, 256), torch.float8_e4m3fn)
    slots = torch.arange(tokens)
    run(backend, "append_paged_kv", k=values, v=values, k_cache=k, v_cache=v, slot_mapping=slots)
    want = values.clamp(-448, 448).to(torch.float8_e4m3fn).float()
    assert_equal(k.float().reshape(want.shape), want)
    assert_equal(v.float().reshape(want.shape), want)


@BACKENDS
def test_every_code_of_float8_is_read(backend: Backend) -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).reshape(1, 1, 1, 256)
    table = torch.zeros(1, 1, dtype=torch.int32)
    for dtype in FLOAT_DTYPES:
        k, v = gather(backend, Caches(codes, codes), table, torch.tensor([0, 1]).int(), out_dtype=dtype)
        assert_equal(k, codes[0].to(dtype))
        assert_equal(v, codes[0].to(dtype))


@CPU_BACKENDS
@CACHES
def test_of_tokens_with_one_slot_the_last_is_stored(
    dtype: torch.dtype, scales: str, backend: Backend, restore_threads: None
) -> None:
    """With several threads too: the tokens of one slot belong to one thread."""
    tokens = 4000
    k, v = rows(tokens, 2, 64, torch.float32), rows(tokens, 2, 64, torch.float16)
    slots = torch.randint(0, 64, (tokens,), generator=generator("duplicates"))
    last = torch.stack([(slots == slot).nonzero().max() for slot in range(64)])
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        case, want = (caches("nhd", 8, 8, 2, (64, 64), dtype, scales) for _ in range(2))
        with backend.active() as ops:
            ops.append_paged_kv(k, v, case.k, case.v, slots, **case.scales)
            ops.append_paged_kv(
                k[last].contiguous(), v[last].contiguous(), want.k, want.v, torch.arange(64), **want.scales
            )
        for got, right in zip(case.tensors, want.tensors, strict=True):
            assert_same(got, right, f"{threads} threads")


@BACKENDS
def test_no_token(backend: Backend) -> None:
    case = caches("nhd", 0, 4, 1, (8, 8), torch.float32)
    check_append(backend, case, rows(0, 1, 8, torch.float32), rows(0, 1, 8, torch.float32), torch.arange(0))
    offsets, table = torch.zeros(1, dtype=torch.int32), torch.zeros(0, 0, dtype=torch.int32)
    k, v = gather(backend, case, table, offsets)
    assert k.shape == v.shape == (0, 1, 8)


@BACKENDS
@CACHES
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gather_matches_the_formula(layout: str, dtype: torch.dtype, scales: str, backend: Backend) -> None:
    case = filled(caches(layout, 9, 4, 2, (40, 24), dtype, scales), "gather")
    lengths, offsets = [5, 0, 8, 1], torch.tensor([0, 5, 5, 13, 14]).int()
    pages = [[7, 2], [], [0, 8], [3]]
    garbage = torch.tensor([-1, 2**31 - 1, 99, -(2**31)]).repeat(4, 1).int()
    for row, blocks in zip(garbage, pages, strict=True):
        row[: len(blocks)] = torch.tensor(blocks)
    table = torch.cat([garbage, garbage], 1)[:, :4]
    places = list(reference.slots(pages, lengths, 4))
    for out in (*FLOAT_DTYPES, None):
        default = torch.float32 if dtype in QUANTIZED else dtype
        want = reference.gather_paged_kv(case.k, case.v, places, case.k_scale, case.v_scale, out or default)
        got = gather(backend, case, table, offsets, out_dtype=out)
        assert_equal(got[0], want[0], f"k {out}")
        assert_equal(got[1], want[1], f"v {out}")


@BACKENDS
def test_what_is_appended_comes_back(backend: Backend) -> None:
    """In float64: a quantised row is within the documented error of the row that was appended."""
    tokens, k = 33, rows(33, 3, 72, torch.float32)
    for dtype in QUANTIZED:
        case = caches("padded", 9, 4, 3, (72, 72), dtype, "token")
        table = shuffled_slots(9, 9).int()[None]
        slots = (table[0].long() * 4)[:, None] + torch.arange(4)
        offsets = torch.tensor([0, tokens]).int()
        run(
            backend, "append_paged_kv", k=k, v=k, k_cache=case.k, v_cache=case.v,
            slot_mapping=slots.flatten()[:tokens], **case.scales,
        )  # fmt: skip
        back, _ = gather(backend, case, table, offsets)
        exact = k.double()
        largest = exact.abs().amax(-1, keepdim=True)
        if dtype == torch.int8:
            bound = largest / 127 * (0.5 + 2.0**-14)
        else:
            bound = (exact.abs() * 2.0**-4 + largest / 448 * 2.0**-10) * (1 + 2.0**-18)
        assert ((back.double() - exact).abs() <= bound * (1 + 2.0**-20)).all()


def test_all_backends_and_thread_counts_give_the_same_bits(restore_threads: None) -> None:
    k, v, q = (rows(700, 2, 128, torch.bfloat16, seed) for seed in ("k", "v", "q"))
    slots = shuffled_slots(700, 704)
    rope, positions = angles(50, 64, torch.float32), slots % 50
    for dtype in CACHE_DTYPES:
        scales = scales_of(dtype)[-1]
        results = []
        for backend, threads in itertools.product(available("paged_kv"), (1, 3)):
            torch.set_num_threads(threads)
            case, turned = caches("hnd", 11, 64, 2, (128, 128), dtype, scales), q.clone()
            with backend.active() as ops:
                ops.append_paged_kv(
                    k, v, case.k, case.v, slots, **case.scales, cos=rope[0], sin=rope[1],
                    positions=positions, q=turned,
                )  # fmt: skip
            results.append([*case.tensors, turned])
        for result in results[1:]:
            for got, want in zip(result, results[0], strict=True):
                assert_same(got, want, dtype)


@pytest.mark.parametrize("backend", cpu_backends("paged_kv"))
def test_the_forced_isa_is_the_one_that_runs(backend: Backend) -> None:
    with backend.active() as ops:
        assert kernel_of(ops.explain_paged_kv()) == f"paged_kv_{backend.isa}"


def test_a_refused_append_changes_nothing() -> None:
    """The last token is wrong, and the first ones are not stored either."""
    case = caches("nhd", 2, 4, 1, (8, 8), torch.int8, "token")
    before = [t.clone() for t in case.tensors]
    k, q = torch.ones(3, 1, 8), torch.ones(3, 2, 8)
    rope: dict[str, Any] = {"cos": torch.zeros(4, 4), "sin": torch.ones(4, 4), "q": q}
    good = torch.arange(3)
    for slots, positions in (([0, 1, 8], good), ([0, 1, -2], good), ([0, 1, 2], torch.tensor([0, 1, 4]))):
        with pytest.raises(ValueError, match=r"\[2\] = "):
            lamina.append_paged_kv(
                k, k, case.k, case.v, torch.tensor(slots), **case.scales, **rope, positions=positions
            )
    for got, want in zip(case.tensors, before, strict=True):
        assert_equal(got, want)
    assert_equal(q, torch.ones(3, 2, 8))


def test_positions_of_tokens_that_are_not_stored() -> None:
    """They may be garbage, unless q is rotated."""
    case = caches("nhd", 1, 4, 1, (8, 8), torch.float32)
    k, slots, positions = torch.ones(2, 1, 8), torch.tensor([-1, 0]), torch.tensor([99, 0])
    rope: dict[str, Any] = {"cos": torch.ones(1, 4), "sin": torch.zeros(1, 4), "positions": positions}
    lamina.append_paged_kv(k, k, case.k, case.v, slots, **rope)
    assert (case.k[0, 0] == 1).all()
    with pytest.raises(ValueError, match=r"positions\[0\] = 99"):
        lamina.append_paged_kv(k, k, case.k, case.v, slots, **rope, q=torch.ones(2, 1, 8))


def test_fuzz_of_indices() -> None:
    """Garbage in slot_mapping, block_table and cu_seqlens_k is an error, or the result is the formula's."""
    g = generator("fuzz")
    edges = torch.tensor([-(2**63), -(2**31), -2, -1, 0, 1, 5, 15, 16, 17, 2**31, 2**63 - 1])
    k = rows(3, 1, 8, torch.float32)
    stored = 0
    for _ in range(300):
        slots = edges[torch.randint(0, len(edges), (3,), generator=g)]
        case = caches("nhd", 4, 4, 1, (8, 8), torch.float32)
        is_good = bool(((slots >= -1) & (slots < 16)).all())
        if is_good:
            check_append(available_cpu("paged_kv")[0], case, k, k, slots)
            stored += 1
        else:
            with pytest.raises(ValueError, match="slot_mapping"):
                lamina.append_paged_kv(k, k, case.k, case.v, slots)
            assert case.k.isnan().all()
    assert stored > 5
    case, read = filled(caches("nhd", 4, 4, 1, (8, 8), torch.float32), "fuzz"), 0
    for _ in range(300):
        offsets = torch.randint(-1, 7, (3,), generator=g).int()
        offsets[0] = 0 if torch.rand(1, generator=g) < 0.9 else 1
        table = torch.randint(-1, 6, (2, 2), generator=g).int()
        tokens = max(int(offsets[2]), 0)
        lengths = np.diff(offsets.numpy()).tolist()
        is_good = int(offsets[0]) == 0 and min(lengths) >= 0 and max(lengths) <= 8
        needed = (
            [row[: -(-n // 4)] for row, n in zip(table.tolist(), lengths, strict=True)] if is_good else []
        )
        is_good = is_good and all(0 <= b < 4 for blocks in needed for b in blocks)
        if not is_good:
            with pytest.raises(ValueError, match=r"block_table|cu_seqlens_k"):
                lamina.gather_paged_kv(case.k, case.v, table, offsets, tokens)
            continue
        places = list(reference.slots(table.tolist(), lengths, 4))
        want = reference.gather_paged_kv(case.k, case.v, places)
        assert_equal(lamina.gather_paged_kv(case.k, case.v, table, offsets, tokens)[0], want[0])
        read += 1
    assert read > 20
