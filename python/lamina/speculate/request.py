"""A request to the driver, and its state while it runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Request:
    """A prompt and how to go on from it.

    prompt          token ids, at least one
    max_new_tokens  at least 1
    temperature     finite and at least 0; 0 takes the largest logit
    top_k, top_p, min_p   as in sample_tokens; 0, 1 and 0 keep all tokens
    seed            int64: requests of one batch that are drawn at random need different seeds
    stop            token ids that end the answer, of which they are the last token
    """

    prompt: Sequence[int]
    max_new_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    stop: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        def require(name: str, ok: bool, allowed: str) -> None:
            if not ok:
                raise ValueError(f"lamina.speculate.Request: {name} = {getattr(self, name)}; {allowed}")

        require("prompt", len(self.prompt) > 0, "must have at least one token")
        require("max_new_tokens", self.max_new_tokens >= 1, "must be at least 1")
        is_warm = math.isfinite(self.temperature) and self.temperature >= 0
        require("temperature", is_warm, "must be finite and at least 0")
        require("top_p", 0 < self.top_p <= 1, "must be above 0 and at most 1")
        require("min_p", 0 <= self.min_p <= 1, "must be from 0 to 1")


@dataclass(eq=False)
class Running:
    """A request that is being decoded.

    tokens  the prompt and the answer so far. The last one is the root of the next step: the cache of the
            model holds all tokens but this one
    seq     its sequence in the cache of the model
    flag    lamina.SampleFlag of the draw that ended the request, or 0
    """

    request: Request
    seq: int
    tokens: list[int] = field(default_factory=list)
    flag: int = 0
    is_done: bool = False

    def __post_init__(self) -> None:
        self.tokens = list(self.request.prompt)

    @property
    def answer(self) -> list[int]:
        """The new tokens."""
        return self.tokens[len(self.request.prompt) :]

    @property
    def remaining(self) -> int:
        """How many new tokens are still allowed."""
        return self.request.max_new_tokens - len(self.tokens) + len(self.request.prompt)

    def extend(self, tokens: Sequence[int], flag: int) -> None:
        """Adds tokens up to a stop token or the most allowed.

        flag  of the draw of the last token, which is not added if the flag is not 0
        """
        valid = tokens[:-1] if flag else tokens
        self.flag, self.is_done = flag, flag != 0
        for token in valid[: self.remaining]:
            self.tokens.append(token)
            if token in self.request.stop:
                self.is_done = True
                break
        self.is_done |= self.remaining == 0


def parameters(running: Sequence[Running], device: torch.device) -> dict[str, Tensor]:
    """The arguments of sample_tokens and verify_draft: temperature to offset, an element for each request."""
    of = [state.request for state in running]

    def column(values: list[float] | list[int], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    return {
        "temperature": column([r.temperature for r in of], torch.float32),
        "top_k": column([r.top_k for r in of], torch.int32),
        "top_p": column([r.top_p for r in of], torch.float32),
        "min_p": column([r.min_p for r in of], torch.float32),
        "seed": column([r.seed for r in of], torch.int64),
        "offset": column([len(state.tokens) for state in running], torch.int64),
    }
