"""paged_attention against float64: tables in which any two options meet, and every shape, on every kernel."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import pytest
import torch

import lamina
from tests.reference.paged_attention import Attention
from tests.support.attention_cases import BATCHES, CACHES, TREES, AttentionCase, AttentionInputs
from tests.support.attention_check import arithmetic, attend, attention_backends, check_attention
from tests.support.backends import Backend, available_cpu
from tests.support.cases import FLOAT_DTYPES, dtype_name, pairwise
from tests.support.compare import assert_equal
from tests.support.memory import far_apart

BACKENDS = pytest.mark.parametrize("backend", attention_backends())
ONE_TILE = pytest.mark.parametrize("backend", attention_backends(16))
WGMMA = pytest.mark.parametrize("backend", attention_backends(arch=90))

OPTIONS: dict[str, tuple[Any, ...]] = {
    "cache": tuple(CACHES),
    "page": (1, 7, 16, 17, 128),
    "head_dim": (8, 64, 80, 96, 112, 128, 192, 256),
    "v_head_dim": (0, 8, 72),
    "heads": ((2, 1), (1, 3), (2, 4), (1, 7), (1, 8)),
    "q_dtype": FLOAT_DTYPES,
    "out_dtype": (None, *FLOAT_DTYPES),
    "layout": ("nhd", "hnd", "interleaved", "padded"),
    "causal": (True, False),
    "window": ((-1, -1), (0, 0), (3, -1), (-1, 1), (5, 1)),
    "softcap": (0.0, 2.5),
    "alibi": ("", "heads", "requests"),
    "sinks": (False, True),
    "tree": ("", *TREES),
    "batch": tuple(name for name in BATCHES if not name.startswith("long")),
}
# The same around 512 keys, with fewer options that the number of keys cannot touch.
LONG_OPTIONS = {
    "cache": OPTIONS["cache"],
    "page": (1, 7, 16, 128),
    "head_dim": (8, 24, 64),
    "heads": ((2, 1), (1, 3)),
    "causal": (True, False),
    "window": ((-1, -1), (0, 0), (508, -1), (515, 1), (520, 0)),
    "softcap": (0.0, 2.5),
    "alibi": ("", "heads"),
    "sinks": (False, True),
    "tree": ("", *TREES),
    "batch": tuple(name for name in BATCHES if name.startswith("long")),
}


def table(options: dict[str, tuple[Any, ...]]) -> list[AttentionCase]:
    return [AttentionCase(**dict(zip(options, row, strict=True))) for row in pairwise(*options.values())]


TABLE, LONG_TABLE = table(OPTIONS), table(LONG_OPTIONS)
OF_BYTES = [name for name, (dtype, *_) in CACHES.items() if dtype.itemsize == 1]
SHAPES = (
    AttentionCase("decode", heads=(1, 71), head_dim=16, v_head_dim=8),
    AttentionCase("verify", heads=(1, 128), head_dim=8, cache="int8_token", tree="random"),
    AttentionCase("mixed", heads=(5, 5), head_dim=40, v_head_dim=256, cache="bf16"),
    AttentionCase("prefill", heads=(3, 1), head_dim=256, v_head_dim=8, cache="f16", page=128),
    AttentionCase(((1, 1),), heads=(1, 1), head_dim=8, page=1),
    AttentionCase(((40, 40), (1, 2), (33, 70)), heads=(1, 4), head_dim=8, window=(9, -1)),
    AttentionCase(((0, 0), (0, 3)), heads=(1, 2), head_dim=8),
    AttentionCase(tuple((1, n) for n in (511, 512, 513, 1023, 1024, 1025)), heads=(1, 2), head_dim=16),
    AttentionCase(tuple((1, n) for n in range(66)), heads=(1, 2), head_dim=8, v_head_dim=24),
)


@functools.cache
def with_answer(case: AttentionCase) -> tuple[AttentionInputs, Attention]:
    inputs = case.inputs()
    return inputs, inputs.expected()


@BACKENDS
@pytest.mark.parametrize("row", range(len(TABLE)))
def test_any_two_options(row: int, backend: Backend) -> None:
    check_attention(backend, *with_answer(TABLE[row].on(backend)), TABLE[row])


@WGMMA
@pytest.mark.parametrize("row", range(len(TABLE)))
def test_any_two_options_with_the_other_size_of_elements(row: int, backend: Backend) -> None:
    """Caches of one byte an element, and those of 16 bits, have code of their own on wgmma."""
    case = TABLE[row]
    cache = "f16" if case.cache in OF_BYTES else OF_BYTES[row % len(OF_BYTES)]
    case = dataclasses.replace(case, cache=cache)
    check_attention(backend, *with_answer(case.on(backend)), case)


@ONE_TILE
@pytest.mark.parametrize("row", range(len(LONG_TABLE)))
def test_any_two_options_on_several_chunks(row: int, backend: Backend) -> None:
    check_attention(backend, *with_answer(LONG_TABLE[row].on(backend)), LONG_TABLE[row])


@BACKENDS
@pytest.mark.parametrize("case", SHAPES, ids=range(len(SHAPES)))
def test_shapes(case: AttentionCase, backend: Backend) -> None:
    check_attention(backend, *with_answer(case.on(backend)), case)


@BACKENDS
def test_every_head_dim(backend: Backend) -> None:
    """head_dim and v_head_dim run through all multiples of 8 in opposite directions."""
    for d in range(8, 257, 8):
        cache = tuple(CACHES)[d // 8 % len(CACHES)]
        case = AttentionCase(((2, 11),), cache=cache, heads=(1, 2), head_dim=d, v_head_dim=264 - d).on(
            backend
        )
        check_attention(backend, *with_answer(case), case)


@pytest.mark.parametrize("row", range(0, len(TABLE + LONG_TABLE), 3))
def test_all_isas_agree(row: int) -> None:
    case = (TABLE + LONG_TABLE)[row]
    inputs, _ = with_answer(case)
    first, *others = available_cpu("paged_attention")
    want = attend(first, inputs)
    for backend in others:
        if arithmetic(backend, inputs) != "f32":
            continue
        for got, wanted in zip(attend(backend, inputs), want, strict=True):
            assert_equal(got, wanted, f"{backend} and {first}: {case}")


@ONE_TILE
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=dtype_name)
def test_rounding_of_the_output(dtype: torch.dtype, backend: Backend) -> None:
    """With one key the result is the value: it is rounded once, to even, and overflows to Inf."""
    case = AttentionCase(((1, 1),), heads=(1, 1), head_dim=8, v_head_dim=248, out_dtype=dtype)
    inputs = case.on(backend).inputs()
    steps = torch.arange(124) * 2.0**-12 * torch.tensor([1.0, 65520.0, 2.0**-15])[:, None]
    for values in (*(1 + steps), torch.full((124,), 3.4e38), torch.full((124,), 2.0**-149)):
        page, row = inputs.slot(0, 0)
        inputs.v_cache[page, row, 0] = torch.cat([values, -values])
        out, _ = attend(backend, inputs)
        stored = inputs.v_cache[page, row][None]
        assert_equal(out, torch.where(stored == 0, 0.0, stored.float()).to(dtype))


@BACKENDS
@pytest.mark.parametrize("cache", ["f32", "e4m3", "int8_token"])
def test_pages_that_lie_gigabytes_apart(cache: str, backend: Backend) -> None:
    case = AttentionCase("verify", cache=cache, heads=(1, 2), head_dim=8, page=16)
    inputs, expected = with_answer(case.on(backend))
    spread = [far_apart(t.flatten(1)).unflatten(1, t.shape[1:]) for t in (inputs.k_cache, inputs.v_cache)]
    far = inputs.replace(k_cache=spread[0], v_cache=spread[1])
    if inputs.k_scale is not None:
        far = far.replace(k_scale=far_apart(inputs.k_scale.flatten(1)).unflatten(1, inputs.k_scale.shape[1:]))
    check_attention(backend, far, expected, case)


@BACKENDS
def test_nothing_to_do(backend: Backend) -> None:
    """No tokens, no requests, no pages, no blocks."""
    inputs = AttentionCase("mixed", heads=(1, 2), head_dim=8, out_dtype=torch.float32).on(backend).inputs()
    none = inputs.request(2).replace(q=inputs.q[:0])
    out, lse = attend(backend, none)
    assert (out.shape, lse.shape) == ((0, 2, 8), (2, 0))
    empty = none.replace(
        block_table=inputs.block_table[:0], seq_lens=inputs.seq_lens[:0], cu_seqlens_q=torch.zeros(1).int()
    )
    assert attend(backend, empty)[0].shape == (0, 2, 8)
    keyless = inputs.request(1).replace(
        seq_lens=torch.zeros(1).int(),
        block_table=inputs.block_table[:1, :0],
        k_cache=inputs.k_cache[:0],
        v_cache=inputs.v_cache[:0],
    )
    out, lse = attend(backend, keyless)
    assert_equal(out, torch.zeros(6, 2, 8))
    assert_equal(lse, torch.full((2, 6), -torch.inf))


@BACKENDS
def test_lse_is_returned_on_request_and_changes_nothing(backend: Backend) -> None:
    inputs = AttentionCase("mixed", sinks=True).on(backend).inputs()
    want, _ = attend(backend, inputs)
    out, lse = attend(backend, inputs, return_lse=False)
    assert_equal(out, want)
    assert (lse.shape, lse.dtype) == ((inputs.q.shape[1], 0), torch.float32)
    # wgmma adds in another order than mma, so no kernel of sm90a has the mode.
    invariant = not backend.isa.startswith("sm90a")
    out, _ = attend(backend, inputs.replace(max_seqlen_q=2**40), batch_invariant=invariant)
    assert_equal(out, want)


def test_the_function_has_the_meaning_of_the_op() -> None:
    case = AttentionCase("mixed", window=(3, 1), causal=False, softcap=2.5, alibi="heads", sinks=True)
    for row in (case, dataclasses.replace(case, cache="int8_token", tree="bits", out_dtype=torch.half)):
        inputs = row.inputs()
        given = inputs.arguments()
        window = given.pop("window_left"), given.pop("window_right")
        want = torch.ops.lamina.paged_attention(**inputs.arguments(), return_lse=True)
        got = lamina.paged_attention(**given, window=window, return_lse=True)
        assert isinstance(got, tuple)
        for one, other in zip(got, want, strict=True):
            assert_equal(one, other)
        alone = lamina.paged_attention(**given, window=window)
        assert_equal(alone, want[0])
        unlimited = inputs.replace(window_left=-1, window_right=-1).arguments()
        assert_equal(lamina.paged_attention(**given), torch.ops.lamina.paged_attention(**unlimited)[0])
