"""lamina.integrations.transformers: the attention "lamina" and PagedKVCache, in several model families."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")

import lamina.integrations.transformers as integration  # noqa: E402
from lamina.kv import OutOfPages  # noqa: E402

# Initial weights of 0.2 make attention far from uniform; the default of 0.02 would hide a wrong mask.
SIZES = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "max_position_embeddings": 256, "initializer_range": 0.2,
}  # fmt: skip
DECODER = {**SIZES, "num_key_value_heads": 2, "head_dim": 16}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", DECODER),
    "sliding window": ("MistralForCausalLM", {**DECODER, "sliding_window": 5}),
    "softcap, half of the layers with a window": (
        "Gemma2ForCausalLM",
        {**DECODER, "sliding_window": 6, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 2.0},
    ),
    "sinks": (
        "GptOssForCausalLM",
        {**DECODER, "sliding_window": 6, "num_local_experts": 2, "num_experts_per_tok": 1},
    ),
}
LAST = 11


def make(name: str, **more: Any) -> nn.Module:
    kind, options = MODELS[name]
    model = getattr(transformers, kind)
    torch.manual_seed(7)
    made: nn.Module = model(model.config_class(**{**options, **more})).eval()
    for parameter_name, parameter in made.named_parameters():
        if parameter_name.endswith("sinks"):
            nn.init.normal_(parameter.data)
    return made


@pytest.fixture(scope="module", params=list(MODELS))
def model(request: pytest.FixtureRequest) -> nn.Module:
    return make(request.param)


@pytest.fixture
def llama() -> nn.Module:
    made = make("llama")
    made.set_attn_implementation("lamina")
    return made


def tokens(batch: int, count: int) -> Tensor:
    return torch.randint(
        1, SIZES["vocab_size"], (batch, count), generator=torch.Generator().manual_seed(batch)
    )


IDS = tokens(3, LAST)
LEFT = torch.tensor([[1] * LAST, [0] * 4 + [1] * 7, [0] * 10 + [1]])
RIGHT = LEFT.flip(1)


def by(implementation: str, model: nn.Module, function: Callable[[], Any]) -> Any:
    model.set_attn_implementation(implementation)
    with torch.inference_mode():
        return function()


def generate(model: nn.Module, ids: Tensor = IDS, mask: Tensor | None = LEFT, **options: Any) -> Tensor:
    out: Tensor = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=9,
        min_new_tokens=9,
        do_sample=False,
        pad_token_id=0,
        **options,
    )
    return out


@pytest.mark.parametrize("mask", [None, LEFT, RIGHT], ids=["no padding", "left", "right"])
def test_logits_are_those_of_eager_attention(model: nn.Module, mask: Tensor | None) -> None:
    expected, got = (
        by(name, model, lambda: model(IDS, attention_mask=mask, use_cache=False).logits)
        for name in ("eager", "lamina")
    )
    kept = slice(None) if mask is None else mask.bool()
    torch.testing.assert_close(got[kept], expected[kept], rtol=1e-4, atol=1e-4)


def test_generated_tokens_are_those_of_eager_attention(model: nn.Module) -> None:
    for beams in (1, 2):
        expected, got = (
            by(name, model, lambda beams=beams: generate(model, num_beams=beams))
            for name in ("eager", "lamina")
        )
        assert torch.equal(got, expected)


def test_a_paged_cache_changes_no_bit(model: nn.Module) -> None:
    def steps(cache: Any) -> list[Tensor]:
        logits = [model(IDS[:, :7], attention_mask=LEFT[:, :7], past_key_values=cache).logits]
        for at in range(7, LAST, 2):
            new = IDS[:, at : at + 2]
            logits.append(model(new, attention_mask=LEFT[:, : at + 2], past_key_values=cache).logits)
        return logits

    paged = integration.PagedKVCache(model.config, 16, max_batch_size=3, page=4)
    expected = by("lamina", model, lambda: steps(transformers.DynamicCache(config=model.config)))
    got = by("lamina", model, lambda: steps(paged))
    shown = [LEFT[:, :7].bool(), *[LEFT[:, at : at + 2].bool() for at in range(7, LAST, 2)]]
    for a, b, kept in zip(got, expected, shown, strict=True):
        assert torch.equal(a[kept], b[kept])


def test_beams_share_pages(model: nn.Module) -> None:
    expected = by("lamina", model, lambda: generate(model, num_beams=3))
    cache = integration.PagedKVCache(model.config, 20, max_batch_size=9, page=4)
    assert torch.equal(
        by("lamina", model, lambda: generate(model, num_beams=3, past_key_values=cache)), expected
    )


@pytest.mark.parametrize("dtype", [None, torch.int8, torch.float8_e4m3fn])
def test_other_attentions_get_the_same_keys(dtype: torch.dtype | None) -> None:
    """Eager attention gathers and dequantises what "lamina" reads in pages.

    The model has one layer: a second one would round slightly different keys, at times to the next integer.
    """
    model = make("llama", num_hidden_layers=1)

    def logits() -> Tensor:
        cache = integration.PagedKVCache(model.config, 12, max_batch_size=3, dtype=dtype)
        out: Tensor = model(IDS, attention_mask=LEFT, past_key_values=cache).logits[LEFT.bool()]
        return out

    expected, got = (by(name, model, logits) for name in ("eager", "lamina"))
    # Queries of an int8 cache are rounded to 16 bits.
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-3 if dtype is torch.int8 else 1e-4)


def test_an_int8_cache_is_near_the_exact_one(llama: nn.Module) -> None:
    cache = integration.PagedKVCache(llama.config, 12, max_batch_size=3, dtype=torch.int8)
    with torch.inference_mode():
        exact = llama(IDS).logits
        got = llama(IDS, past_key_values=cache).logits
    assert cache.pool.k[0].dtype is torch.int8
    error = (got - exact).norm() / exact.norm()
    assert 0 < error < 0.05


def test_every_layer_of_every_step_calls_the_op(llama: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    module = integration.attention.__globals__
    calls, op = [], module["paged_attention"]
    monkeypatch.setitem(module, "paged_attention", lambda *a, **k: calls.append(1) or op(*a, **k))
    with torch.inference_mode():
        generate(llama, past_key_values=integration.PagedKVCache(llama.config, 20, max_batch_size=3))
    assert len(calls) == 9 * SIZES["num_hidden_layers"]


def test_an_encoder_sees_both_sides() -> None:
    torch.manual_seed(7)
    bert = transformers.BertModel(transformers.BertConfig(**SIZES), add_pooling_layer=False).eval()
    for mask in (None, RIGHT):
        expected, got = (
            by(name, bert, lambda mask=mask: bert(IDS, attention_mask=mask).last_hidden_state)
            for name in ("eager", "lamina")
        )
        kept = slice(None) if mask is None else mask.bool()
        torch.testing.assert_close(got[kept], expected[kept], rtol=1e-4, atol=1e-4)


def test_a_static_cache(llama: nn.Module) -> None:
    for mask in (None, LEFT):
        logits = []
        for cache in (
            transformers.StaticCache(llama.config, max_cache_len=20),
            transformers.DynamicCache(config=llama.config),
        ):
            with torch.inference_mode():
                llama(IDS[:, :8], attention_mask=None if mask is None else mask[:, :8], past_key_values=cache)
                logits.append(llama(IDS[:, 8:], attention_mask=mask, past_key_values=cache).logits[:, -1])
        assert torch.equal(logits[0], logits[1])


def test_dropped_tokens_leave_no_trace(llama: nn.Module) -> None:
    cache = integration.PagedKVCache(llama.config, 16, max_batch_size=3, page=4)
    with torch.inference_mode():
        llama(IDS[:, :6], past_key_values=cache)
        llama(tokens(3, 5), past_key_values=cache)
        cache.crop(-5)
        assert cache.get_seq_length() == 6
        got = llama(IDS[:, 6:], past_key_values=cache).logits
        expected = llama(IDS).logits[:, 6:]
        assert torch.equal(got, expected)
        cache.reset()
        assert cache.get_seq_length() == 0 and cache.pool.free_pages == cache.pages
        assert torch.equal(llama(IDS, past_key_values=cache).logits[:, 6:], expected)


def test_rows_of_the_batch_are_selected_and_repeated(llama: nn.Module) -> None:
    cache = integration.PagedKVCache(llama.config, 16, max_batch_size=6, page=4)
    with torch.inference_mode():
        llama(IDS[:, :6], past_key_values=cache)
        cache.batch_select_indices(torch.tensor([2, 0]))
        cache.batch_repeat_interleave(2)
        got = llama(IDS[[2, 2, 0, 0], 6:], past_key_values=cache).logits
        assert torch.equal(got, llama(IDS[[2, 2, 0, 0]]).logits[:, 6:])


def test_a_full_cache_says_how_many_pages_are_missing(llama: nn.Module) -> None:
    cache = integration.PagedKVCache(llama.config, 8, max_batch_size=3, page=4)
    with torch.inference_mode():
        llama(IDS[:, :8], past_key_values=cache)
        with pytest.raises(OutOfPages, match="3 are missing"):
            llama(IDS[:, 8:], past_key_values=cache)
        assert cache.get_seq_length() == 8


PACKED = torch.tensor([[*range(6), *range(5)]])
UNSUPPORTED: dict[str, Callable[[nn.Module], Any]] = {
    "packed_sequence": lambda model: model(IDS[:1], position_ids=PACKED, use_cache=False),
    "attention_mask": lambda model: model(IDS, attention_mask=torch.zeros(3, 1, LAST, LAST)),
    "output_attentions": lambda model: model(IDS, output_attentions=True),
}


@pytest.mark.parametrize("argument", UNSUPPORTED)
def test_what_is_not_supported_is_named(llama: nn.Module, argument: str) -> None:
    with torch.inference_mode(), pytest.raises(NotImplementedError, match=argument):
        UNSUPPORTED[argument](llama)


def test_gradients_and_dropout_are_refused(llama: nn.Module) -> None:
    with pytest.raises(RuntimeError, match="requires grad"):
        llama(IDS)
    query = torch.zeros(1, 2, 3, 8)
    with torch.inference_mode(), pytest.raises(NotImplementedError, match="dropout"):
        integration.attention(llama, query, query, query, None, dropout=0.1)


@pytest.mark.parametrize("argument", ["max_cache_len", "max_batch_size", "page"])
def test_sizes_must_be_positive(llama: nn.Module, argument: str) -> None:
    sizes = {"max_cache_len": 8, argument: 0}
    with pytest.raises(ValueError, match=f"{argument} = 0"):
        integration.PagedKVCache(llama.config, **sizes)


def test_another_batch_and_a_positive_crop_are_refused(llama: nn.Module) -> None:
    cache = integration.PagedKVCache(llama.config, 16, max_batch_size=3)
    with torch.inference_mode():
        llama(IDS, past_key_values=cache)
        with pytest.raises(ValueError, match="a batch of 2 was given, and the cache holds 3"):
            llama(IDS[:2, :1], past_key_values=cache)
    with pytest.raises(ValueError, match="tokens_to_remove = 4"):
        cache.crop(4)
