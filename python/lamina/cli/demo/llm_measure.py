"""Size, speed and quality of the variants of the language model, and of llama.cpp on the same file."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from lamina._checks import call
from lamina._progress import with_progress
from lamina.cli.demo.encoder import DemoError
from lamina.cli.demo.llama_cpp import LLAMA_CPP, LlamaCpp
from lamina.cli.demo.llm import BASELINE, MODEL_NAME, VARIANTS, load, model_file
from lamina.cli.demo.prose import PROSE
from lamina.compression.memory import ByteSet

PROMPT, ANSWER = 256, 16  # tokens of the timed prompt, and tokens that are then decoded


@dataclass(frozen=True)
class LlmResult:
    """One line of the table. Times are of every round; quality is None where logits cannot be had.

    perplexity   exp of the mean negative log likelihood of the text
    divergence   mean of KL(baseline || this) over the tokens of the text, in nats
    agreement    share of the tokens at which the most likely next token is that of the baseline
    """

    scheme: str
    summary: str
    model_bytes: int
    prefill_s: tuple[float, ...]  # from the call of generate to the first token
    decode_s: tuple[float, ...]  # from each token to the next
    perplexity: float | None = None
    divergence: float | None = None
    agreement: float | None = None
    most_perplexity: float | None = None  # that is allowed

    @property
    def prefill(self) -> float:
        """Tokens a second of the prompt, in the median round."""
        return PROMPT / median(self.prefill_s)

    @property
    def decode(self) -> float:
        """Tokens a second of the answer, at the median time of a token."""
        return 1 / median(self.decode_s)

    @property
    def passed(self) -> bool:
        """Whether the perplexity is small enough."""
        return (
            self.perplexity is None or self.most_perplexity is None or self.perplexity <= self.most_perplexity
        )


@dataclass(frozen=True)
class Quality:
    """The quality of one variant on the text."""

    perplexity: float
    divergence: float
    agreement: float


class Clock:
    """A streamer of transformers that notes when each token comes; the prompt comes first."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Tensor) -> None:
        """Notes the time."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Does nothing."""


def run_llm_demo(
    names: Sequence[str], rounds: int, progress: bool | None
) -> tuple[list[LlmResult], dict[str, Any], Any]:
    """A result for each variant and for llama.cpp where it is installed, the models, and the tokenizer.

    The models are timed in turn, round by round.
    """
    try:
        call(torch.ops.lamina.cpu_isa)
    except ValueError as error:
        raise DemoError(str(error)) from error
    model_file()
    names = [BASELINE, *(name for name in names if name != BASELINE)]
    models: dict[str, Any] = {}
    quality: dict[str, Quality] = {}
    tokenizer: Any = None
    ids, reference = torch.empty(0), torch.empty(0)
    loaded = with_progress(load(names), len(names), "packing and judging", progress, "demo")
    for name, model, tokenizer in loaded:
        if not models:
            ids = tokenizer(PROSE, return_tensors="pt")["input_ids"]
            reference = log_probabilities(model, ids)
        models[name] = model
        log_p = reference if name == BASELINE else log_probabilities(model, ids)
        quality[name] = judge(log_p, reference, ids)
    peer = LlamaCpp.start(model_file(), PROMPT + ANSWER)
    times = _time(models, peer, ids[:, :PROMPT], rounds, progress)
    results = [
        LlmResult(
            scheme=name,
            summary=VARIANTS[name].summary,
            model_bytes=ByteSet([*model.parameters(), *model.buffers()]).total,
            **times[name],
            **asdict(quality[name]),
            most_perplexity=VARIANTS[name].most * quality[BASELINE].perplexity,
        )
        for name, model in models.items()
    ]
    if peer is not None:
        results.append(LlmResult(LLAMA_CPP, peer.summary, peer.model_bytes, **times[LLAMA_CPP]))
    return results, models, tokenizer


def log_probabilities(model: Any, ids: Tensor) -> Tensor:
    """The log probabilities of the next token, [tokens - 1, vocabulary], in f32."""
    with torch.inference_mode():
        logits: Tensor = model(ids, use_cache=False).logits[0, :-1]
        return logits.float().log_softmax(-1)


def judge(log_p: Tensor, reference: Tensor, ids: Tensor) -> Quality:
    """The quality of log probabilities [tokens - 1, vocabulary] of the text `ids` [1, tokens]."""
    loss = torch.nn.functional.nll_loss(log_p, ids[0, 1:])
    divergence = torch.nn.functional.kl_div(log_p, reference, reduction="batchmean", log_target=True)
    agreement = (log_p.argmax(-1) == reference.argmax(-1)).double().mean()
    return Quality(math.exp(loss), float(divergence), float(agreement))


def timed_generation(model: Any, prompt: Tensor, cache: Any, tokens: int) -> tuple[float, list[float]]:
    """Seconds from the call of generate to the first token, and from each token to the next."""
    clock = Clock()
    began = time.perf_counter()
    with torch.inference_mode():
        model.generate(
            prompt, attention_mask=torch.ones_like(prompt), streamer=clock, past_key_values=cache,
            max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False,
        )  # fmt: skip
    first, *later = clock.times[1:]
    return first - began, [after - before for before, after in zip([first, *later], later, strict=False)]


def as_dict(results: Sequence[LlmResult], machine: Mapping[str, object], rounds: int) -> dict[str, Any]:
    """The results for JSON."""
    return {
        "machine": dict(machine),
        "model": MODEL_NAME,
        "prompt_tokens": PROMPT,
        "decoded_tokens": ANSWER,
        "rounds": rounds,
        "rows": [
            asdict(result) | {"prefill": result.prefill, "decode": result.decode, "passed": result.passed}
            for result in results
        ],
    }


def _time(
    models: Mapping[str, Any], peer: LlamaCpp | None, prompt: Tensor, rounds: int, progress: bool | None
) -> dict[str, dict[str, Any]]:
    """The times of a LlmResult, by model."""
    from lamina.integrations.transformers import PagedKVCache

    everyone = [*models, *([] if peer is None else [LLAMA_CPP])]
    prefills: dict[str, list[float]] = {name: [] for name in everyone}
    decodes: dict[str, list[float]] = {name: [] for name in everyone}

    def turns() -> Iterator[str]:
        for _ in range(rounds):
            yield from everyone

    for name in with_progress(turns(), rounds * len(everyone), "timing", progress, "demo"):
        if name == LLAMA_CPP:
            assert peer is not None
            prefill, decode = peer.timed(prompt[0].tolist(), ANSWER)
        else:
            cache = None
            if VARIANTS[name].scheme is not None:
                cache = PagedKVCache(models[name].config, PROMPT + ANSWER)
            prefill, decode = timed_generation(models[name], prompt, cache, ANSWER)
        prefills[name].append(prefill)
        decodes[name].extend(decode)
    return {name: {"prefill_s": tuple(prefills[name]), "decode_s": tuple(decodes[name])} for name in everyone}
