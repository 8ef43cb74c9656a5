"""Continuous batching of transformers over paged_attention: the tokens of its own attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers", minversion="5.23")

import lamina  # noqa: E402
from lamina.integrations.transformers import accelerate, use_continuous_batching  # noqa: E402

SIZES: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "initializer_range": 0.2,
    "max_position_embeddings": 256,
}  # fmt: skip
MODELS = {
    "full": ("LlamaForCausalLM", {}),
    "windows in some layers": (
        "Qwen3ForCausalLM",
        {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    ),
}
PROMPTS = [list(range(3, 3 + n)) for n in (1, 20, 5, 9, 2)]  # shorter and longer than pages and windows


def made(name: str) -> Any:
    kind, options = MODELS[name]
    torch.manual_seed(7)
    model = getattr(transformers, kind)
    instance = model(model.config_class(**SIZES, **options)).eval()
    instance.generation_config.eos_token_id = None  # every answer has all its tokens
    return instance


def tokens(model: Any) -> list[list[int]]:
    """The answers. The cache is too small for all requests at once, and a step for the longest prompt."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    config = ContinuousBatchingConfig(
        page_size=4, num_blocks=14, max_batch_tokens=16, max_requests_per_batch=3, auto_switch_to_flash=False
    )
    greedy = GenerationConfig(max_new_tokens=9, do_sample=False, eos_token_id=-1)
    answers = model.generate_batch(PROMPTS, greedy, config)
    return [answers[at].generated_tokens for at in sorted(answers)]


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_writes_the_tokens_of_sdpa(name: str) -> None:
    model = made(name)
    model.set_attn_implementation("sdpa")
    want = tokens(model)
    assert [len(answer) for answer in want] == [9] * len(PROMPTS)
    use_continuous_batching(model)
    assert tokens(model) == want


def test_an_accelerated_model_writes_its_own_tokens_in_a_batch() -> None:
    model = made("full")
    lamina.compress(model, "w8a8")
    accelerate(model)
    with torch.inference_mode():
        alone = [
            model.generate(torch.tensor([p]), max_new_tokens=9, do_sample=False)[0, len(p) :].tolist()
            for p in PROMPTS
        ]
    use_continuous_batching(model)
    assert tokens(model) == alone


def test_patterns_that_only_a_batch_explains_are_refused_elsewhere() -> None:
    model = made("full")
    use_continuous_batching(model)
    ids = torch.arange(8)[None]
    with torch.inference_mode():
        plain = model(ids).logits
        with pytest.raises(NotImplementedError, match="does not support attention_mask"):
            model(ids, position_ids=torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]]), use_cache=False)
        model.set_attn_implementation("lamina")
        assert torch.equal(model(ids).logits, plain)
