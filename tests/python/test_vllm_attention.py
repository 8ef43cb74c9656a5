"""The attention backend of lamina.integrations.vllm against SDPA in float64, with a pretended vLLM."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pkgutil import resolve_name
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.attention_sequences import CLOSE, expected, offsets, randn
from tests.support.pretend_vllm import pretend_vllm

HEADS, KV_HEADS, DIM, BLOCK = 6, 2, 24, 4
# New tokens and all keys: a prompt, decode, a chunk of a prompt, a request of padding.
LENGTHS = [(5, 5), (1, 9), (3, 17), (0, 0)]
TOKENS, PADDED = 9, 11
BLOCKS = 12
# int8: queries and weights are rounded to 16 bits on some CPUs; scores stay below 8 in magnitude.
OF_INT8 = {"rtol": 0.0, "atol": 2e-3}
BYTES = {"auto": torch.float32, "fp8": torch.uint8, "int8_per_token_head": torch.int8}
BYTES |= {"fp8_per_token_head": torch.uint8, "bfloat16": torch.bfloat16}


@pytest.fixture
def attention() -> Iterator[Any]:
    """The module, freshly imported."""
    with pretend_vllm():
        yield resolve_name("lamina.integrations.vllm.attention")


def empty_cache(kv_cache_dtype: str, is_token_major: bool) -> Tensor:
    """[blocks, kv_heads, block, content] of NaN, or of a byte that no scale may come from."""
    dtype = BYTES[kv_cache_dtype]
    content = 2 * (DIM + (4 if kv_cache_dtype.endswith("per_token_head") else 0))
    order = (BLOCKS, BLOCK, KV_HEADS, content) if is_token_major else (BLOCKS, KV_HEADS, BLOCK, content)
    cache = torch.full(order, float("nan") if dtype.is_floating_point else 127, dtype=dtype)
    return cache.transpose(1, 2) if is_token_major else cache


@dataclass
class Step:
    """One step of an engine: all keys, the new queries, and the tables that say where keys are."""

    q: Tensor
    k: list[Tensor]
    v: list[Tensor]
    metadata: Any
    layer: Any

    @property
    def slots(self) -> Tensor:
        """The slot of every key of every request."""
        table = self.metadata.block_table
        lengths = [len(k) for k in self.k]
        return torch.cat(
            [
                table[b, torch.arange(n) // BLOCK] * BLOCK + torch.arange(n) % BLOCK
                for b, n in enumerate(lengths)
            ]
        ).long()


def make_step(attention: Any, causal: bool = True) -> Step:
    q_lens, k_lens = (list(lengths) for lengths in zip(*LENGTHS, strict=True))
    blocks = torch.randperm(BLOCKS, generator=torch.Generator().manual_seed(5)).tolist()
    table = torch.full((len(LENGTHS), 6), -1, dtype=torch.int32)
    for b, length in enumerate(k_lens):
        for at in range(-(-length // BLOCK)):
            table[b, at] = blocks.pop()
    common = SimpleNamespace(
        num_actual_tokens=TOKENS, max_query_len=max(q_lens), query_start_loc=offsets(q_lens),
        seq_lens=torch.tensor(k_lens, dtype=torch.int32), block_table_tensor=table, slot_mapping=None,
        causal=causal,
    )  # fmt: skip
    builder = attention.MetadataBuilder(None, [], None, torch.device("cpu"))
    return Step(
        randn(PADDED, HEADS, DIM),
        [randn(n, KV_HEADS, DIM, seed=b) for b, n in enumerate(k_lens)],
        [randn(n, KV_HEADS, DIM, seed=10 + b) for b, n in enumerate(k_lens)],
        builder.build(0, common),
        SimpleNamespace(_k_scale=torch.tensor(0.5), _v_scale=torch.tensor(0.25)),
    )


def run(step: Step, impl: Any, cache: Tensor) -> Tensor:
    """Stores all keys and attends; rows of padding in key, value, query and output stay out of it."""
    padding = randn(3, KV_HEADS, DIM, seed=99)
    key, value = torch.cat([*step.k, padding]), torch.cat([*step.v, padding])
    impl.do_kv_cache_update(step.layer, key, value, cache, step.slots)
    output = torch.full((PADDED, HEADS, DIM), 7.0)
    assert impl.forward(step.layer, step.q, None, None, cache, step.metadata, output) is output
    assert bool((output[TOKENS:] == 7).all())
    return output[:TOKENS]


def exact(step: Step, k: list[Tensor], v: list[Tensor], **options: Any) -> Tensor:
    starts = pairwise(step.metadata.query_start_loc.tolist())
    parts = [expected(step.q[a:b], k[i], v[i], **options)[0] for i, (a, b) in enumerate(starts) if a < b]
    return torch.cat(parts)


def stored(step: Step, cache: Tensor, kv_cache_dtype: str) -> tuple[list[Tensor], list[Tensor]]:
    """The keys and values that the bytes of the cache mean, read by the documented content of a slot."""
    rows = cache.transpose(1, 2).reshape(-1, KV_HEADS, cache.shape[3])[step.slots].contiguous()
    width = rows.shape[2] // 2
    halves = []
    for half, scale in ((rows[..., :width], 0.5), (rows[..., width:], 0.25)):
        half = half.contiguous()
        codes = half[..., :DIM]
        if kv_cache_dtype.startswith("fp8"):
            codes = codes.contiguous().view(torch.float8_e4m3fn)
        values = codes.double()
        if kv_cache_dtype.endswith("per_token_head"):
            values = values * half[..., DIM:].contiguous().view(torch.float32).double()
        elif kv_cache_dtype == "fp8":
            values = values * scale
        halves.append(list(values.split([len(k) for k in step.k])))
    return halves[0], halves[1]


@pytest.mark.parametrize("is_token_major", [False, True], ids=["head major", "token major"])
@pytest.mark.parametrize("kv_cache_dtype", list(BYTES))
def test_attention_over_the_cache_of_vllm(attention: Any, kv_cache_dtype: str, is_token_major: bool) -> None:
    step, cache = make_step(attention), empty_cache(kv_cache_dtype, is_token_major)
    impl = attention.Attention(HEADS, DIM, 0.2, KV_HEADS, kv_cache_dtype=kv_cache_dtype)
    got = run(step, impl, cache)
    k, v = stored(step, cache, kv_cache_dtype)
    for read, written in ((k, step.k), (v, step.v)):
        error = (torch.cat(read) - torch.cat(written)).abs()
        largest = torch.cat(written).abs().amax(-1, keepdim=True)
        steps = {"auto": 0.0, "bfloat16": 2.0**-8, "int8_per_token_head": 0.501 / 127}
        assert bool((error <= steps.get(kv_cache_dtype, 0.0626) * largest).all())
    close = OF_INT8 if kv_cache_dtype.startswith("int8") else CLOSE
    torch.testing.assert_close(got.double(), exact(step, k, v, causal=True, scale=0.2), **close)


SLOPES = [2.0**-i for i in range(1, HEADS + 1)]


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({"sliding_window": 3}, {"causal": True, "window": (2, -1)}),
        ({"alibi_slopes": SLOPES}, {"causal": True, "slopes": torch.tensor(SLOPES)}),
    ],
    ids=["window", "alibi"],
)
def test_attention_options(attention: Any, given: dict[str, Any], options: dict[str, Any]) -> None:
    step, cache = make_step(attention), empty_cache("auto", False)
    got = run(step, attention.Attention(HEADS, DIM, 0.3, KV_HEADS, **given), cache)
    torch.testing.assert_close(got.double(), exact(step, step.k, step.v, scale=0.3, **options), **CLOSE)


def test_sinks_take_a_part_of_the_weights(attention: Any) -> None:
    """With keys of zeros a request of c keys has equal weights, 1 / (c + exp(sink))."""
    step, cache = make_step(attention), empty_cache("auto", False)
    step.k = [torch.zeros_like(k) for k in step.k]
    sinks = torch.linspace(-1, 1, HEADS).bfloat16()
    got = run(step, attention.Attention(HEADS, DIM, 1.0, KV_HEADS, sinks=sinks), cache)
    last = got[5]  # the only query of the second request, of 9 keys
    values = step.v[1].double().sum(0).repeat_interleave(HEADS // KV_HEADS, 0)
    torch.testing.assert_close(last.double(), values / (9 + sinks.double().exp())[:, None], **CLOSE)


def test_softcap(attention: Any) -> None:
    """One key decides nothing, two do: their weights are a sigmoid of the capped difference."""
    step, cache = make_step(attention), empty_cache("auto", False)
    got = run(step, attention.Attention(HEADS, DIM, 1.0, KV_HEADS, logits_soft_cap=2.0), cache)
    q, k, v = (t.double() for t in (step.q[1], step.k[0][:2], step.v[0][:2]))  # sees two keys
    scores = torch.einsum("hd,khd->hk", q, k.repeat_interleave(HEADS // KV_HEADS, 1))
    weights = (2 * torch.tanh(scores / 2)).softmax(1)
    want = torch.einsum("hk,khd->hd", weights, v.repeat_interleave(HEADS // KV_HEADS, 1))
    torch.testing.assert_close(got[1].double(), want, **CLOSE)


def test_cross_attention_sees_all_keys(attention: Any) -> None:
    step, cache = make_step(attention, causal=False), empty_cache("auto", False)
    impl = attention.Attention(HEADS, DIM, 0.2, KV_HEADS, attn_type="encoder_decoder")
    got = run(step, impl, cache)
    torch.testing.assert_close(got.double(), exact(step, step.k, step.v, scale=0.2), **CLOSE)


@pytest.mark.parametrize("window", [None, 2])
def test_encoders_have_no_cache(attention: Any, window: int | None) -> None:
    step = make_step(attention, causal=False)
    step.k, step.v = ([randn(PADDED, KV_HEADS, DIM, seed=seed)] for seed in (1, 2))
    impl = attention.Attention(HEADS, DIM, 0.2, KV_HEADS, attn_type="encoder_only", sliding_window=window)
    untouched = torch.tensor([])
    impl.do_kv_cache_update(step.layer, step.k[0], step.v[0], untouched, torch.arange(TOKENS))
    output = torch.zeros(PADDED, HEADS, DIM)
    impl.forward(step.layer, step.q, step.k[0], step.v[0], untouched, step.metadata, output)
    cuts = step.metadata.query_start_loc.tolist()
    k, v = ([t[a:b] for a, b in pairwise(cuts)] for (t,) in (step.k, step.v))
    side = -1 if window is None else window - 1
    want = exact(step, k, v, scale=0.2, window=(side, side))
    torch.testing.assert_close(output[:TOKENS].double(), want, **CLOSE)


def test_a_run_without_a_batch_gives_zeros(attention: Any) -> None:
    impl = attention.Attention(HEADS, DIM, 0.2, KV_HEADS)
    output = torch.full((2, HEADS, DIM), float("nan"))
    out = impl.forward(None, output, None, None, torch.tensor([]), None, output)
    assert out is output and not bool(out.any())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"head_size": 20}, "head_size = 20; allowed: multiples of 8 up to 256"),
        ({"head_size": 264}, "head_size = 264"),
        ({"kv_cache_dtype": "fp8_e5m2"}, "kv_cache_dtype = 'fp8_e5m2'; allowed: auto, .*int8_per_token_head"),
    ],
)
def test_a_layer_that_lamina_cannot_compute_names_the_way_out(
    attention: Any, changed: dict[str, Any], message: str
) -> None:
    given = {"num_heads": 4, "head_size": 64, "scale": 1.0, "num_kv_heads": 2} | changed
    with pytest.raises(ValueError, match=f"LAMINA_VLLM_ATTENTION=stock.*{message}"):
        attention.Attention(**given)


def test_what_is_not_supported_is_refused(attention: Any) -> None:
    impl, scale = attention.Attention(HEADS, DIM, 0.2, KV_HEADS), torch.ones(1)
    for argument in ("output_scale", "output_block_scale"):
        with pytest.raises(NotImplementedError, match=f"does not support {argument}"):
            impl.forward(None, None, None, None, None, None, None, **{argument: scale})
    common = SimpleNamespace(causal=torch.tensor([True]))
    with pytest.raises(NotImplementedError, match="does not support causal that differs between requests"):
        attention.MetadataBuilder(None, [], None, None).build(0, common)


@dataclass(frozen=True)
class Spec:
    """The fields that customize_spec reads of vLLM's AttentionSpec."""

    kv_quant_mode: Any
    dtype: torch.dtype = torch.int8
    head_size: int = 64
    head_size_v: int = 32
    state_content_bytes: int | None = None


def test_scales_get_room_in_the_cache(attention: Any) -> None:
    own, none = SimpleNamespace(is_per_token_head=True), SimpleNamespace(is_per_token_head=False)
    customize = attention.CpuAttentionBackend.customize_spec
    assert customize(Spec(own)).state_content_bytes == 64 + 4 + 32 + 4
    assert customize(Spec(none)) == Spec(none)
    assert customize(Spec(own, state_content_bytes=5)).state_content_bytes == 5


def test_backends_say_what_they_support(attention: Any) -> None:
    cpu, custom = attention.CpuAttentionBackend, attention.CustomAttentionBackend
    assert torch.float32 in cpu.supported_dtypes and torch.float32 not in custom.supported_dtypes
    for backend in (cpu, custom):
        assert [size for size in (8, 20, 64, 256, 264) if backend.supports_head_size(size)] == [8, 64, 256]
        assert backend.get_impl_cls() is attention.Attention
        assert backend.get_builder_cls() is attention.MetadataBuilder
    assert not custom.supports_compute_capability(SimpleNamespace(to_int=lambda: 75))
