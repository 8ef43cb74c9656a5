"""flash_attn_varlen_func and flash_attn_with_kvcache, against torch's SDPA in float64 and each other."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import lamina
from lamina.integrations.flash_attn import flash_attn_varlen_func, flash_attn_with_kvcache
from lamina.integrations.torch_varlen import varlen_attn
from tests.support.attention_sequences import (
    CLOSE,
    DIM,
    HEADS,
    KV_HEADS,
    LENGTHS,
    Batch,
    expected,
    offsets,
    randn,
    same_bits,
)


@pytest.fixture(scope="module")
def batch() -> Batch:
    return Batch()


def call_varlen(batch: Batch, **options: Any) -> Any:
    return flash_attn_varlen_func(
        batch.q, batch.k, batch.v, batch.cu_q, batch.cu_k, batch.max_q, batch.max_k, **options
    )


def call_paged(batch: Batch, **options: Any) -> Any:
    return flash_attn_varlen_func(
        batch.q, batch.k_cache, batch.v_cache, batch.cu_q, batch.cu_k, batch.max_q, batch.max_k,
        block_table=batch.table, **options,
    )  # fmt: skip


OPTIONS = {
    "plain": {},
    "causal": {"causal": True},
    "window": {"window": (3, 1)},
    "left window, causal": {"window": (2, -1), "causal": True},
    "right window": {"window": (-1, 2)},
    "slopes of heads": {"slopes": randn(HEADS, seed=7).abs()},
    "slopes of requests, causal": {"slopes": randn(len(LENGTHS), HEADS, seed=8).abs(), "causal": True},
    "scale": {"scale": 0.3},
}
NAMES = {"window": "window_size", "slopes": "alibi_slopes", "scale": "softmax_scale"}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_varlen_is_sdpa(batch: Batch, options: dict[str, Any]) -> None:
    named = {NAMES.get(name, name): value for name, value in options.items()}
    out, lse = call_varlen(batch, **named, return_softmax_lse=True)
    exact_out, exact_lse = batch.expected(**options)
    torch.testing.assert_close(out.double(), exact_out, **CLOSE)
    torch.testing.assert_close(lse.double(), exact_lse, **CLOSE)
    assert lse.isposinf().any() and not out.isnan().any()
    paged_out, paged_lse = call_paged(batch, **named, return_softmax_lse=True)
    assert same_bits(out, paged_out) and same_bits(lse, paged_lse)


def test_varlen_reads_any_stride_and_lists(batch: Batch) -> None:
    wide = [torch.stack([x, x], 3).unbind(3)[1] for x in (batch.q, batch.k, batch.v)]
    out = flash_attn_varlen_func(*wide, batch.cu_q, batch.cu_k, batch.max_q, batch.max_k, window_size=[3, 1])
    assert same_bits(out, call_varlen(batch, window_size=(3, 1)))
    assert same_bits(call_varlen(batch, window_size=None), call_varlen(batch))
    assert same_bits(call_varlen(batch, window_size=(-5, -1)), call_varlen(batch)), (
        "any negative side is no limit"
    )


def test_varlen_takes_used_lengths(batch: Batch) -> None:
    shorter = (batch.seq_lens - 1).clamp(min=0)
    out = call_varlen(batch, seqused_k=shorter, causal=True)
    direct = lamina.paged_attention(
        batch.q, batch.k_cache, batch.v_cache, batch.table, shorter, batch.cu_q, max_seqlen_q=batch.max_q
    )
    assert same_bits(out, direct)
    none = flash_attn_varlen_func(
        batch.q, batch.k_cache, batch.v_cache, batch.cu_q, None, batch.max_q, batch.max_k,
        block_table=batch.table, seqused_k=shorter, causal=True,
    )  # fmt: skip
    assert same_bits(out, none)
    with pytest.raises(ValueError, match="cu_seqlens_k"):
        flash_attn_varlen_func(
            batch.q, batch.k, batch.v, batch.cu_q, None, batch.max_q, batch.max_k, seqused_k=shorter
        )


def test_options_of_no_sdpa_reach_the_op(batch: Batch) -> None:
    sinks = randn(HEADS, seed=9).bfloat16()
    out, lse = call_varlen(batch, softcap=1.5, s_aux=sinks, return_softmax_lse=True)
    direct, direct_lse = lamina.paged_attention(
        batch.q, batch.k_cache, batch.v_cache, batch.table, batch.seq_lens, batch.cu_q, causal=False,
        max_seqlen_q=batch.max_q, softcap=1.5, sinks=sinks.float(), return_lse=True,
    )  # fmt: skip
    assert same_bits(out, direct)
    assert same_bits(lse, direct_lse.masked_fill(direct_lse == -math.inf, math.inf))
    assert not torch.equal(out, call_varlen(batch, softcap=1.5))
    assert not torch.equal(out, call_varlen(batch, s_aux=sinks))


def test_choices_of_kernels_are_ignored(batch: Batch) -> None:
    choices = {"num_splits": 3, "pack_gqa": True, "sm_margin": 8, "scheduler_metadata": torch.zeros(1)}
    assert same_bits(call_varlen(batch), call_varlen(batch, deterministic=True, **choices))
    q, k_cache, v_cache = randn(1, 2, HEADS, DIM), randn(1, 8, KV_HEADS, DIM), randn(1, 8, KV_HEADS, DIM)
    assert same_bits(
        flash_attn_with_kvcache(q, k_cache, v_cache), flash_attn_with_kvcache(q, k_cache, v_cache, **choices)
    )


def rotated(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, *, interleaved: bool) -> Tensor:
    """x [tokens, heads, dim] in float64, rotated by the rows of positions."""
    x = x.double().clone()
    half = cos.shape[1]
    c, s = (table[positions].double().unsqueeze(1) for table in (cos, sin))
    first = slice(0, 2 * half, 2) if interleaved else slice(0, half)
    second = slice(1, 2 * half, 2) if interleaved else slice(half, 2 * half)
    a, b = x[..., first].clone(), x[..., second].clone()
    x[..., first], x[..., second] = a * c - b * s, b * c + a * s
    return x


class Cached:
    """Sequences with 5, 0 and 9 keys in entries 2, 0, 1 of a cache of 4 x 16, and 3 new keys for each."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.before, self.entries, self.new = [5, 0, 9], [2, 0, 1], 3
        self.lengths = torch.tensor(self.before, dtype=torch.int32)
        self.index = torch.tensor(self.entries, dtype=torch.int32)
        self.k_cache, self.v_cache = randn(2, 4, 16, KV_HEADS, DIM).to(dtype).unbind(0)
        self.k, self.v = randn(2, 3, self.new, KV_HEADS, DIM, seed=4).to(dtype).unbind(0)
        self.cos, self.sin = randn(2, 16, 8, seed=5).to(dtype).unbind(0)

    def paged(self) -> tuple[Tensor, Tensor, Tensor]:
        """The same in pages of 4 rows."""
        table = (self.index.unsqueeze(1) * 4 + torch.arange(4)).to(torch.int32)
        k_cache, v_cache = (x.clone().view(16, 4, KV_HEADS, DIM) for x in (self.k_cache, self.v_cache))
        return k_cache, v_cache, table


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"window_size": (4, 0)}, {"window_size": (2, 2)}])
@pytest.mark.parametrize("interleaved", [None, True, False], ids=["no rope", "interleaved", "halves"])
@pytest.mark.parametrize("seqlen", [1, 3])
def test_cache_is_appended_rotated_and_read(
    options: dict[str, Any], interleaved: bool | None, seqlen: int
) -> None:
    c = Cached()
    q = randn(3, seqlen, HEADS, DIM, seed=6)
    rope: dict[str, Any] = {}
    if interleaved is not None:
        rope = {"rotary_cos": c.cos, "rotary_sin": c.sin, "rotary_interleaved": interleaved}
    k_cache, v_cache, q_before = c.k_cache.clone(), c.v_cache.clone(), q.clone()
    out, lse = flash_attn_with_kvcache(
        q, k_cache, v_cache, c.k, c.v, cache_seqlens=c.lengths, cache_batch_idx=c.index,
        return_softmax_lse=True, **rope, **options,
    )  # fmt: skip
    assert torch.equal(q, q_before)
    assert out.shape == q.shape and lse.shape == (3, HEADS, seqlen) and lse.is_contiguous()
    exact_k, exact_v = c.k_cache.double(), c.v_cache.double()
    is_local = bool(options)
    for b, (entry, length) in enumerate(zip(c.entries, c.before, strict=True)):
        own_q, own_k = q[b].double(), c.k[b].double()
        if interleaved is not None:
            positions = length + torch.arange(max(c.new, seqlen))
            own_k = rotated(c.k[b], c.cos, c.sin, positions[: c.new], interleaved=interleaved)
            at = positions[:seqlen] if is_local else torch.full((seqlen,), length)
            own_q = rotated(q[b], c.cos, c.sin, at, interleaved=interleaved)
        end = length + c.new
        exact_k[entry, length:end], exact_v[entry, length:end] = own_k, c.v[b].double()
        exact_out, exact_lse = expected(
            own_q, exact_k[entry, :end], exact_v[entry, :end], causal=options.get("causal", False),
            window=options.get("window_size", (-1, -1)),
        )  # fmt: skip
        torch.testing.assert_close(out[b].double(), exact_out, **CLOSE)
        torch.testing.assert_close(lse[b].double(), exact_lse, **CLOSE)
    torch.testing.assert_close(k_cache.double(), exact_k, rtol=0, atol=2e-6)
    assert torch.equal(v_cache.double(), exact_v)
    paged_k, paged_v, table = c.paged()
    paged_out, paged_lse = flash_attn_with_kvcache(
        q, paged_k, paged_v, c.k, c.v, cache_seqlens=c.lengths, page_table=table, return_softmax_lse=True,
        **rope, **options,
    )  # fmt: skip
    assert same_bits(out, paged_out) and same_bits(lse, paged_lse)
    assert same_bits(k_cache.view_as(paged_k), paged_k) and same_bits(v_cache.view_as(paged_v), paged_v)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_kvcache_equals_varlen_in_every_dtype(dtype: torch.dtype) -> None:
    c = Cached(dtype)
    q = randn(3, 2, HEADS, DIM, seed=6).to(dtype)
    k = torch.cat([c.k_cache[entry, :length] for entry, length in zip(c.entries, c.before, strict=True)])
    v = torch.cat([c.v_cache[entry, :length] for entry, length in zip(c.entries, c.before, strict=True)])
    ragged, ragged_lse = flash_attn_varlen_func(
        q.flatten(0, 1),
        k,
        v,
        offsets([2, 2, 2]),
        offsets(c.before),
        2,
        9,
        causal=True,
        return_softmax_lse=True,
    )
    out, lse = flash_attn_with_kvcache(
        q, c.k_cache, c.v_cache, cache_seqlens=c.lengths, cache_batch_idx=c.index, causal=True,
        return_softmax_lse=True,
    )  # fmt: skip
    assert same_bits(out.flatten(0, 1), ragged)
    assert same_bits(lse.transpose(0, 1).flatten(1), ragged_lse)


def test_lengths_may_be_a_number_or_the_whole_cache() -> None:
    c = Cached()
    q = randn(4, 1, HEADS, DIM, seed=6)
    lengths = torch.full((4,), 16, dtype=torch.int32)
    whole = flash_attn_with_kvcache(q, c.k_cache, c.v_cache)
    for given in (16, lengths, lengths.long()):
        assert same_bits(whole, flash_attn_with_kvcache(q, c.k_cache, c.v_cache, cache_seqlens=given))
    assert not torch.equal(whole, flash_attn_with_kvcache(q, c.k_cache, c.v_cache, cache_seqlens=15))


def test_no_room_writes_nothing() -> None:
    c = Cached()
    k_cache = c.k_cache.clone()
    with pytest.raises(ValueError, match=r"cache_seqlens = \[14, 14, 14\] with 3 new tokens.*room for 16"):
        flash_attn_with_kvcache(
            randn(3, 1, HEADS, DIM), k_cache, c.v_cache, c.k, c.v, cache_seqlens=14, cache_batch_idx=c.index
        )
    assert torch.equal(k_cache, c.k_cache)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8], ids=str)
def test_one_scale_may_be_expanded(dtype: torch.dtype) -> None:
    c = Cached()
    k_cache, v_cache = ((4 * x).to(dtype) for x in (c.k_cache, c.v_cache))
    q = randn(3, 1, HEADS, DIM, seed=6)
    k_scale, v_scale = torch.tensor(0.5), torch.tensor(2.0)
    direct = lamina.paged_attention(
        q[:, 0], k_cache, v_cache, c.index.unsqueeze(1), c.lengths, offsets([1, 1, 1]), max_seqlen_q=1,
        causal=False, k_scale=k_scale, v_scale=v_scale,
    )  # fmt: skip
    options: dict[str, Any] = {"cache_seqlens": c.lengths, "cache_batch_idx": c.index}
    for shape in ((), (1,), (3, KV_HEADS)):
        out = flash_attn_with_kvcache(
            q, k_cache, v_cache, k_descale=k_scale.expand(shape), v_descale=v_scale.expand(shape), **options
        )
        assert same_bits(out[:, 0], direct)
    with pytest.raises(ValueError, match=r"k_descale must have 1 element.*\[3, 2\]"):
        flash_attn_with_kvcache(q, k_cache, v_cache, k_descale=torch.ones(3, 2), **options)


REFUSED: dict[str, tuple[Callable[..., Any], Any]] = {
    "dropout_p": (flash_attn_varlen_func, 0.1),
    "return_attn_probs": (flash_attn_varlen_func, True),
    "seqused_q": (flash_attn_varlen_func, torch.ones(1)),
    "cache_leftpad": (flash_attn_with_kvcache, torch.ones(1)),
    "cu_seqlens_q": (flash_attn_with_kvcache, torch.ones(1)),
    "cu_seqlens_k_new": (flash_attn_with_kvcache, torch.ones(1)),
    "rotary_seqlens": (flash_attn_with_kvcache, torch.ones(1)),
}
BOTH = {"qv": torch.ones(1), "q_descale": torch.ones(1), "attention_chunk": 4}


def call(function: Callable[..., Any], **options: Any) -> Any:
    if function is flash_attn_with_kvcache:
        return function(randn(1, 2, 2, 8), randn(1, 4, 1, 8), randn(1, 4, 1, 8), **options)
    starts = offsets([4])
    return function(randn(4, 2, 8), randn(4, 1, 8), randn(4, 1, 8), starts, starts, 4, 4, **options)


@pytest.mark.parametrize(
    ("function", "name", "value"),
    [
        *[(function, name, value) for name, (function, value) in REFUSED.items()],
        *[(flash_attn_varlen_func, name, value) for name, value in BOTH.items()],
        *[(flash_attn_with_kvcache, name, value) for name, value in BOTH.items()],
    ],
    ids=lambda x: getattr(x, "__name__", x) if callable(x) or isinstance(x, str) else "",
)  # fmt: skip
def test_what_is_not_supported_is_named(function: Callable[..., Any], name: str, value: object) -> None:
    with pytest.raises(NotImplementedError, match=f"{function.__name__} does not support {name}$"):
        call(function, **{name: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": randn(1, 1, 1, 8), "cache_seqlens": 2}, "k with v"),
        ({"rotary_cos": randn(4, 4)}, "rotary_cos with rotary_sin"),
        ({"rotary_cos": randn(4, 4), "rotary_sin": randn(4, 4)}, "with k and v only"),
        ({"k": randn(1, 1, 1, 8), "v": randn(1, 1, 1, 8)}, "needs cache_seqlens"),
        ({"block_table": torch.zeros(1, 1), "cache_batch_idx": torch.zeros(1)}, "cache_batch_idx without"),
    ],
)  # fmt: skip
def test_arguments_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(flash_attn_with_kvcache, **options)


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_gradients_are_refused(name: str) -> None:
    starts = offsets([4])
    x = {"q": randn(4, 2, 8), "k": randn(4, 2, 8), "v": randn(4, 2, 8)}
    x[name].requires_grad_()
    functions = [
        lambda: flash_attn_varlen_func(*x.values(), starts, starts, 4, 4),
        lambda: varlen_attn(*x.values(), starts, starts, 4, 4),
        lambda: flash_attn_with_kvcache(*(each.unsqueeze(0) for each in x.values())),
    ]
    for function in functions:
        with pytest.raises(RuntimeError, match=r"no backward pass, and .* requires grad"):
            function()
        with torch.no_grad():
            assert not function().requires_grad
