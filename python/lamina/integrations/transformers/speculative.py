"""Speculative decoding for model.generate(custom_generate=speculative)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.generation import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from lamina.integrations._attention import refuse
from lamina.integrations.transformers.cache import PagedKVCache
from lamina.integrations.transformers.paged_model import PagedModel
from lamina.speculate import ClosedLoop, Draft, DraftModel, FixedWidth, PromptLookup, Request, Width, decode

FUNCTION = "transformers generate with speculative"
PAGE = 16
# Processors that sample_tokens knows, and the attribute with their value.
FILTERS = {
    "TemperatureLogitsWarper": "temperature",
    "TopKLogitsWarper": "top_k",
    "TopPLogitsWarper": "top_p",
    "MinPLogitsWarper": "min_p",
}
CRITERIA = ("MaxLengthCriteria", "EosTokenCriteria")


def speculative(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    draft: PreTrainedModel | Draft | None = None,
    width: int | Width | None = None,
    **model_kwargs: Any,
) -> Tensor:
    """The function for model.generate(**inputs, custom_generate=speculative, draft=...).

    draft    a model of transformers with the attention "lamina" and the same vocabulary, or a draft of
             lamina.speculate. None: prompt lookup, for which prompt_lookup_num_tokens and, if wanted,
             max_matching_ngram_size are given to generate. transformers passes neither `assistant_model` nor
             `streamer` to such a function: a model is given as draft, and a streamer gets the prompt alone
    width    of lamina.speculate.decode. None: ClosedLoop with at most prompt_lookup_num_tokens, or at most
             num_assistant_tokens, drafts
    returns  [batch, tokens]: prompts and answers, as generate returns them. Without do_sample, and where
             drafts are not drawn at random, the tokens do not depend on the drafts if the linear layers of
             the model are lamina's. With do_sample the seeds come from torch's generator
    Raises   NotImplementedError that names what is not supported: beams, scores, a cache with tokens,
             logits processors other than temperature, top-k, top-p and min-p, and stopping criteria
             other than a length and the end of the sequence; ValueError for a model without a draft, another
             attention or another vocabulary

    The keys of a PagedKVCache given as past_key_values have its dtype; the cache itself stays empty.
    """
    cache = model_kwargs.get("past_key_values")
    own = {type(p).__name__: p for p in logits_processor}
    refuse(
        FUNCTION,
        num_beams=(generation_config.num_beams or 1) > 1,
        return_dict_in_generate=bool(generation_config.return_dict_in_generate),
        past_key_values=cache is not None and cache.get_seq_length() > 0,
        inputs_embeds=model_kwargs.get("inputs_embeds") is not None,
        **{name: name not in FILTERS for name in own},
        **{name: True for c in stopping_criteria if (name := type(c).__name__) not in CRITERIA},
    )
    most = _most_drafts(generation_config, draft)
    widths = FixedWidth(width) if isinstance(width, int) else width or ClosedLoop(most)
    requests = _requests(input_ids, model_kwargs.get("attention_mask"), own, generation_config)
    room = [-(-(len(r.prompt) + r.max_new_tokens + widths.most + 1) // PAGE) for r in requests]
    dtype = cache.dtype if isinstance(cache, PagedKVCache) else None
    paged = PagedModel(model, sum(room) * PAGE, page=PAGE, dtype=dtype)
    if draft is None:
        draft = PromptLookup(generation_config.max_matching_ngram_size or 2)
    elif isinstance(draft, PreTrainedModel):
        sizes = [m.config.get_text_config(decoder=True).vocab_size for m in (draft, model)]
        if sizes[0] != sizes[1]:
            raise ValueError(f"lamina: {FUNCTION}: draft has {sizes[0]} tokens; must be {sizes[1]}, as model")
        draft = DraftModel(PagedModel(draft, sum(room) * PAGE, page=PAGE, dtype=dtype))
    found = decode(paged, requests, draft, width=widths)
    longest = max(map(len, found.tokens))
    pad = generation_config._pad_token_tensor
    out = input_ids.new_full((len(requests), longest), 0 if pad is None else int(pad))
    for row, tokens in zip(out, found.tokens, strict=True):
        row[: len(tokens)] = torch.tensor(tokens)
    return torch.cat([input_ids, out], dim=1)


def _most_drafts(config: GenerationConfig, draft: object) -> int:
    lookup, assistant = config.prompt_lookup_num_tokens, config.num_assistant_tokens
    if draft is None and lookup is None:
        raise ValueError(
            f"lamina: {FUNCTION}: neither draft nor prompt_lookup_num_tokens was given; one is needed "
            "(transformers does not pass assistant_model on: give it as draft)"
        )
    return int(lookup if draft is None else assistant or 8)


def _requests(
    ids: Tensor, mask: Tensor | None, processors: dict[str, Any], config: GenerationConfig
) -> list[Request]:
    """A request for each row, without its padding."""
    eos = config._eos_token_tensor
    stop = frozenset() if eos is None else frozenset(eos.flatten().tolist())
    options = {FILTERS[name]: getattr(p, FILTERS[name]) for name, p in processors.items()}
    options.setdefault("temperature", 1.0)
    if not config.do_sample:
        options["temperature"] = 0.0
    seeds = torch.randint(2**63 - 1, (len(ids),)).tolist() if config.do_sample else [0] * len(ids)
    kept = ids.new_ones(ids.shape, dtype=torch.bool) if mask is None else mask.bool()
    count = config.max_length - ids.shape[1]
    return [
        Request(row[known].tolist(), count, seed=seed, stop=stop, **options)
        for row, known, seed in zip(ids, kept, seeds, strict=True)
    ]
