"""llama.cpp through the package xllamacpp, as a peer that runs the same file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

LLAMA_CPP = "llama.cpp"


class LlamaCpp:
    """A server of llama.cpp in this process."""

    def __init__(self, xllamacpp: Any, path: Path, context: int) -> None:
        options = xllamacpp.CommonParams()
        options.model.path = str(path)
        options.n_ctx, options.n_parallel, options.n_gpu_layers = context, 1, 0
        options.verbosity = -1
        for threads in (options.cpuparams, options.cpuparams_batch):
            threads.n_threads = torch.get_num_threads()
        self.summary = f"llama.cpp (xllamacpp {xllamacpp.__version__}), the file as it is"
        self.model_bytes = path.stat().st_size
        self._server = xllamacpp.Server(options)

    @classmethod
    def start(cls, path: Path, context: int) -> LlamaCpp | None:
        """A server with room for `context` tokens, or None where xllamacpp is not installed."""
        try:
            import xllamacpp
        except ImportError:
            return None
        return cls(xllamacpp, path, context)

    def timed(self, prompt: list[int], tokens: int) -> tuple[float, list[float]]:
        """Seconds that llama.cpp says it took for the prompt, and the mean of its seconds a decoded token."""
        answers: list[dict[str, Any]] = []
        request = {
            "prompt": prompt, "n_predict": tokens, "temperature": 0, "ignore_eos": True,
            "cache_prompt": False, "stream": False,
        }  # fmt: skip
        self._server.handle_completions(request, answers.append)
        times = answers[-1]["timings"]
        return times["prompt_ms"] / 1e3, [times["predicted_per_token_ms"] / 1e3]
