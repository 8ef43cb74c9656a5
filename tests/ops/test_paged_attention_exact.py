"""The bits of paged_attention: rows that are exact, what may not change a bit, and how NaN and Inf spread."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from tests.support.attention_cases import CACHES, AttentionCase, AttentionInputs
from tests.support.attention_check import assert_same, attention_backends
from tests.support.attention_check import attend_invariantly as attend
from tests.support.attention_check import check_invariantly as check_attention
from tests.support.backends import Backend, CudaKernel
from tests.support.cases import FLOAT_DTYPES, dtype_name
from tests.support.compare import assert_equal

BACKENDS = pytest.mark.parametrize("backend", attention_backends(16, 64))
EVERY_CACHE = pytest.mark.parametrize("cache", CACHES)
# Cases for bits: around the end of a chunk of 512 columns, with all that looks at positions.
AROUND_A_CHUNK = AttentionCase(
    ((8, 515), (3, 20), (5, 1027)), heads=(2, 2), head_dim=24, window=(509, 3), alibi="requests", sinks=True
)
# The same around the ends of a block of 64 columns and of a split of 1024.
AROUND_A_SPLIT = dataclasses.replace(AROUND_A_CHUNK, batch=((3, 66), (2, 20), (4, 1027)), window=(700, 3))


def around(backend: Backend, **changed: Any) -> AttentionCase:
    case = AROUND_A_SPLIT if isinstance(backend, CudaKernel) else AROUND_A_CHUNK
    return dataclasses.replace(case, **changed).on(backend)


def value_of(backend: Backend, inputs: AttentionInputs, request: int, slot: int) -> torch.Tensor:
    """The value [heads, v_head_dim] of a slot in f32, rounded once. A CUDA kernel multiplies a weight by the
    scale of a token, and rounds the product to bf16."""
    page, row = inputs.slot(request, slot)
    value = inputs.v_cache[page, row].float()
    if inputs.v_scale is not None:
        scale = inputs.v_scale if inputs.v_scale.numel() == 1 else inputs.v_scale[page, row][:, None]
        if inputs.v_scale.numel() > 1 and isinstance(backend, CudaKernel):
            scale = scale.bfloat16().float()
        value = value * scale
    return value.repeat_interleave(inputs.q.shape[1] // inputs.k_cache.shape[2], 0)


@BACKENDS
@EVERY_CACHE
def test_one_key_gives_its_value(cache: str, backend: Backend) -> None:
    """A batch of length 1, and a window of one key in a long context."""
    case = AttentionCase(((1, 1), (3, 700)), cache=cache, head_dim=16, window=(0, 0), out_dtype=torch.float32)
    inputs = case.on(backend).inputs()
    out, _ = attend(backend, inputs)
    want = [
        value_of(backend, inputs, 0, 0),
        *(value_of(backend, inputs, 1, slot) for slot in (697, 698, 699)),
    ]
    assert_equal(out, torch.stack(want))


@BACKENDS
@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("cache", ["f32", "e4m3", "int8_token"])
def test_a_token_that_sees_no_key(cache: str, sinks: bool, backend: Backend) -> None:
    """Three tokens come before slot 0. With a tree two come before it, and the first node sees no node."""
    for tree, lens in (("", ((5, 2),)), ("bits", ((5, 3),))):
        inputs = AttentionCase(lens, cache=cache, sinks=sinks, tree=tree).on(backend).inputs()
        out, lse = check_attention(backend, inputs, inputs.expected(), tree)
        assert_equal(out[:3], torch.zeros(3, *out.shape[1:], dtype=out.dtype))
        assert_equal(lse[:, :3], torch.full((len(lse), 3), -torch.inf))
        assert out[3:].any()


def repaged(inputs: AttentionInputs, page_size: int) -> AttentionInputs:
    """The same requests in pages of another size."""
    slots = [[inputs.slot(b, s) for s in range(int(n))] for b, n in enumerate(inputs.seq_lens)]
    width = max(-(-len(rows) // page_size) for rows in slots)
    pages = torch.randperm(width * len(slots)).reshape(len(slots), width).int()

    def moved(t: torch.Tensor | None) -> torch.Tensor | None:
        if t is None or t.numel() == 1:
            return t
        new = torch.zeros(pages.numel(), page_size, *t.shape[2:], dtype=t.dtype)
        for b, rows in enumerate(slots):
            for s, (page, row) in enumerate(rows):
                new[int(pages[b, s // page_size]), s % page_size] = t[page, row]
        return new

    return inputs.replace(
        block_table=pages,
        k_cache=moved(inputs.k_cache),
        v_cache=moved(inputs.v_cache),
        k_scale=moved(inputs.k_scale),
        v_scale=moved(inputs.v_scale),
    )


@BACKENDS
@pytest.mark.parametrize("cache", ["f32", "bf16", "e4m3_token", "int8_mixed"])
def test_pages_change_no_bit(cache: str, backend: Backend) -> None:
    inputs = around(backend, cache=cache).inputs()
    want = attend(backend, inputs)
    for page_size in (1, 3, 16, 17, 128, 600):
        assert_same(backend, repaged(inputs, page_size), want, slice(None), f"pages of {page_size}")


@BACKENDS
@EVERY_CACHE
def test_eight_tokens_equal_eight_calls(cache: str, backend: Backend) -> None:
    """This makes speculative decoding equal to plain decoding."""
    dtype = FLOAT_DTYPES[tuple(CACHES).index(cache) % 3]
    case = around(backend, cache=cache, q_dtype=dtype, out_dtype=torch.float32)
    inputs = case.on(backend).inputs()
    want = attend(backend, inputs)
    for b in range(len(inputs.seq_lens)):
        span = inputs.span(b)
        for i in range(span.stop - span.start):
            alone = inputs.request(b, slice(i, i + 1))
            # The last token of a call has no keys to its right.
            assert_same(backend, alone, want, slice(span.start + i, span.start + i + 1), f"{b} {i}")


@BACKENDS
@pytest.mark.parametrize("tree", ["", "random", "bits"])
def test_a_request_is_the_same_in_every_batch(tree: str, backend: Backend) -> None:
    inputs = around(backend, tree=tree, causal=False).inputs()
    want = attend(backend, inputs)
    for b in range(len(inputs.seq_lens)):
        assert_same(backend, inputs.request(b), want, inputs.span(b), f"request {b}")


@BACKENDS
@pytest.mark.usefixtures("restore_threads")
@pytest.mark.parametrize("tree", ["", "random"])
def test_independent_of_the_thread_count(tree: str, backend: Backend) -> None:
    inputs = around(backend, tree=tree).inputs()
    want = attend(backend, inputs)
    for threads in (1, 2, 3, 16):
        torch.set_num_threads(threads)
        assert_same(backend, inputs, want, slice(None), f"{threads} threads")


@BACKENDS
@pytest.mark.parametrize("cache", ["e4m3_tensor", "int8_tensor"])
def test_one_scale_in_every_accepted_shape(cache: str, backend: Backend) -> None:
    inputs = around(backend, cache=cache).inputs()
    assert inputs.k_scale is not None
    one, shape = inputs.k_scale.reshape(()), inputs.k_cache.shape[:3]
    inputs = inputs.replace(k_scale=one, v_scale=one)
    want = attend(backend, inputs)
    for scale in (one.reshape(1), one.expand(shape)):
        assert_same(backend, inputs.replace(k_scale=scale, v_scale=scale), want, slice(None))
    every = torch.full(shape, float(one))
    check_attention(backend, inputs.replace(k_scale=every, v_scale=every), inputs.expected())


@BACKENDS
def test_a_weight_halfway_between_two_bf16(backend: Backend) -> None:
    """Weights of 1 and almost 0.5 + 2^-9: where it is rounded to 0.5, nearly all of the bound is needed."""
    case = AttentionCase(
        ((1, 2),), q_dtype=torch.bfloat16, cache="bf16", heads=(1, 1), head_dim=8, alibi="heads"
    )
    inputs = case.on(backend).inputs()
    values = inputs.v_cache.clone()
    for slot, value in enumerate((1.0, 0.0)):
        values[inputs.slot(0, slot)] = value
    slopes = torch.tensor([-math.log(0.5 + 0.99 * 2.0**-9)])
    given = inputs.replace(
        q=torch.zeros_like(inputs.q), v_cache=values, alibi_slopes=slopes, out_dtype=torch.float32
    )
    check_attention(backend, given, given.expected())


@BACKENDS
def test_a_sink_beyond_all_scores(backend: Backend) -> None:
    """exp(sink) alone overflows, or is nothing."""
    inputs = AttentionCase("long_decode", heads=(1, 6), sinks=True).on(backend).inputs()
    sinks = torch.tensor([-torch.inf, -200.0, torch.nan, 60.0, 88.0, 200.0])
    given = inputs.replace(sinks=sinks)
    out, lse = check_attention(backend, given, given.expected())
    plain = attend(backend, inputs.replace(sinks=None))
    assert_equal(lse, plain[1])
    assert_equal(out[:, :2], plain[0][:, :2])


@BACKENDS
@pytest.mark.parametrize("magnitude", [1e-30, 30.0, 1e4])
def test_scores_from_nothing_to_beyond_exp(magnitude: float, backend: Backend) -> None:
    """Equal weights; scores whose exp overflows; and a score so large that one key has all the weight."""
    case = around(backend, alibi="", window=(-1, -1))
    inputs = case.on(backend).inputs()
    given = inputs.replace(q=inputs.q * magnitude)
    check_attention(backend, given, given.expected(), magnitude)


@BACKENDS
@pytest.mark.parametrize("cache", ["f32", "bf16", "int8_token"])
def test_a_negative_scale_turns_the_order_of_scores(cache: str, backend: Backend) -> None:
    inputs = dataclasses.replace(around(backend, cache=cache, alibi="").inputs(), scale=-20.0)
    check_attention(backend, inputs, inputs.expected())


@BACKENDS
def test_the_largest_score_may_be_anywhere(backend: Backend) -> None:
    """In each of three chunks, first and last of a chunk: the partial sums of others must be rescaled."""
    inputs = AttentionCase(((1, 1300),), heads=(1, 2), head_dim=16).on(backend).inputs()
    for slot in (0, 300, 511, 512, 1023, 1024, 1299):
        page, row = inputs.slot(0, slot)
        keys = inputs.k_cache.clone()
        keys[page, row] = 6 * inputs.q[0, :1]
        given = inputs.replace(k_cache=keys)
        check_attention(backend, given, given.expected(), f"slot {slot}")


@BACKENDS
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=dtype_name)
def test_nan_and_inf_spread_as_in_the_reference(dtype: torch.dtype, backend: Backend) -> None:
    name = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}[dtype]
    case = AttentionCase(((4, 30), (2, 530)), heads=(2, 2), head_dim=8, v_head_dim=40, cache=name, page=16)
    inputs = dataclasses.replace(case, q_dtype=dtype).on(backend).inputs()
    clean = attend(backend, inputs)
    for value in (math.nan, math.inf, -math.inf):
        for place in ("q", "k", "v"):
            q, k, v = inputs.q.clone(), inputs.k_cache.clone(), inputs.v_cache.clone()
            if place == "q":
                q[1, 2, 3] = q[5, 0, 7] = value
            for b, slot in ((0, 0), (0, 28), (1, 511), (1, 512)):
                page, row = inputs.slot(b, slot)
                if place == "v":
                    v[page, row, 1, 37] = value
                if place == "k":
                    k[page, row, 1, 5] = value
            given = inputs.replace(q=q, k_cache=k, v_cache=v)
            out, lse = check_attention(backend, given, given.expected(), f"{value} in {place}")
            if place != "q":
                assert_equal(out[:, :2], clean[0][:, :2])
                assert_equal(lse[:2], clean[1][:2])
            capped = given.replace(softcap=2.0)
            check_attention(backend, capped, capped.expected(), f"{value} in {place}, capped")


@BACKENDS
def test_only_scores_of_minus_inf(backend: Backend) -> None:
    """The sum of weights is 0 although the token sees keys: NaN, unlike the 0 of a token that sees none."""
    inputs = AttentionCase(((1, 3), (1, 2)), heads=(1, 2), head_dim=8).on(backend).inputs()
    q, keys = inputs.q.clone(), inputs.k_cache.clone()
    q[0, :, 0] = 1
    for slot in range(3):
        page, row = inputs.slot(0, slot)
        keys[page, row] = torch.tensor([-torch.inf, *[0] * 7])
    given = inputs.replace(q=q, k_cache=keys)
    out, lse = check_attention(backend, given, given.expected())
    assert out[0].isnan().all() and not out[1].isnan().any()
    assert lse[:, 0].isneginf().all()
    # A sink takes all the weight.
    sunk = given.replace(sinks=torch.tensor([0.5, -torch.inf]))
    out, _ = check_attention(backend, sunk, sunk.expected())
    assert_equal(out[0, 0], torch.zeros_like(out[0, 0]))
    assert out[0, 1].isnan().all()


@BACKENDS
@pytest.mark.parametrize("cache", ["f32", "bf16"])
def test_an_infinite_value_of_next_to_no_weight(cache: str, backend: Backend) -> None:
    """Its weight may round to 0, which gives NaN. Whether it does depends on no other token."""
    case = AttentionCase(((40, 60),), cache=cache, heads=(1, 2), page=16).on(backend)
    inputs = case.inputs()
    inputs = inputs.replace(q=inputs.q * 30)
    page, row = inputs.slot(0, 3)
    inputs.v_cache[page, row, 0, 5] = math.inf
    want = attend(backend, inputs)
    for token in (0, 17, 30, 39):
        alone = inputs.request(0, slice(token, token + 1))
        assert_same(backend, alone, want, slice(token, token + 1), f"token {token}")


@BACKENDS
@pytest.mark.parametrize("cache", ["f32", "f16", "e4m3", "e4m3_token", "int8_token"])
def test_later_tokens_and_other_nodes_may_hold_nan(cache: str, backend: Backend) -> None:
    """The keys of token j are NaN: all tokens that do not see them keep their bits, all that do are NaN."""
    for tree in ("", "random", "wide"):
        case = AttentionCase(((6, 514),), heads=(1, 2), head_dim=16, cache=cache, tree=tree)
        inputs = case.on(backend).inputs()
        want = attend(backend, inputs)
        q_len, seq_len = len(inputs.q), int(inputs.seq_lens[0])
        for j in (1, 3, q_len - 1):
            page, row = inputs.slot(0, seq_len - q_len + j)
            given = [
                None if t is None else t.clone()
                for t in (inputs.k_cache, inputs.v_cache, inputs.k_scale, inputs.v_scale)
            ]
            for t in given[:2] if cache != "int8_token" else given[2:]:
                assert t is not None
                t[page, row] = torch.full_like(t[page, row], torch.nan)
            names = ("k_cache", "v_cache", "k_scale", "v_scale")
            out, _ = attend(backend, inputs.replace(**dict(zip(names, given, strict=True))))
            sees = torch.arange(q_len) >= j
            if tree:
                assert inputs.tree_mask is not None
                assert inputs.tree_len is not None
                node = j - q_len + int(inputs.tree_len[0])
                sees = (inputs.tree_mask[:, node // 32].long() >> node % 32 & 1).bool()
            assert_equal(out[~sees], want[0][~sees], f"{tree} {j}")
            assert out[sees].isnan().all()
            assert sees.any()
