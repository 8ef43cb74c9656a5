"""On wgmma paged_attention loads slots that rows see by TMA, in boxes of 16, 32 or 64, and copies all others."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
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


def maps(call: Callable[[], object]) -> int:
    """The tensor maps that the call made."""

    def made() -> int:
        return int(json.loads(emu_ops().host_work())["tensor_maps"])

    before = made()
    call()
    return made() - before


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
    case = AttentionCase(lens, heads=(1, 2), head_dim=64, page=page, window=(650, 0) if seed % 2 else (-1, -1))
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


def loads(inputs: AttentionInputs) -> set[str]:
    """The instructions that write keys and values to shared memory, but for those of TMA."""
    emulator().take_report()
    with KERNEL.active() as ops:
        emulator().set_options(count_accesses=True)
        ops.paged_attention(**inputs.arguments())
    sites = emulator().take_report().sites
    return {site.function for site in sites if "start_copies" in site.file or "loads.cuh" in site.file}


def test_whole_boxes_are_not_copied() -> None:
    for page in (16, 64):
        case = AttentionCase(((64, 128), (2, 192)), heads=(1, 2), page=page).on(KERNEL)
        print(loads(case.inputs()))
        print(loads(copied(case.inputs())))


def one_page(inputs: AttentionInputs) -> AttentionInputs:
    """The caches with their first page alone, whose stride is odd."""
    keep = int(inputs.block_table[0, 0])

    def alone(cache: torch.Tensor) -> torch.Tensor:
        return cache[keep : keep + 1].as_strided((1, *cache.shape[1:]), (cache.stride(0) + 1, *cache.stride()[1:]))

    table = torch.zeros_like(inputs.block_table)
    return inputs.replace(k_cache=alone(inputs.k_cache), v_cache=alone(inputs.v_cache), block_table=table)
