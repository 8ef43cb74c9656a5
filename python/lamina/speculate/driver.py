"""Decodes a batch of requests, plainly or with drafts. It measures; it is not an engine."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from lamina.ops import sample_tokens, verify_draft
from lamina.speculate.closed_loop import FixedWidth, Step, Width
from lamina.speculate.drafts import Draft, Proposal
from lamina.speculate.request import Request, Running, parameters
from lamina.speculate.rows import Model, run


@dataclass
class Decoded:
    """The answers of a batch, and what they took.

    tokens     the new tokens of each request, with the stop token
    flags      lamina.SampleFlag of each request: 0, or why its answer ended early
    steps      calls of the model after the prompts
    drafted    drafts that the model verified
    accepted   drafts that the model accepted, also those after a stop token
    widths     width -> the steps that had it
    prompt_s   seconds for the prompts and the first token of each answer
    draft_s    seconds of drafting
    verify_s   seconds of the model and of the choice of tokens, after the prompts
    """

    tokens: list[list[int]] = field(default_factory=list)
    flags: list[int] = field(default_factory=list)
    steps: int = 0
    drafted: int = 0
    accepted: int = 0
    widths: Counter[int] = field(default_factory=Counter)
    prompt_s: float = 0.0
    draft_s: float = 0.0
    verify_s: float = 0.0


@torch.inference_mode()
def decode(
    model: Model,
    requests: Sequence[Request],
    draft: Draft | None = None,
    *,
    width: int | Width = 4,
    clock: Callable[[], float] = time.perf_counter,
) -> Decoded:
    """Answers requests: all in one batch, which shrinks as they end.

    model     over a PagedCache, whose sequences are freed at the end. A request needs pages for its prompt,
              its new tokens and the drafts of a step
    draft     None: one token for each call of the model
    width     drafts of a request and step, or FixedWidth or ClosedLoop. A tree with fewer nodes bounds them
    clock     seconds; its differences are the times that are returned and that ClosedLoop sees
    returns   Decoded
    Exact     At temperature 0, and where drafts are not drawn at random, the tokens do not depend on drafts,
              widths and the batch if the model gives each row the same bits in every batch. A DraftModel that
              draws its drafts leaves the distribution of the tokens, not the tokens
    Raises    ValueError for a bad width; lamina.kv.OutOfPages
    """
    widths = FixedWidth(width) if isinstance(width, int) else width
    found = Decoded()
    everyone = [Running(request, model.cache.new()) for request in requests]
    try:
        start = clock()
        if everyone:
            _read_prompts(model, everyone)
        found.prompt_s = clock() - start
        while running := [one for one in everyone if not one.is_done]:
            step = _step(model, running, draft, widths, clock, found)
            widths.observe(step)
    finally:
        for one in everyone:
            model.cache.free(one.seq)
            if draft is not None:
                draft.forget(one)
    found.tokens = [one.answer for one in everyone]
    found.flags = [one.flag for one in everyone]
    return found


def _read_prompts(model: Model, running: Sequence[Running]) -> None:
    logits = run(model, [one.seq for one in running], [one.tokens for one in running], only_last=True)
    drawn = sample_tokens(logits, **parameters(running, logits.device))
    for one, token, flag in zip(running, drawn.tokens.tolist(), drawn.flags.tolist(), strict=True):
        one.extend([token], flag)


def _step(
    model: Model,
    running: Sequence[Running],
    draft: Draft | None,
    widths: Width,
    clock: Callable[[], float],
    found: Decoded,
) -> Step:
    """Drafts, verifies and keeps the tokens of one step."""
    start = clock()
    width, proposal = 0, Proposal([[] for _ in running])
    if draft is not None:
        tree = (draft.parents or range(widths.most))[: widths.most]
        width = widths.choose(len(running), tree)
        # The bonus token is one of the remaining tokens, so the drafts after the others would be lost.
        allowed = [min(width, one.remaining - 1) for one in running]
        if any(allowed):
            proposal = draft.propose(running, allowed)
    middle = clock()
    kept = _verify(model, running, proposal)
    end = clock()
    parents = proposal.parents or [list(range(len(drafts))) for drafts in proposal.tokens]
    drafted = sum(map(len, proposal.tokens))
    found.steps += 1
    found.widths[width] += 1
    found.drafted += drafted
    found.draft_s += middle - start
    found.verify_s += end - middle
    found.accepted += sum(map(len, kept)) - len(kept)
    return Step(width, len(running) + drafted, middle - start, end - middle, parents, kept)


def _verify(model: Model, running: Sequence[Running], proposal: Proposal) -> list[list[int]]:
    """Extends the answers, and returns the rows of each request that were kept: the root and drafts."""
    cache, seqs = model.cache, [one.seq for one in running]
    before = [cache.length(seq) for seq in seqs]
    tokens = [[one.tokens[-1], *drafts] for one, drafts in zip(running, proposal.tokens, strict=True)]
    given = parameters(running, cache.device)
    if not any(proposal.tokens):
        drawn = sample_tokens(run(model, seqs, tokens), **given)
        for one, token, flag in zip(running, drawn.tokens.tolist(), drawn.flags.tolist(), strict=True):
            one.extend([token], flag)
        return [[0] for _ in running]
    parents = None if proposal.parents is None else [[-1, *of] for of in proposal.parents]
    logits = run(model, seqs, tokens, parents)
    counts = [len(of) for of in tokens]
    offsets = torch.tensor([sum(counts[:i]) for i in range(len(counts) + 1)], dtype=torch.int32)

    def flat(values: list[list[int]]) -> torch.Tensor:
        return torch.tensor([x for of in values for x in of], dtype=torch.int32, device=cache.device)

    checked = verify_draft(
        logits, flat(tokens), offsets.to(cache.device), max(counts),
        parents=None if parents is None else flat(parents), draft_probs=proposal.probs, **given,
    )  # fmt: skip
    if parents is None:
        for seq, length, accepted in zip(seqs, before, checked.num_accepted.tolist(), strict=True):
            cache.truncate(seq, length + 1 + accepted)
    else:
        cache.accept(seqs, counts, checked.accepted)
    kept = []
    for one, new, rows, flag in zip(
        running, checked.tokens.tolist(), checked.accepted.tolist(), checked.flags.tolist(), strict=True
    ):
        rows = [row for row in rows if row >= 0]
        one.extend(new[: len(rows)], flag)
        kept.append(rows)
    return kept
