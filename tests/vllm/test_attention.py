"""vLLM's CPU engine with attention of lamina, on SmolLM2-135M: tokens, perplexity, bytes of the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from vllm.v1.attention.backends.registry import AttentionBackendEnum

from tests.vllm.engine import PROMPTS, counted, engine, english, generate, model_of, perplexity

LAYERS = 30
OURS = {"LAMINA_VLLM_ATTENTION": "lamina"}


@pytest.fixture(scope="session")
def stock(float_model: Path) -> tuple[list[list[int]], float, int]:
    """Tokens, perplexity and bytes of a block of the cache, by the stock engine in float32."""
    with engine(float_model) as llm:
        assert not AttentionBackendEnum.CPU_ATTN.is_overridden()
        return generate(llm), perplexity(llm, english()), block_bytes(llm)


def block_bytes(llm: Any) -> int:
    cache = model_of(llm).model.layers[0].self_attn.attn.kv_cache
    return int(cache[0].nbytes)


def test_tokens_are_those_of_the_stock_engine(
    float_model: Path, stock: tuple[list[list[int]], float, int]
) -> None:
    with engine(float_model, OURS) as llm, counted() as calls:
        assert generate(llm) == stock[0]
    assert set(calls) == {"paged_attention", "append_paged_kv"}
    assert calls["paged_attention"] == calls["append_paged_kv"]
    assert calls["paged_attention"] >= 24 * LAYERS
    assert calls["paged_attention"] % LAYERS == 0


def test_a_cached_prefix_gives_the_same_tokens(
    float_model: Path, stock: tuple[list[list[int]], float, int]
) -> None:
    long = [PROMPTS[3], PROMPTS[3] + stock[0][3][:8]]
    with engine(float_model, OURS, enable_prefix_caching=True, block_size=32) as llm:
        first = generate(llm, long[:1])
        second = generate(llm, long[1:], tokens=16)
    assert first[0] == stock[0][3]
    assert second[0] == stock[0][3][8:]


@pytest.mark.parametrize(
    ("options", "tolerance", "bytes_of_stock"),
    [
        ({"dtype": "bfloat16"}, 0.02, 2),
        ({"kv_cache_dtype": "int8_per_token_head"}, 0.01, 4 * 64 / 68),
        ({"kv_cache_dtype": "fp8_per_token_head"}, 0.03, 4 * 64 / 68),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else None,
)
def test_smaller_caches_keep_the_perplexity(
    float_model: Path,
    stock: tuple[list[list[int]], float, int],
    options: dict[str, Any],
    tolerance: float,
    bytes_of_stock: float,
) -> None:
    with engine(float_model, OURS, **options) as llm, counted() as calls:
        got = perplexity(llm, english())
        assert block_bytes(llm) * bytes_of_stock == pytest.approx(stock[2])
    assert calls["paged_attention"] >= LAYERS
    assert calls["paged_attention"] % LAYERS == 0
    assert abs(got / stock[1] - 1) < tolerance
