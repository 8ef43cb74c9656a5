"""On wgmma paged_attention loads slots that rows see by TMA, in boxes of 16, 32 or 64; it copies others."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from tests.support.attention_cases import AttentionCase, AttentionInputs
from tests.support.attention_check import attend, check_attention, emulated
from tests.support.backends import NO_PROBE, emu_ops, emulator, probe
from tests.support.cases import pairwise
from tests.support.compare import assert_equal

pytestmark = pytest.mark.skipif(probe() is None, reason=NO_PROBE)
KERNEL = emulated("sm90a_r128")
# Rows with masks and without; the end of a request within a box, at its end, and behind it.
BATCH = ((40, 150), (0, 9), (9, 64), (3, 80))
OPTIONS: dict[str, tuple[Any, ...]] = {
    "page": (16, 32, 48, 64, 128, 256),
    "layout": ("nhd", "hnd", "interleaved"),
    "head_dim": (64, 72, 128),
    "v_head_dim": (0, 40),
    "heads": ((1, 2), (2, 3)),
    "window": ((-1, -1), (70, 0), (-1, 20)),
    "causal": (True, False),
    "tree": ("", "random"),
}


def case_of(**options: Any) -> AttentionCase:
    """The case of these options, in a dtype that its page and head_dim choose."""
    return AttentionCase(BATCH, **options).on(KERNEL)


def in_wider_rows(cache: torch.Tensor) -> torch.Tensor:
    """The same cache with NaN behind every row, which then do not all begin at multiples of 16 bytes."""
    wide = torch.full((*cache.shape[:3], cache.shape[3] + 2), torch.nan, dtype=cache.dtype)
    wide[..., :-2] = cache
    return wide[..., :-2]


def copied(inputs: AttentionInputs) -> AttentionInputs:
    """The same problem without boxes."""
    return inputs.replace(k_cache=in_wider_rows(inputs.k_cache), v_cache=in_wider_rows(inputs.v_cache))


def call(inputs: AttentionInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """out and lse for tensors where they are."""
    with KERNEL.active() as ops:
        out, lse = ops.paged_attention(**inputs.arguments(), return_lse=True)
    return out, lse


def check_against_copies(inputs: AttentionInputs, seed: int = 0, sms: int = 4) -> None:
    """The bounds, and the bits of a call that only copies."""
    kernel = dataclasses.replace(KERNEL, seed=seed, sms=sms)
    got = check_attention(kernel, inputs, inputs.expected())
    want = attend(kernel, copied(inputs))
    for mine, other in zip(got, want, strict=True):
        assert_equal(mine, other)


@pytest.mark.parametrize("row", pairwise(*OPTIONS.values()))
def test_boxes_change_no_bit(row: tuple[Any, ...]) -> None:
    """Unused slots and pages are NaN."""
    check_against_copies(case_of(**dict(zip(OPTIONS, row, strict=True))).inputs())


@pytest.mark.parametrize("seed", range(1, 5))
@pytest.mark.parametrize("page", [16, 64])
def test_schedules_of_many_rounds_of_the_ring(page: int, seed: int) -> None:
    """A block of threads has pieces with boxes, with copies and with both, one after the other."""
    lens = ((30, 1000), (30, 30), (7, 700))
    window = (650, 0) if seed % 2 else (-1, -1)
    case = AttentionCase(lens, heads=(1, 2), head_dim=64, page=page, window=window, causal=bool(seed % 2))
    check_against_copies(case.on(KERNEL).inputs(), seed, sms=seed)


@pytest.mark.parametrize("page", [16, 64])
@pytest.mark.parametrize("index", [-1, -(2**31), 2**31 - 1, None])
def test_a_stray_page_is_zeros_and_an_error(index: int | None, page: int) -> None:
    inputs = case_of(heads=(1, 2), page=page).inputs()
    table = inputs.block_table.clone()
    table[0, 1] = len(inputs.k_cache) if index is None else index
    stray = inputs.replace(block_table=table)
    got = attend(KERNEL, stray)
    assert KERNEL.take_error().startswith(f"paged_attention: block_table[0, 1] = {int(table[0, 1])} must be")
    want = attend(KERNEL, copied(stray))
    KERNEL.take_error()
    for mine, other in zip(got, want, strict=True):
        assert_equal(mine, other)
    zeros = inputs.replace(k_cache=inputs.k_cache.clone(), v_cache=inputs.v_cache.clone())
    for cache in (zeros.k_cache, zeros.v_cache):
        cache[inputs.block_table[0, 1]] = 0
    for mine, other in zip(got, attend(KERNEL, zeros), strict=True):
        assert_equal(mine, other)


def accesses_of_loads(inputs: AttentionInputs) -> list[Any]:
    """The accesses to shared memory by the code that copies keys and values."""
    emulator().take_report()
    with KERNEL.active() as ops:
        emulator().set_options(count_accesses=True)
        ops.paged_attention(**inputs.arguments())
    return [site for site in emulator().take_report().sites if "loads.cuh" in site.file]


@pytest.mark.parametrize("page", [16, 64])
def test_whole_boxes_are_not_copied(page: int) -> None:
    inputs = AttentionCase(((64, 128), (2, 192)), heads=(1, 2), page=page).on(KERNEL).inputs()
    assert accesses_of_loads(inputs) == []
    assert accesses_of_loads(copied(inputs)) != []


def strided(cache: torch.Tensor, *strides: int, offset: int = 0) -> torch.Tensor:
    """The same values with other first strides, -1 for those of the cache, and NaN between them."""
    old = cache.stride()
    given = [old[i] if stride < 0 else stride for i, stride in enumerate(strides)] + list(old[len(strides) :])
    last = sum((size - 1) * stride for size, stride in zip(cache.shape, given, strict=True))
    moved = torch.full((last + 1 + offset,), torch.nan, dtype=cache.dtype).as_strided(
        cache.shape, given, offset
    )
    return moved.copy_(cache)


def first_page(cache: torch.Tensor) -> torch.Tensor:
    return strided(cache[:1], 7 * cache.stride(0) + 1)


# Caches [pages, page, 1, 64] by name: the page, a change, and whether TMA can load the result.
CACHES: dict[str, tuple[int, Callable[[torch.Tensor], torch.Tensor], bool]] = {
    "pages of 8": (8, torch.clone, False),
    "pages of 24": (24, torch.clone, False),
    "pages of 112": (112, torch.clone, True),
    "one page, so that its stride is free": (128, first_page, True),
    "one head, so that its stride is free": (16, lambda cache: strided(cache, -1, -1, 3), True),
    "slots with gaps": (16, lambda cache: strided(cache, 16 * 72, 72), True),
    "slots at 8 bytes": (16, lambda cache: strided(cache, 16 * 68, 68), False),
    "pages at 8 bytes": (16, lambda cache: strided(cache, 16 * 64 + 4), False),
    "a base at 8 bytes": (16, lambda cache: strided(cache, offset=4), False),
}


@pytest.mark.parametrize("name", CACHES)
def test_caches_that_tma_can_load(name: str) -> None:
    page, change, is_loaded = CACHES[name]
    lens = ((40, 100),) if page == 128 else ((40, 150), (3, 80))
    inputs = AttentionCase(lens, heads=(1, 2), page=page).on(KERNEL).inputs()
    if page == 128:  # the page of the request is the first one
        used = int(inputs.block_table[0, 0])
        inputs = inputs.replace(
            block_table=inputs.block_table.clone().fill_(0),
            k_cache=inputs.k_cache[used:],
            v_cache=inputs.v_cache[used:],
        )
    want = check_attention(KERNEL, inputs, inputs.expected(), name)
    changed = inputs.replace(k_cache=change(inputs.k_cache), v_cache=change(inputs.v_cache))
    half = changed.replace(k_cache=in_wider_rows(changed.k_cache))
    made: list[int] = []

    def count_maps() -> None:
        for given in (changed, changed, half):
            before = json.loads(emu_ops().host_work())["tensor_maps"]
            got = call(given)
            made.append(json.loads(emu_ops().host_work())["tensor_maps"] - before)
            for mine, other in zip(got, want, strict=True):
                assert_equal(mine, other, name)

    with ThreadPoolExecutor(1) as pool:  # a new thread has no maps yet
        pool.submit(count_maps).result()
    assert made == [2 * is_loaded, 0, 0]
