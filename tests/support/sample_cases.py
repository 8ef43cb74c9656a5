"""Arguments of sample_tokens and verify_draft, and what the reference makes of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tests.reference import sample as reference
from tests.reference.sample import Settings
from tests.support.backends import Backend
from tests.support.cases import generator

INT32 = torch.int32
TEMPERATURES = (0.0, 1.0, 0.7, 1.7, 0.01, 30.0, 1e-40, 3e38)
TOP_KS = (0, -1, 1, 2, 5, 50, 300, 2**31 - 1)
TOP_PS = (1.0, 0.95, 0.5, 0.1, 1e-12, 0.99999)
MIN_PS = (0.0, 0.0, 0.05, 0.5, 1e-9, 1.0)


def random_settings(name: str, count: int) -> list[Settings]:
    r = random.Random(name)
    columns = (TEMPERATURES, TOP_KS, TOP_PS, MIN_PS)
    return [Settings(*map(r.choice, columns)) for _ in range(count)]  # type: ignore[arg-type]


def random_logits(name: str, m: int, vocab: int, dtype: torch.dtype) -> Tensor:
    """Rows of different spread; half of them have many equal logits, and some tokens are forbidden."""
    g = generator(f"logits {name} {m} {vocab}")
    x = torch.randn(m, vocab, generator=g) * torch.tensor([0.1, 1.0, 4.0, 20.0]).repeat(m)[:m, None]
    x[::2] = (x[::2] * 2).round() / 2
    x[torch.rand(m, vocab, generator=g) < 0.1] = -torch.inf
    if vocab:
        x[torch.arange(m), torch.randint(0, vocab, (m,), generator=g)] = 0.25
    return x.to(dtype)


def parameters(settings: Sequence[Settings]) -> dict[str, Tensor]:
    temperature, top_k, top_p, min_p = zip(*settings, strict=True) if settings else ((),) * 4
    return {
        "temperature": torch.tensor(temperature, dtype=torch.float32),
        "top_k": torch.tensor(top_k, dtype=INT32),
        "top_p": torch.tensor(top_p, dtype=torch.float32),
        "min_p": torch.tensor(min_p, dtype=torch.float32),
    }


def seeds(name: str, count: int) -> tuple[Tensor, Tensor]:
    """A seed and an offset for each row; some are negative."""
    values = torch.randint(-(2**63), 2**63 - 1, (2, count), generator=generator(f"seeds {name}"))
    return values[0], values[1]


def as_settings(parameters: dict[str, Tensor], i: int) -> Settings:
    return Settings(**{name: value[i].item() for name, value in parameters.items()})  # type: ignore[arg-type]


def sample(
    backend: Backend, logits: Tensor, given: dict[str, Tensor], seed: Tensor, offset: Tensor
) -> tuple[Tensor, ...]:
    return backend.run("sample_tokens", logits, **given, seed=seed, offset=offset)


def sampled(logits: Tensor, given: dict[str, Tensor], seed: Tensor, offset: Tensor) -> list[list[int]]:
    """Tokens and flags by the reference."""
    rows = logits.float().numpy()
    found = [
        reference.sample_tokens(rows[i], as_settings(given, i), int(seed[i]), int(offset[i]))
        for i in range(len(rows))
    ]
    return [[token for token, _ in found], [flag for _, flag in found]]


class Draft(NamedTuple):
    """Arguments of verify_draft; `given` are the parameters."""

    logits: Tensor
    draft_tokens: Tensor
    cu_seqlens_q: Tensor
    max_seqlen_q: int
    parents: Tensor | None
    draft_probs: Tensor | None
    given: dict[str, Tensor]
    seed: Tensor
    offset: Tensor

    def run(self, backend: Backend) -> tuple[Tensor, ...]:
        return backend.run(
            "verify_draft", self.logits, self.draft_tokens, self.cu_seqlens_q, self.max_seqlen_q,
            parents=self.parents, draft_probs=self.draft_probs, **self.given, seed=self.seed,
            offset=self.offset,
        )  # fmt: skip


def random_parents(r: random.Random, count: int) -> list[int]:
    return [-1 if i == 0 else r.randrange(i) for i in range(count)]


def random_draft(
    name: str, lengths: Sequence[int], vocab: int, settings: Sequence[Settings], *, tree: bool, q: bool,
    dtype: torch.dtype = torch.float32,
) -> Draft:  # fmt: skip
    """Requests with these numbers of rows, whose drafts are often the tokens of large probability."""
    r, g, rows = random.Random(f"{name} {lengths}"), generator(f"draft {name} {vocab}"), sum(lengths)
    logits = (torch.randn(rows, vocab, generator=g) * 5).to(dtype)
    likely = logits.float().topk(min(2, vocab), 1).indices
    parents = [p for n in lengths for p in random_parents(r, n)]
    drafts, begin = [], 0
    for n in lengths:
        for i in range(n):
            parent = parents[begin + i] if tree else i - 1
            drafts.append(int(likely[begin + max(parent, 0), r.randrange(likely.shape[1])]))
        begin += n
    probs = (logits.float() + torch.randn(rows, vocab, generator=g)).softmax(1) if q else None
    seed, offset = seeds(name, len(lengths))
    return Draft(
        logits, torch.tensor(drafts, dtype=INT32), torch.tensor([0, *np.cumsum(lengths)], dtype=INT32),
        max(lengths, default=1) or 1, torch.tensor(parents, dtype=INT32) if tree else None, probs,
        parameters(settings), seed, offset,
    )  # fmt: skip


def verified(draft: Draft) -> list[Any]:
    """tokens, num_accepted, bonus, accepted and flags by the reference, as lists."""
    d, most, columns = draft, draft.max_seqlen_q, ([], [], [], [], [])  # type: ignore[var-annotated]
    logits = d.logits.float().numpy()
    for request in range(len(d.cu_seqlens_q) - 1):
        begin, end = int(d.cu_seqlens_q[request]), int(d.cu_seqlens_q[request + 1])
        s = as_settings(d.given, request)
        if not 0 <= begin <= end <= len(logits) or end - begin > most:
            found = reference.Verified([], [], reference.OFFSETS)
        else:
            r = reference.Request(
                d.draft_tokens[begin:end].tolist(),
                lambda node, begin=begin, s=s: target_weights(logits[begin + node], s),  # type: ignore[misc]
                None
                if d.draft_probs is None
                else lambda node, begin=begin: reference.draft_weights(  # type: ignore[misc]
                    d.draft_probs[begin + node].numpy()  # type: ignore[index]
                ),
                None if d.parents is None else d.parents[begin:end].tolist(),
                int(d.offset[request]),
                s.temperature == 0,
            )
            found = reference.verify_draft(r, reference.Random(int(d.seed[request])), reference.Steps())
        tokens, accepted, flag = found
        columns[0].append(tokens + [-1] * (most - len(tokens)))
        columns[1].append(max(0, len(tokens) - 1))
        columns[2].append(tokens[-1] if tokens else 0)
        columns[3].append(accepted + [-1] * (most - len(accepted)))
        columns[4].append(flag)
    return list(columns)


def target_weights(logits: reference.F32, s: Settings) -> list[int] | int:
    """The weights of a row, or its flag."""
    return reference.flag_of(logits, s) or reference.kept_weights(logits, s)
