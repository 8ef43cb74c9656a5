"""lamina.speculate on packed models: speculative decoding gives the tokens of plain decoding."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

import lamina  # noqa: E402
from lamina.integrations.transformers import PagedKVCache, PagedModel, accelerate, int4_copy  # noqa: E402
from lamina.kv import OutOfPages  # noqa: E402
from lamina.speculate import ClosedLoop, Draft, DraftModel, PromptLookup, Request, decode  # noqa: E402

SIZES: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "initializer_range": 0.2,
    "max_position_embeddings": 256, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
SCHEMES = ["w8a8", "w4a16", "w4a8"]
KV = [torch.float32, torch.int8]
TREE = (0, 0, 0, 1, 1, 2, 4)  # children of the root: 3, of drafts 1, 2 and 4: 2, 1 and 1
ROOM = 512
LONGEST = 14
PROMPTS = [[5, 9, 5, 9, 5], [11], [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4]]
GREEDY = [Request(prompt, LONGEST - 2 * i) for i, prompt in enumerate(PROMPTS)]
DRAWN = [
    replace(GREEDY[0], temperature=0.7, seed=1),
    replace(GREEDY[1], temperature=0.3, top_k=20, top_p=0.9, seed=2),
    replace(GREEDY[2], temperature=1.3, min_p=0.05, seed=3),
]


def make(kind: str = "Llama", **more: Any) -> Any:
    torch.manual_seed(7)
    config = getattr(transformers, f"{kind}Config")(**SIZES, **more)
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


def packed(scheme: str, kind: str = "Llama", **more: Any) -> Any:
    model = make(kind, **more)
    lamina.compress(model, scheme, group=32 if scheme.startswith("w4") else None, head=scheme)
    report = accelerate(model)
    assert report.fused == SIZES["num_hidden_layers"]
    assert not any(type(m) is torch.nn.Linear for m in model.modules())
    return model


@pytest.fixture(scope="module", params=SCHEMES)
def model(request: Any) -> Any:
    return packed(request.param)


@pytest.fixture(scope="module")
def other() -> Any:
    """A draft that often agrees: the same weights in int4."""
    return int4_copy(make())


def drafts(model: Any, other: Any, dtype: torch.dtype) -> dict[str, Callable[[], Draft]]:
    def paged(of: Any, kv: torch.dtype) -> PagedModel:
        return PagedModel(of, 2 * ROOM, dtype=kv)

    return {
        "prompt lookup": lambda: PromptLookup(3),
        "itself": lambda: DraftModel(paged(model, dtype)),
        "int4, int8 KV": lambda: DraftModel(paged(other, torch.int8)),
        "a tree of itself": lambda: DraftModel(paged(model, dtype), TREE),
        "a tree of int4": lambda: DraftModel(paged(other, torch.int8), TREE),
    }


def one_by_one(model: Any, requests: list[Request], dtype: torch.dtype) -> list[list[int]]:
    return [decode(PagedModel(model, ROOM, dtype=dtype), [one]).tokens[0] for one in requests]


@pytest.mark.parametrize("dtype", KV, ids=str)
@pytest.mark.parametrize("requests", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_drafts_change_no_token(model: Any, other: Any, requests: list[Request], dtype: torch.dtype) -> None:
    plain = one_by_one(model, requests, dtype)
    paged = PagedModel(model, ROOM, dtype=dtype, page=4)
    assert decode(paged, requests).tokens == plain
    assert len({tuple(tokens) for tokens in plain}) == len(plain)
    for name, make_draft in drafts(model, other, dtype).items():
        for batch in ([0, 1, 2], [0])[: 2 if "a tree" in name else 1]:
            found = decode(paged, [requests[i] for i in batch], make_draft(), width=5)
            assert found.tokens == [plain[i] for i in batch], name
            assert found.accepted <= found.drafted
            if name == "itself" and requests is GREEDY:
                assert found.accepted == found.drafted > 0  # a draft with other bits would not agree always
    found = decode(paged, requests, drafts(model, other, dtype)["itself"](), width=ClosedLoop(5, retry=4))
    assert found.tokens == plain and len(found.widths) > 1
    assert paged.cache.free_pages == paged.cache.pages and not paged.cache.sequences


@pytest.mark.parametrize("dtype", KV, ids=str)
def test_plain_decoding_writes_what_generate_writes(model: Any, dtype: torch.dtype) -> None:
    for request in GREEDY:
        cache = PagedKVCache(model.config, ROOM, dtype=dtype)
        with torch.inference_mode():
            ids = model.generate(
                torch.tensor([request.prompt]), past_key_values=cache, do_sample=False,
                max_new_tokens=request.max_new_tokens,
            )  # fmt: skip
        assert ids[0, len(request.prompt) :].tolist() == one_by_one(model, [request], dtype)[0]


@pytest.mark.parametrize("kind", ["Mistral", "Qwen3"])
def test_drafts_change_no_token_of_other_models(kind: str) -> None:
    """A sliding window, in which siblings of a tree share a position; norms of heads."""
    model = packed("w4a8", kind, **({"sliding_window": 9} if kind == "Mistral" else {}))
    plain = one_by_one(model, GREEDY, torch.int8)
    for parents in (None, TREE):
        draft = DraftModel(PagedModel(model, ROOM, dtype=torch.int8), parents)
        found = decode(PagedModel(model, ROOM, dtype=torch.int8), GREEDY, draft, width=7)
        assert found.tokens == plain and found.accepted > 0


def test_layers_of_transformers_work_too() -> None:
    """The attention "lamina" without fused layers."""
    model = make()
    lamina.compress(model, "w8a8", head="w8a8")
    model.requires_grad_(False)
    model.set_attn_implementation("lamina")
    plain = one_by_one(model, GREEDY, torch.float32)
    draft = DraftModel(PagedModel(model, ROOM), TREE)
    assert decode(PagedModel(model, ROOM), GREEDY, draft, width=7).tokens == plain


def test_a_chain_drawn_by_the_model_itself_is_accepted(model: Any) -> None:
    """p / q is 1, or less by a rounding."""
    requests = [replace(one, top_k=0, top_p=1.0, min_p=0.0) for one in DRAWN]
    draft = DraftModel(PagedModel(model, ROOM), sampled=True)
    found = decode(PagedModel(model, ROOM), requests, draft, width=4)
    assert found.accepted == found.drafted > 10
    assert [len(tokens) for tokens in found.tokens] == [one.max_new_tokens for one in requests]
    mixed = [GREEDY[0], *requests[1:]]
    found = decode(PagedModel(model, ROOM), mixed, draft, width=4)
    assert found.tokens[0] == one_by_one(model, mixed[:1], torch.float32)[0]


def test_answers_end_at_a_stop_token(model: Any, other: Any) -> None:
    whole = one_by_one(model, GREEDY, torch.float32)
    stops = [tokens[len(tokens) // 2] for tokens in whole]
    requests = [replace(one, stop=frozenset([stop])) for one, stop in zip(GREEDY, stops, strict=True)]
    want = [tokens[: tokens.index(stop) + 1] for tokens, stop in zip(whole, stops, strict=True)]
    for make_draft in [lambda: None, *drafts(model, other, torch.float32).values()]:
        assert decode(PagedModel(model, ROOM), requests, make_draft(), width=5).tokens == want


def test_too_few_pages_free_all_sequences(model: Any) -> None:
    paged, draft = PagedModel(model, 48), DraftModel(PagedModel(model, 48))
    with pytest.raises(OutOfPages):
        decode(paged, GREEDY, draft)
    for cache in (paged.cache, draft.model.cache):
        assert cache.free_pages == cache.pages and not cache.sequences


def test_the_int4_copy_leaves_the_model_float_and_shares_its_embedding() -> None:
    model = make()
    before = copy.deepcopy(model.state_dict())
    made = int4_copy(model, "w4a16")
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert made.get_input_embeddings().weight is model.get_input_embeddings().weight
    assert not any(type(m) is torch.nn.Linear for m in made.modules())


def test_errors(model: Any) -> None:
    with pytest.raises(ValueError, match=r"attention of model is 'sdpa'; it must be \"lamina\""):
        PagedModel(make(attn_implementation="sdpa"), 16)
    with pytest.raises(ValueError, match=r"tokens = 0; must be at least 1"):
        PagedModel(model, 0)
    with pytest.raises(ValueError, match=r"scheme = 'w8a8'; must be one of w4a16, "):
        int4_copy(make(), "w8a8")
    with pytest.raises(ValueError, match=r"layer '.*' of model is packed; all must be float"):
        int4_copy(model)
