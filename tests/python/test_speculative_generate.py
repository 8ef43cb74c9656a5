"""lamina.integrations.transformers.speculative in model.generate."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

transformers = pytest.importorskip("transformers")

import lamina  # noqa: E402
from lamina.integrations.transformers import (  # noqa: E402
    PagedKVCache,
    PagedModel,
    accelerate,
    int4_copy,
    speculative,
)
from lamina.speculate import DraftModel  # noqa: E402

IDS = torch.tensor([[0, 0, 5, 9, 5, 9, 5], [3, 1, 4, 1, 5, 9, 2]])
PADDED = (IDS > 0).long()


def make(**more: Any) -> Any:
    torch.manual_seed(7)
    sizes: dict[str, Any] = {
        "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2, "pad_token_id": 0,
        "eos_token_id": None, "bos_token_id": None,
    }  # fmt: skip
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**sizes, **more})).eval()


@pytest.fixture(scope="module")
def model() -> Any:
    made = make()
    lamina.compress(made, "w8a8", head="w8a8")
    accelerate(made)
    return made


@pytest.fixture(scope="module")
def draft() -> Any:
    return int4_copy(make())


def generate(model: Any, **options: Any) -> Tensor:
    ids: Tensor = model.generate(
        IDS, attention_mask=PADDED, **{"max_new_tokens": 16, "do_sample": False, **options}
    )
    return ids


def speculate(model: Any, **options: Any) -> Tensor:
    return generate(model, custom_generate=speculative, **options)


def test_generate_gives_the_tokens_of_plain_generate(model: Any, draft: Any) -> None:
    plain = generate(model)
    tree = DraftModel(PagedModel(draft, 512), (0, 0, 1))
    for options in ({"draft": draft}, {"draft": tree, "width": 3}, {"prompt_lookup_num_tokens": 4}):
        assert torch.equal(speculate(model, **options), plain)


def test_the_keys_have_the_dtype_of_the_cache(model: Any, draft: Any) -> None:
    caches = [PagedKVCache(model.config, 64, max_batch_size=2, dtype=torch.int8) for _ in range(2)]
    plain = generate(model, past_key_values=caches[0])
    assert torch.equal(speculate(model, draft=draft, past_key_values=caches[1]), plain)
    assert not torch.equal(plain, generate(model))


def test_answers_end_and_are_padded(model: Any, draft: Any) -> None:
    eos = int(generate(model)[0, IDS.shape[1] + 4])
    plain = generate(model, eos_token_id=eos)
    assert (plain[0] == 0).sum() > 2
    assert torch.equal(speculate(model, draft=draft, eos_token_id=eos), plain)


def test_sampling_is_repeated_by_a_seed(model: Any) -> None:
    found = []
    for seed, top_k in ((1, 0), (1, 0), (2, 0), (3, 1)):
        torch.manual_seed(seed)
        options = {"do_sample": True, "temperature": 0.9, "top_p": 0.95, "top_k": top_k}
        found.append(speculate(model, prompt_lookup_num_tokens=3, **options))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert torch.equal(found[3], generate(model))  # the most probable token alone is kept


def test_what_is_not_supported_is_named(model: Any, draft: Any) -> None:
    for options, name in (
        ({"num_beams": 2}, "num_beams"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate"),
        ({"repetition_penalty": 1.2}, "RepetitionPenaltyLogitsProcessor"),
        ({"max_time": 9.0}, "MaxTimeCriteria"),
    ):
        with pytest.raises(NotImplementedError, match=f"speculative does not support {name}"):
            speculate(model, draft=draft, **options)
    cache = PagedKVCache(model.config, 64, max_batch_size=2)
    generate(model, past_key_values=cache, max_new_tokens=2)
    with pytest.raises(NotImplementedError, match="does not support past_key_values"):
        speculate(model, draft=draft, past_key_values=cache)
    with pytest.raises(ValueError, match="neither draft nor prompt_lookup_num_tokens was given"):
        speculate(model, assistant_model=draft)
    with pytest.raises(ValueError, match="draft has 98 tokens; must be 97, as model"):
        speculate(model, draft=int4_copy(make(vocab_size=98)))
    with pytest.raises(ValueError, match="attention of model is 'sdpa'"):
        speculate(model, draft=make(attn_implementation="sdpa"))
