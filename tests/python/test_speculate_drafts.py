"""Drafts, the closed loop and the driver of lamina.speculate, on a model that is a table of next tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from lamina import SampleFlag
from lamina.kv import PagedCache
from lamina.speculate import (
    ClosedLoop,
    DraftModel,
    FixedWidth,
    PromptLookup,
    Proposal,
    Request,
    Rows,
    Running,
    decode,
)
from lamina.speculate.closed_loop import Seconds, Step

VOCAB = 50


class Table:
    """The logits of the token after t are -|id - (t + 3)|: t + 3 first, then t + 2 and t + 4, ...

    seconds  grows by what a call costs: `fixed`, and `per_row` for each row
    """

    def __init__(self, fixed: float = 1.0, per_row: float = 0.0, step: int = 3) -> None:
        self.cache = PagedCache(1, 200, 4, 1, 8, dtype=torch.float32)
        self.fixed, self.per_row, self.step, self.seconds = fixed, per_row, step, 0.0
        self.calls: list[list[tuple[int, int]]] = []  # (token, position) of each row
        self.poison: int | None = None  # a token after which logits are NaN

    def logits(self, rows: Rows) -> Tensor:
        assert len(rows.tokens) == len(rows.positions) == len(rows.slots) == rows.batch.cu_seqlens_q[-1]
        self.seconds += self.fixed + self.per_row * len(rows.tokens)
        self.calls.append(list(zip(rows.tokens.tolist(), rows.positions.tolist(), strict=True)))
        tokens = rows.tokens if rows.keep is None else rows.tokens[rows.keep]
        wanted = (tokens + self.step) % VOCAB
        logits = -(torch.arange(VOCAB) - wanted[:, None] + 0.25).abs()
        if self.poison is not None:
            logits[tokens == self.poison] = torch.nan
        return logits


class Guess:
    """Chains that are right for `good` of the drafts and then wrong. They cost `seconds` each."""

    parents = None

    def __init__(self, model: Table, good: int, seconds: float = 0.0) -> None:
        self.model, self.good, self.cost = model, good, seconds

    def propose(self, running: Sequence[Running], widths: Sequence[int]) -> Proposal:
        self.model.seconds += self.cost * max(widths)
        return Proposal(
            [
                [(one.tokens[-1] + 3 * (i + 1) + (i >= self.good)) % VOCAB for i in range(width)]
                for one, width in zip(running, widths, strict=True)
            ]
        )

    def forget(self, running: Running) -> None:
        pass


def running(tokens: list[int]) -> Running:
    return Running(Request(tokens, 30), 0)


def counted(first: int, count: int) -> list[int]:
    return [(first + 3 * i) % VOCAB for i in range(1, count + 1)]


@pytest.mark.parametrize(
    ("tokens", "n", "width", "want"),
    [
        ([1, 2, 3, 9, 1, 2], 3, 4, [3, 9, 1, 2]),
        ([1, 2, 3, 1, 2, 4, 1, 2], 2, 2, [4, 1]),  # the last place, not the first
        ([7, 2, 5, 8, 2, 6, 7, 2], 2, 1, [5]),  # two tokens before one, though 2 is followed by 6 later
        ([1, 2, 3, 4], 3, 4, []),
        ([4, 4, 4], 3, 3, [4, 4, 4]),  # into the guess itself
        ([8, 1, 2, 1, 2], 3, 5, [1, 2, 1, 2, 1]),
        ([5], 3, 4, []),
        ([1, 2, 3, 1], 3, 0, []),
    ],
)
def test_prompt_lookup(tokens: list[int], n: int, width: int, want: list[int]) -> None:
    assert PromptLookup(n).propose([running(tokens)], [width]).tokens == [want]


def test_prompt_lookup_reads_what_was_accepted() -> None:
    draft, one, whole = PromptLookup(2), running([1, 2, 3]), [1, 2, 3, 1, 5, 2, 3, 1, 5]
    for end in range(3, len(whole) + 1):
        one.tokens = whole[:end]
        again = PromptLookup(2).propose([running(whole[:end])], [3]).tokens
        assert draft.propose([one], [3]).tokens == again
    draft.forget(one)
    assert not draft._places
    assert PromptLookup(3, least=2).propose([running([1, 2, 3, 1])], [3]).tokens == [[]]


def test_a_chain_of_a_draft_model() -> None:
    model = Table()
    draft, a, b = DraftModel(model), running([1, 2]), running([9])
    assert draft.propose([a, b], [3, 1]) == Proposal([[5, 8, 11], [12]])
    assert model.calls == [[(1, 0), (2, 1), (9, 0)], [(5, 2)], [(8, 3)]]
    model.calls.clear()
    a.tokens += [5, 7]  # 5 was accepted, 8 was not
    assert draft.propose([a, b], [2, 0]).tokens == [[10, 13], []]
    assert model.calls == [[(7, 3)], [(10, 4)]]
    draft.forget(a)
    draft.forget(b)
    assert model.cache.free_pages == model.cache.pages


def test_a_tree_of_a_draft_model() -> None:
    model = Table()
    draft, one = DraftModel(model, (0, 0, 1, 1, 2, 4)), running([1, 2])
    # After 2 come 5 and 4, after 5 come 8 and 7, after 4 comes 7, after draft 4, which is 7, comes 10.
    want = Proposal([[5, 4, 8, 7, 7, 10]], [[0, 0, 1, 1, 2, 4]])
    assert draft.propose([one], [6]) == want
    assert model.calls == [[(1, 0), (2, 1)], [(5, 2), (4, 2)], [(7, 3)]]
    assert len(model.cache.sequences) == 1
    model.calls.clear()
    one.tokens += [4, 7, 1]
    assert draft.propose([one], [1]) == Proposal([[4]], [[0]])
    assert model.calls == [[(4, 2), (7, 3), (1, 4)]]


def test_a_tree_keeps_the_path_that_the_cache_of_the_draft_has() -> None:
    model = Table()
    draft, one = DraftModel(model, (0, 0, 1, 3)), running([1, 2])
    draft.propose([one], [4])
    model.calls.clear()
    one.tokens += [5, 8, 30]
    draft.propose([one], [4])
    assert model.calls[0] == [(30, 4)]


def test_sampled_chains_have_the_distribution_of_the_draft() -> None:
    model = Table()
    requests = [Request([1, 2], 9, temperature=0.5, seed=3), Request([9], 9), Request([4], 9, temperature=2)]
    batch = [Running(request, 0) for request in requests]
    found = DraftModel(model, sampled=True).propose(batch, [2, 1, 0])
    assert found.probs is not None and found.probs.shape == (3 + 2 + 1, VOCAB)
    first = found.tokens[0][0]
    for row, (token, heat) in {0: (2, 0.5), 1: (first, 0.5)}.items():
        want = (-(torch.arange(VOCAB) - (token + 3) % VOCAB + 0.25).abs() / heat).softmax(-1)
        torch.testing.assert_close(found.probs[row], want)
    assert found.probs[2:].count_nonzero() == 0
    assert found.tokens[1] == [12] and found.tokens[2] == []


@pytest.mark.parametrize("parents", [None, (0, 1, 0, 2)])
def test_the_driver_counts(parents: tuple[int, ...] | None) -> None:
    model, other = Table(), Table()
    requests = [Request([1, 2], 9), Request([7], 4), Request([8], 1)]
    found = decode(model, requests, DraftModel(other, parents), width=4, clock=lambda: model.seconds)
    assert found.tokens == [counted(2, 9), counted(7, 4), counted(8, 1)]
    # In the first request a chain keeps 4 and 2 drafts, and the tree 3 and 2: then one more token is allowed,
    # which needs no draft. The second request keeps 2 drafts: then it has its 4 tokens.
    chain = parents is None
    assert found.accepted == (4 + 2 + 2 if chain else 3 + 2 + 2)
    assert found.drafted == (4 + 2 + 2 if chain else 4 + 3 + 2)
    assert found.steps == (2 if chain else 3) and found.widths == {4: found.steps}
    assert found.verify_s == found.steps and found.prompt_s == 1 and found.draft_s == 0


def test_a_request_with_nan_ends_and_others_go_on() -> None:
    for draft in (None, Guess(Table(), 9)):
        model = Table()
        model.poison = 11
        found = decode(model, [Request([2], 9), Request([3], 6)], draft, width=2)
        assert found.tokens == [[5, 8, 11], counted(3, 6)]
        assert found.flags == [SampleFlag.NOT_FINITE, SampleFlag.NONE]


def test_no_requests() -> None:
    assert decode(Table(), []).tokens == []


def test_seconds_are_interpolated() -> None:
    seconds = Seconds()
    assert seconds.estimate(3) == 0
    seconds.add(2, 1.0)
    seconds.add(6, 3.0)
    assert [seconds.estimate(size) for size in (1, 2, 3, 6, 9)] == [1, 1, 1.5, 3, 3]
    seconds.add(2, 2.0)
    assert seconds.estimate(2) == 1.5


def test_acceptance_is_averaged_by_rank() -> None:
    loop = ClosedLoop(memory=0.5)
    # Rows: 0 with children 1, 2; 1 with children 3, 4. Kept: 0, 1, 4.
    loop.observe(Step(4, 5, 1.0, 1.0, [[0, 0, 1, 1]], [[0, 1, 4]]))
    assert loop.acceptance == [(0.5 * 0.5 + 0.5) * 0.5, (0.25 * 0.5) * 0.5 + 0.5]
    p, q = loop.acceptance
    assert loop._expected([0, 0, 1, 1]) == pytest.approx([0, p, p + q, p + q + p * p, p + q + p * p + p * q])


@pytest.mark.parametrize(
    ("per_row", "good", "cost", "most_used"),
    [
        (0.0, 8, 0.0, 6),  # all are accepted, and rows are free
        (0.0, 2, 0.0, None),  # more than 2 are free as well
        (1.0, 0, 0.0, 0),  # none is accepted, and rows cost
        (0.5, 0, 0.5, 0),
        (0.02, 8, 1.2, 0),  # the draft costs more than the model
    ],
)
def test_the_closed_loop_finds_the_width(
    per_row: float, good: int, cost: float, most_used: int | None
) -> None:
    model = Table(1.0, per_row)
    loop = ClosedLoop(6, retry=50)
    found = decode(
        model, [Request([1], 400), Request([2], 300)], Guess(model, good, cost), width=loop,
        clock=lambda: model.seconds,
    )  # fmt: skip
    assert found.tokens == [counted(1, 400), counted(2, 300)]
    if most_used is not None:
        assert found.widths[most_used] > 0.7 * found.steps
    plain = 400 * (1 + per_row) + 300 * per_row  # seconds
    assert model.seconds < (1.02 if most_used == 0 else 0.5) * plain  # trying costs something


@pytest.mark.parametrize("budget", [0.0, 0.05])
@pytest.mark.parametrize("answer", [20, 400])
def test_the_closed_loop_loses_no_more_than_its_budget(answer: int, budget: float) -> None:
    """Where a row costs as much as a step, and the guess that one draft is free costs a whole step."""
    model, loop = Table(0.0, 1.0), ClosedLoop(6, retry=2, budget=budget)
    decode(
        model, [Request([1], answer)], Guess(model, 0, 0.1), width=loop, clock=lambda: model.seconds
    )  # fmt: skip
    plain = answer - 1  # seconds of the steps after the prompt
    lost = model.seconds - answer
    assert 0 < lost <= budget * plain + 0.5 + 7.1  # a step of seven rows may be the one that exceeds it
    assert loop.lost == pytest.approx(lost)


def test_the_cost_of_drafting_counts() -> None:
    """Also where the budget still allows drafts, all of which were accepted."""
    loop = ClosedLoop(1, budget=1.0)
    loop.observe(Step(0, 1, 0.0, 1.0, [[]], [[0]]))
    for _ in range(2):  # the cost of the first draft after a plain step is not typical
        loop.observe(Step(1, 2, 5.0, 1.0, [[0]], [[0, 1]]))
    assert loop.choose(1, [0]) == 0
    assert loop.drafting.estimate(1) == 5.0


def test_the_closed_loop_tries_one_more_draft_at_a_time() -> None:
    """Also where all drafts are accepted: a width that is too large costs much where rows are dear."""
    loop, used = ClosedLoop(4), []
    for _ in range(6):
        width = loop.choose(1, range(4))
        used.append(width)
        loop.observe(Step(width, 1 + width, 0.0, 1.0, [range(width)], [range(width + 1)]))
    assert used == [0, 1, 2, 3, 4, 4]


def test_speculation_comes_back_when_it_pays_again() -> None:
    model = Table(1.0, 0.3)
    draft, loop = Guess(model, 0), ClosedLoop(4, retry=8)
    clock = lambda: model.seconds  # noqa: E731
    decode(model, [Request([1], 200)], draft, width=loop, clock=clock)
    first = decode(model, [Request([1], 200)], draft, width=loop, clock=clock)
    assert first.widths[0] > 0.8 * first.steps
    draft.good = 9
    decode(model, [Request([1], 400)], draft, width=loop, clock=clock)
    later = decode(model, [Request([1], 200)], draft, width=loop, clock=clock)
    assert later.widths[4] > 0.6 * later.steps and later.accepted > 100


ERRORS: dict[str, tuple[Any, str]] = {
    "n": (lambda: PromptLookup(0), "PromptLookup: n = 0; must be at least 1"),
    "least": (lambda: PromptLookup(2, least=0), "PromptLookup: least = 0; must be at least 1"),
    "order": (lambda: PromptLookup(2, least=3), "PromptLookup: n = 2; must be at least 3"),
    "parents": (lambda: DraftModel(Table(), (0, 2)), r"parents\[1\] = 2; must be from 0 to 1"),
    "sampled": (lambda: DraftModel(Table(), [0], sampled=True), "sampled = True; must be False with parents"),
    "width": (lambda: FixedWidth(-1), "FixedWidth: most = -1; must be at least 0"),
    "width of decode": (lambda: decode(Table(), [], width=-2), "most = -2; must be at least 0"),
    "most": (lambda: ClosedLoop(0), "ClosedLoop: most = 0; must be at least 1"),
    "retry": (lambda: ClosedLoop(retry=1), "ClosedLoop: retry = 1; must be at least 2"),
    "budget": (lambda: ClosedLoop(budget=-0.1), "ClosedLoop: budget = -0.1; must be from 0 to 1"),
    "memory": (lambda: ClosedLoop(memory=1.0), "ClosedLoop: memory = 1.0; must be at least 0 and below 1"),
    "prompt": (lambda: Request([], 1), r"Request: prompt = \[\]; must have at least one token"),
    "new tokens": (lambda: Request([1], 0), "Request: max_new_tokens = 0; must be at least 1"),
    "heat": (lambda: Request([1], 1, temperature=-1.0), "temperature = -1.0; must be finite and at least 0"),
    "top_p": (lambda: Request([1], 1, top_p=0.0), "top_p = 0.0; must be above 0 and at most 1"),
    "min_p": (lambda: Request([1], 1, min_p=1.5), "min_p = 1.5; must be from 0 to 1"),
}


@pytest.mark.parametrize(("make", "message"), ERRORS.values(), ids=ERRORS)
def test_errors(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
