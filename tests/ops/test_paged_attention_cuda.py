"""Only the CUDA kernels of paged_attention record bad indices, leave lengths to the device and cut work."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings

from tests.ops.test_paged_attention_indices import CASES, CHANGES, problem_of, spoiled, stray_pages
from tests.support.attention_cases import CACHES, ROWS_OF_BYTES, AttentionCase, AttentionInputs
from tests.support.attention_check import (
    arithmetic,
    attend,
    attend_invariantly,
    check_attention,
    emulated,
    rows_of,
    tiles,
)
from tests.support.backends import NO_PROBE, EmulatedKernel, emulator, probe
from tests.support.compare import assert_equal, assert_within
from tests.support.on_emulator import emulated_ops, sites_without_conflicts

pytestmark = pytest.mark.skipif(probe() is None, reason=NO_PROBE)
TILES = pytest.mark.parametrize("tile", tiles())
# wgmma adds in another order than mma, so no kernel of sm90a has the mode batch_invariant.
INVARIANT_TILES = [tile for tile in tiles() if tile.startswith("sm80")]
LONG = AttentionCase(((5, 200), (1, 130), (0, 9), (9, 150)), heads=(2, 3), head_dim=64, page=16)


def allowed_errors(inputs: AttentionInputs) -> str:
    """The argument that a kernel must refuse, or nothing. It does not need max_seqlen_q, and reads depths
    only where positions matter."""
    problem = problem_of(inputs.replace(max_seqlen_q=2**31))
    matters = inputs.alibi_slopes is not None or inputs.window_left >= 0 or inputs.window_right >= 0
    return "" if problem == "tree_depth" and not matters else problem


@given(CASES, CHANGES)
@settings(max_examples=40)
@pytest.mark.parametrize("batch_invariant", [False, True])
def test_an_error_is_recorded_or_the_answer_is_right(
    batch_invariant: bool, case: AttentionCase, changes: list[tuple[str, int, int]]
) -> None:
    backend = emulated("sm80_r16")
    inputs = spoiled(case.on(backend).inputs(), changes)
    problem = allowed_errors(inputs)
    if problem or stray_pages(inputs) or problem_of(inputs) == "tree_depth":
        attend(backend, inputs, batch_invariant=batch_invariant)
        error = backend.take_error()
        assert not problem or error.startswith("paged_attention: "), problem
        if not problem and not error:  # no token sees the stray pages
            pages = inputs.block_table.clamp(0, len(inputs.k_cache) - 1)
            depth = None if inputs.tree_depth is None else inputs.tree_depth.clamp(min=0)
            right = inputs.replace(block_table=pages, tree_depth=depth)
            check_attention(backend, right, right.expected(), case, batch_invariant)
        return
    check_attention(backend, inputs, inputs.expected(), case, batch_invariant)


# Requests 0 to 3 have the tokens 0-4, 5, none, 6-14. The argument, its value, the message, and the requests
# that are right.
BAD: dict[str, tuple[str, list[int], str, set[int]]] = {
    "a negative length": ("seq_lens", [-1, 130, 9, 150], "seq_lens[0] = -1 must be", {1, 3}),
    "a length past the table": ("seq_lens", [200, 10**6, 9, 150], "seq_lens[1] = 1000000 must", {0, 3}),
    "decreasing": ("cu_seqlens_q", [0, 5, 3, 6, 15], "cu_seqlens_q[2] = 3 must be", {0, 3}),
    "past the tokens": ("cu_seqlens_q", [0, 5, 99, 6, 15], "paged_attention: cu_seqlens_q[", {0}),
    "beginning late": ("cu_seqlens_q", [1, 5, 6, 6, 15], "cu_seqlens_q[0] = 1 must be", {0, 1, 3}),
    "ending early": ("cu_seqlens_q", [0, 5, 6, 6, 13], "cu_seqlens_q[4] = 13 must be", {0, 1, 3}),
}


@TILES
@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_empty_and_others_are_right(name: str, tile: str) -> None:
    """All rows are written: those of no request, or of one that is refused, with zeros."""
    backend = emulated(tile)
    inputs = LONG.on(backend).inputs()
    argument, value, text, kept = BAD[name]
    bad = inputs.replace(**{argument: torch.tensor(value).int()})
    out, lse = attend(backend, bad)
    assert text in backend.take_error()
    assert backend.take_error() == ""
    is_kept = torch.zeros(len(out)).bool()
    for b in kept:
        span, alone = bad.span(b), bad.request(b)
        is_kept[span] = True
        want_out, want_lse = alone.expected().expected(arithmetic(backend, alone))
        assert_within(out[span], want_out, out.dtype, name)
        assert_within(lse[:, span], want_lse, lse.dtype, name)
    assert_equal(out[~is_kept], torch.zeros_like(out[~is_kept]))
    assert lse[:, ~is_kept].isneginf().all()
    assert not is_kept.all()


def test_a_stray_page_is_read_as_zeros() -> None:
    backend = emulated("sm80_r16")
    inputs = LONG.on(backend).inputs()
    table = inputs.block_table.clone()
    table[0, 3] = len(inputs.k_cache)
    out, _ = attend(backend, inputs.replace(block_table=table))
    want = f"paged_attention: block_table[0, 3] = {len(inputs.k_cache)} must be"
    assert backend.take_error().startswith(want)
    assert_equal(out[5:], attend(backend, inputs)[0][5:])


@pytest.mark.parametrize("cache", [cache for cache in CACHES if cache != "f32"])
@pytest.mark.parametrize("tree", ["", "random"])
def test_rows_of_a_tile_change_no_bit(tree: str, cache: str) -> None:
    """With batch_invariant, tiles of 16, 32, 64 and 128 rows, and cuts between any blocks of threads."""
    q_dtype = torch.float16 if cache == "f16" else torch.bfloat16
    case = dataclasses.replace(LONG, tree=tree, cache=cache, q_dtype=q_dtype)
    inputs = case.on(emulated("sm80_r64")).inputs()
    want = attend_invariantly(emulated("sm80_r16"), inputs)
    for tile in INVARIANT_TILES:
        if rows_of(tile) in ROWS_OF_BYTES or inputs.k_cache.dtype.itemsize == 2:
            for sms in (1, 7):
                backend = dataclasses.replace(emulated(tile, seed=sms), sms=sms)
                for got, wanted in zip(attend_invariantly(backend, inputs), want, strict=True):
                    assert_equal(got, wanted, f"{tile}, {sms} SMs")


@pytest.mark.parametrize("tile", INVARIANT_TILES)
@pytest.mark.parametrize("others", [0, 24])
def test_splits_change_no_bit(others: int, tile: str) -> None:
    """Splits of 1024 columns are merged in a fixed tree, whether a block of threads has some of a tile or all
    of several tiles. For one request alone each split has a block of threads of its own."""
    lens = ((1, 1100), (2, 2050), *[(1, 3)] * others)
    backend = dataclasses.replace(emulated(tile), sms=1)
    inputs = AttentionCase(lens, heads=(1, 2), head_dim=16, page=16).on(backend).inputs()
    want = [attend_invariantly(emulated(tile), inputs.request(b)) for b in (0, 1)]
    for sms in (1, 2):
        out, lse = attend_invariantly(dataclasses.replace(backend, sms=sms), inputs)
        for b in (0, 1):
            assert_equal(out[inputs.span(b)], want[b][0], f"request {b}, {sms} SMs")
            assert_equal(lse[:, inputs.span(b)], want[b][1], f"request {b}, {sms} SMs")
    check_attention(backend, inputs, inputs.expected(), batch_invariant=True)


@TILES
@pytest.mark.parametrize("seed", range(1, 6))
def test_schedules_and_sms(seed: int, tile: str) -> None:
    """Parts end in the middle of tiles, and blocks of threads finish in any order."""
    backend = dataclasses.replace(emulated(tile, seed), sms=2 * seed - 1)
    inputs = dataclasses.replace(LONG, tree="bits" if seed % 2 else "").on(backend).inputs()
    first = check_attention(backend, inputs, inputs.expected())
    again = attend(dataclasses.replace(backend, seed=seed + 10), inputs)
    for got, wanted in zip(again, first, strict=True):
        assert_equal(got, wanted, "another schedule")


@TILES
def test_no_bank_conflicts(tile: str) -> None:
    for cache in ("bf16", "int8_token"):
        kernel = emulated(tile)
        inputs = dataclasses.replace(LONG, cache=cache, head_dim=128).on(kernel).inputs()
        arguments = inputs.arguments()
        sites = sites_without_conflicts(kernel, lambda ops, given=arguments: ops.paged_attention(**given))
        assert len(sites) >= 15


REFUSED: tuple[tuple[dict[str, Any], str], ...] = (
    ({"q_dtype": torch.float32}, "q is float32; on CUDA it must be float16 or bfloat16"),
    ({"q_dtype": torch.half, "cache": "f32"}, "k_cache is float32; on CUDA it must be float16 like q, int8"),
    ({"q_dtype": torch.half, "cache": "bf16"}, "k_cache is bfloat16; on CUDA it must be float16 like q"),
    ({"q_dtype": torch.bfloat16, "cache": "f16"}, "k_cache is float16; on CUDA it must be bfloat16 like q"),
)


@pytest.mark.parametrize(("changed", "message"), REFUSED)
def test_dtypes_that_cuda_kernels_refuse(changed: dict[str, Any], message: str) -> None:
    inputs = AttentionCase("decode", **changed).inputs()
    with pytest.raises(ValueError, match=message):
        attend(emulated("sm80_r16"), inputs)


def test_a_kernel_of_too_small_a_head_dim_is_refused() -> None:
    kernel = EmulatedKernel("", True, "paged_attention")
    with kernel.active() as ops:
        ops.set_cuda_kernel("paged_attention_sm80_r128_d64")
        inputs = AttentionCase("decode", q_dtype=torch.half, cache="f16", head_dim=80).inputs()
        with pytest.raises(ValueError, match=r'name = "paged_attention_sm80_r128_d64": no CUDA kernel'):
            ops.paged_attention(**inputs.arguments())


def chosen(tokens: int, group: int, compute_capability: int = 80, **options: Any) -> str:
    device = probe().cuda.Device(compute_capability, 108)
    name = probe().cuda.attention_kernel(device, tokens, group, **options)
    return str(name).removeprefix("paged_attention_")


@pytest.mark.parametrize("group", [1, 4, 8, 13])
def test_a_call_gets_the_smallest_tile_that_holds_a_request(group: int) -> None:
    """A request has `group` rows for each token. batch_invariant leaves the choice among tiles of sm80."""
    for tokens in range(1, 200 // group):
        rows = next((n for n in (16, 32, 64, 128) if tokens * group <= n), 128)
        for invariant in (False, True):
            assert chosen(tokens, group, batch_invariant=invariant) == f"sm80_r{rows}_d128"
        narrow = chosen(tokens, group, head_dim=64)
        assert narrow == f"sm80_r{64 if rows == 32 else rows}_d64"  # no tile of 32 has d64
        of_bytes = chosen(tokens, group, head_dim=72, is_int8=True)
        assert of_bytes == f"sm80_r{16 if rows == 16 else 64}_d128_int8"
        newer = chosen(tokens, group, 90)
        assert newer == ("sm90a_r128_d128" if tokens * group >= 64 else f"sm80_r{rows}_d128")
        assert chosen(tokens, group, 90, batch_invariant=True) == f"sm80_r{rows}_d128"
        newer_of_bytes = chosen(tokens, group, 90, head_dim=72, is_int8=True)
        assert newer_of_bytes == ("sm90a_r128_d128_int8" if tokens * group >= 64 else of_bytes)
    assert chosen(8, 4, 86) == "sm80_r32_d128"
    assert chosen(8, 4, head_dim=192) == "sm80_r64_d192"
    assert chosen(40, 4, head_dim=256) == "sm80_r16_d256"
    assert chosen(40, 4, 90, head_dim=192, is_int8=True) == "sm90a_r128_d256_int8"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@TILES
def test_special_values_reach_the_rows_that_see_them(tile: str, value: float) -> None:
    """In the values of neighbouring blocks of columns, which the causal rule cuts, and past all rows."""
    backend = emulated(tile)
    case = AttentionCase(((70, 150), (3, 140)), heads=(1, 2), head_dim=64, page=16, out_dtype=torch.float32)
    inputs = case.on(backend).inputs()
    for request, slot, element in ((0, 3, 1), (0, 90, 0), (0, 149, 63), (1, 64, 8), (1, 138, 40)):
        page, row = inputs.slot(request, slot)
        inputs.v_cache[page, row, 0, element] = value
    check_attention(backend, inputs, inputs.expected(), value)


@TILES
def test_infinite_values_without_weight_are_nan(tile: str) -> None:
    """The score of their key is -inf. Some rows of the tile do not see all of them."""
    backend = emulated(tile)
    case = AttentionCase(((70, 150), (3, 140)), heads=(1, 2), head_dim=64, page=16, out_dtype=torch.float32)
    inputs = case.on(backend).inputs()
    inputs.q[..., 0] = 1
    for request, slot, element in ((0, 3, 1), (0, 90, 2), (0, 149, 63), (1, 64, 8), (1, 138, 40)):
        page, row = inputs.slot(request, slot)
        inputs.v_cache[page, row, 0, element] = math.inf
        inputs.k_cache[page, row, 0, 0] = -math.inf
        page, row = inputs.slot(request, slot - 1)
        inputs.v_cache[page, row, 0, element + 1 if element < 63 else 0] = math.inf
    check_attention(backend, inputs, inputs.expected())


@pytest.mark.parametrize("code", [0x7F, 0xFF])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tile", [*(f"sm80_r{rows}" for rows in ROWS_OF_BYTES), "sm90a_r128"])
def test_nan_of_float8_stays_nan(tile: str, dtype: torch.dtype, code: int) -> None:
    """In each byte of a word of the values, and in a key, which later tokens see."""
    backend = emulated(tile)
    lens = ((70, 150), (3, 140))
    case = AttentionCase(lens, dtype, "e4m3", heads=(1, 2), head_dim=64, out_dtype=torch.float32)
    inputs = case.on(backend).inputs()
    for request, slot, element in ((0, 3, 20), (0, 90, 21), (1, 64, 22), (1, 138, 23)):
        page, row = inputs.slot(request, slot)
        inputs.v_cache.view(torch.uint8)[page, row, 0, element] = code
    page, row = inputs.slot(0, 140)
    inputs.k_cache.view(torch.uint8)[page, row, 0, 7] = code
    check_attention(backend, inputs, inputs.expected(), code)
    assert attend(backend, inputs)[0].isnan().any()


def uses_wgmma(
    compute_capability: int, tokens: int, batch_invariant: bool = False, cache: str = "bf16"
) -> bool:
    """Whether a request of these tokens, with two heads for each head of the cache, goes to sm90a."""
    case = AttentionCase(((tokens, 70),), torch.bfloat16, cache, heads=(1, 2))
    given = case.inputs().replace(max_seqlen_q=tokens).arguments()
    emulator().take_report()
    with emulated_ops(compute_capability) as ops:
        emulator().set_options(count_accesses=True)
        ops.paged_attention(**given, batch_invariant=batch_invariant)
    return any("sm90a" in site.file for site in emulator().take_report().sites)


def test_wgmma_computes_requests_of_many_rows() -> None:
    """From 64 rows on, on compute capability 9.0 alone, and not where the batch may change no bit."""
    for cache in ("bf16", "int8_token", "e4m3"):
        assert uses_wgmma(90, 32, cache=cache)
        assert not uses_wgmma(90, 31, cache=cache)
    assert not uses_wgmma(90, 32, batch_invariant=True)
    assert not uses_wgmma(80, 32)
    assert not uses_wgmma(100, 32)


@pytest.mark.parametrize("cache", ["bf16", "e4m3_token"])
def test_kernels_of_sm80_on_newer_gpus(cache: str) -> None:
    """They convert e4m3 with an instruction, and begin while the plan is made."""
    inputs = dataclasses.replace(LONG, cache=cache).on(emulated("sm80_r16")).inputs()
    for bits in range(0, 256, 2) if cache == "e4m3_token" else ():  # all codes but those of NaN
        code = torch.tensor([bits, bits ^ 1], dtype=torch.uint8)
        code[(code & 127) == 127] = 0
        page, row = inputs.slot(0, bits // 2)
        inputs.v_cache[page, row, 0, :2] = code.view(inputs.v_cache.dtype)
    want = attend(emulated("sm80_r16"), inputs)
    with emulated_ops(90) as ops:
        ops.set_cuda_kernel("paged_attention_sm80_r16")
        got = ops.paged_attention(**inputs.arguments(), return_lse=True)
        ops.set_cuda_kernel("")
    for out, wanted in zip(got, want, strict=True):
        assert_equal(out, wanted, cache)


def test_a_window_cuts_the_tree_of_splits() -> None:
    """Tiles of few and of many rows then begin with different splits."""
    case = AttentionCase(((40, 5200),), heads=(1, 1), head_dim=16, page=16, window=(1500, 0))
    inputs = case.on(emulated("sm80_r128")).inputs()
    want = attend_invariantly(emulated("sm80_r16"), inputs)
    for tile in INVARIANT_TILES:
        for sms in (1, 3):
            got = attend_invariantly(dataclasses.replace(emulated(tile), sms=sms), inputs)
            for out, wanted in zip(got, want, strict=True):
                assert_equal(out, wanted, f"{tile}, {sms} SMs")
