"""An engine with two workers: python -m tests.vllm.two_workers FOLDER prints tokens and counted calls."""

from __future__ import annotations

import json
import sys

from vllm import LLM

from tests.vllm.engine import generate

PROMPTS = [[5, 9, 77, 140], [3], list(range(20, 90))]
TOKENS = 12


def main(model: str) -> None:
    llm = LLM(
        model, dtype="float32", max_model_len=512, max_num_seqs=8, enforce_eager=True, tensor_parallel_size=2,
        skip_tokenizer_init=True, worker_extension_cls="tests.vllm.worker.Counting",
    )  # fmt: skip
    llm.collective_rpc("lamina_forget")
    tokens = generate(llm, PROMPTS, TOKENS)
    print(json.dumps({"tokens": tokens, "calls": llm.collective_rpc("lamina_calls")}))


if __name__ == "__main__":
    main(sys.argv[1])
