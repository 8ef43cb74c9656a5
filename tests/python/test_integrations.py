"""varlen_attn with torch's signature, against SDPA in float64, and the cache writes of vLLM."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.attention import varlen

from lamina.integrations.torch_varlen import varlen_attn
from lamina.integrations.vllm_ops import reshape_and_cache, reshape_and_cache_flash
from tests.support.attention_sequences import CLOSE, DIM, KV_HEADS, Batch, randn, same_bits


@pytest.fixture(scope="module")
def batch() -> Batch:
    return Batch()


def test_varlen_attn_has_the_signature_of_torch() -> None:
    ours, theirs = (inspect.signature(f).parameters.values() for f in (varlen_attn, varlen.varlen_attn))
    named = [[(p.name, p.kind, p.default) for p in parameters] for parameters in (ours, theirs)]
    assert named[0][: len(named[1])] == named[1]


@pytest.mark.parametrize("window", [(-1, -1), (-1, 0), (3, 0), (2, 1)])
def test_varlen_attn_is_sdpa(batch: Batch, window: tuple[int, int]) -> None:
    out, lse = varlen_attn(
        batch.q, batch.k, batch.v, batch.cu_q, batch.cu_k, batch.max_q, batch.max_k, window_size=window,
        enable_gqa=True, scale=0.2, return_aux=varlen.AuxRequest(lse=True),
    )  # fmt: skip
    exact_out, exact_lse = batch.expected(window=window, scale=0.2)
    torch.testing.assert_close(out.double(), exact_out, **CLOSE)
    torch.testing.assert_close(lse.double(), exact_lse, **CLOSE)
    paged = varlen_attn(
        batch.q, batch.k_cache, batch.v_cache, batch.cu_q, None, batch.max_q, batch.max_k, window_size=window,
        enable_gqa=True, scale=0.2, seqused_k=batch.seq_lens, block_table=batch.table, num_splits=1,
        return_aux=varlen.AuxRequest(lse=False),
    )  # fmt: skip
    assert isinstance(paged, Tensor) and same_bits(paged, out)


def test_varlen_attn_checks_heads_and_lengths(batch: Batch) -> None:
    given = (batch.q, batch.k, batch.v, batch.cu_q, batch.cu_k, batch.max_q, batch.max_k)
    with pytest.raises(ValueError, match="query has 6 heads and key 2; enable_gqa=True"):
        varlen_attn(*given)
    with pytest.raises(ValueError, match="block_table needs seqused_k"):
        varlen_attn(*given, enable_gqa=True, block_table=batch.table)


SLOTS = torch.tensor([7, -1, 0, 22], dtype=torch.int64)


@pytest.mark.parametrize("function", [reshape_and_cache, reshape_and_cache_flash])
@pytest.mark.parametrize("layout", ["nhd", "hnd"])
def test_vllm_writes_the_slots(function: Callable[..., None], layout: str) -> None:
    key, value = randn(6, KV_HEADS, DIM), randn(6, KV_HEADS, DIM, seed=1)  # padded to 6 tokens
    caches = torch.zeros(2, 6, 4, KV_HEADS, DIM)
    if layout == "hnd":
        caches = torch.zeros(2, 6, KV_HEADS, 4, DIM).transpose(2, 3)
    wanted = caches.clone()
    k_cache, v_cache = caches.unbind(0)
    function(key, value, k_cache, v_cache, SLOTS, "auto", 3.0, torch.tensor(3.0))
    for token, slot in enumerate(SLOTS.tolist()):
        if slot >= 0:
            wanted[0, slot // 4, slot % 4], wanted[1, slot // 4, slot % 4] = key[token], value[token]
    assert torch.equal(caches, wanted)


@pytest.mark.parametrize(
    ("name", "is_stored_as_bytes"),
    [("fp8", True), ("fp8_e4m3", True), ("fp8", False), ("int8", False), ("auto", False)],
)
def test_vllm_divides_by_the_scale(name: str, is_stored_as_bytes: bool) -> None:
    dtype = torch.int8 if name == "int8" else torch.float8_e4m3fn
    key, value = randn(4, KV_HEADS, DIM), randn(4, KV_HEADS, DIM, seed=1)
    k_cache, v_cache = torch.zeros(2, 6, 4, KV_HEADS, DIM, dtype=torch.uint8).unbind(0)
    given = (k_cache, v_cache) if is_stored_as_bytes else (k_cache.view(dtype), v_cache.view(dtype))
    # Powers of two: dividing and multiplying by the inverse are the same.
    reshape_and_cache_flash(key, value, *given, SLOTS, name, torch.tensor(0.125), 0.25)
    for cache, rows, scale in ((k_cache, key, 0.125), (v_cache, value, 0.25)):
        stored = cache.view(dtype).float().flatten(0, 1)
        scaled = rows / scale
        wanted = scaled.round() if dtype == torch.int8 else scaled.to(dtype).float()
        assert torch.equal(stored[SLOTS[[0, 2, 3]]], wanted[[0, 2, 3]])
        assert stored.count_nonzero() == wanted[[0, 2, 3]].count_nonzero()


def test_vllm_refuses_other_caches() -> None:
    key = randn(4, KV_HEADS, DIM)
    cache = torch.zeros(6, 4, KV_HEADS, DIM)
    with pytest.raises(ValueError, match="kv_cache_dtype = 'fp8_e5m2'; allowed: auto, fp8"):
        reshape_and_cache_flash(key, key, cache, cache.clone(), SLOTS, "fp8_e5m2", 1.0, 1.0)
    with pytest.raises(ValueError, match=r"kv_cache_dtype = 'fp8', but key_cache is torch\.float32"):
        reshape_and_cache_flash(key, key, cache, cache.clone(), SLOTS, "fp8", 1.0, 1.0)
    with pytest.raises(ValueError, match=r"must be 4-D .*got \[6, 2, 3, 4, 8\]"):
        reshape_and_cache(key, key, torch.zeros(6, 2, 3, 4, 8), cache, SLOTS, "auto", 1.0, 1.0)
