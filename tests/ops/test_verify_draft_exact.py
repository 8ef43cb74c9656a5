"""The tokens of verify_draft have exactly the distribution of the target: by enumeration, and by chi-squared.

For every draft that can be drawn and every decision, the reference adds up the probability of the result. Its
rational form must give the target exactly, and its integer form, which test_verify_draft.py compares to the
op, must give it to within the documented rounding.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from fractions import Fraction

import pytest
import torch

import lamina
from tests.reference import sample as reference
from tests.reference.sample import Every, Exact, Request, Steps, outcomes
from tests.support.backends import Backend, cpu_backends
from tests.support.cases import generator
from tests.support.sample_cases import INT32

Table = dict[tuple[int, ...], list[int]]  # weights of the next token after some tokens
CPU = pytest.mark.parametrize("backend", cpu_backends("sample"))
CHAINS = [(vocab, k) for vocab in range(2, 9) for k in range(4) if vocab**k <= 512]
TREES = [
    (4, [-1, 0, 0]), (4, [-1, 0, 0, 0]), (3, [-1, 0, 0, 1, 1]), (3, [-1, 0, 1, 0, 2]),
    (2, [-1, 0, 0, 1, 1, 2, 2]), (8, [-1, 0, 0, 0]), (3, [-1, 0, 0, 0, 1, 2, 3]),
]  # fmt: skip


def table(name: str, vocab: int, depth: int, most: int) -> Table:
    """Random weights with zeros, after every sequence of fewer than `depth` tokens."""
    r, found = random.Random(f"{name} {vocab} {depth}"), {}
    for length in range(depth):
        for tokens in itertools.product(range(vocab), repeat=length):
            row = [r.randrange(most + 1) * (r.random() < 0.8) for _ in range(vocab)]
            row[r.randrange(vocab)] += 1
            found[tokens] = row
    return found


def draws(q: list[int], count: int) -> Iterator[tuple[list[int], Fraction]]:
    """Every list of `count` tokens drawn without replacement, with its probability.

    Where no weight is left, the last token follows.
    """
    if count == 0:
        yield [], Fraction(1)
        return
    for x, weight in enumerate(q):
        if weight > 0:
            rest = [0 if j == x else y for j, y in enumerate(q)]
            for more, chance in draws(rest, count - 1):
                yield [x, *more], chance * Fraction(weight, sum(q))
    if sum(q) == 0:
        yield [len(q) - 1] * count, Fraction(1)


def drafts_of(parents: list[int], q: Table) -> Iterator[tuple[dict[int, tuple[int, ...]], Fraction]]:
    """Every draft tree, as the tokens from below the root to each node, with its probability."""

    def grow(
        node: int, paths: dict[int, tuple[int, ...]]
    ) -> Iterator[tuple[dict[int, tuple[int, ...]], Fraction]]:
        if node == len(parents):
            yield paths, Fraction(1)
            return
        children = [c for c in range(len(parents)) if parents[c] == node]
        for tokens, chance in draws(q[paths[node]], len(children)):
            more = {c: (*paths[node], x) for c, x in zip(children, tokens, strict=True)}
            for grown, its in grow(node + 1, paths | more):
                yield grown, chance * its

    yield from grow(0, {0: ()})


def values(name: str, p: Table, vocab: int, depth: int) -> dict[tuple[int, ...], Fraction]:
    """A random number for every sequence of `depth` tokens, and for shorter ones the mean over how p goes on.

    If two distributions of sequences differ, so do, almost surely, the means of these numbers.
    """
    r = random.Random(name)
    mean = {t: Fraction(r.randrange(2**40), 2**40) for t in itertools.product(range(vocab), repeat=depth)}
    for length in reversed(range(depth)):
        for t in itertools.product(range(vocab), repeat=length):
            mean[t] = sum((w * mean[(*t, x)] for x, w in enumerate(p[t])), Fraction(0)) / sum(p[t])
    return mean


def mean_of_results(
    parents: list[int], paths: dict[int, tuple[int, ...]], mean: Callable[[tuple[int, ...]], Fraction],
    p: Table, q: Table | None, arithmetic: Exact | Steps,
) -> Fraction:  # fmt: skip
    """The mean value of the tokens for one draft, over all decisions."""
    number = Fraction if isinstance(arithmetic, Exact) else int

    def weights(of: Table) -> Callable[[int], list[Fraction | int] | int]:
        return lambda node: [number(x) for x in of[paths[node]]]

    drafts = [paths[i][-1] if i else -1 for i in range(len(parents))]
    request = Request(drafts, weights(p), None if q is None else weights(q), parents)

    def program(every: Every) -> list[int]:
        return reference.verify_draft(request, every, arithmetic).tokens

    return sum((chance * mean(tuple(tokens)) for tokens, chance in outcomes(program)), Fraction(0))


def check(vocab: int, parents: list[int]) -> None:
    depths = [0]
    for parent in parents[1:]:
        depths.append(depths[parent] + 1)
    depth = max(depths) + 1
    for arithmetic, scale in ((Exact(), 6), (Steps(), 2**40)):
        p, q = table("p", vocab, depth, scale), table("q", vocab, depth, scale)
        mean = values("values", p, vocab, depth)
        total, with_q = Fraction(0), Fraction(0)
        for paths, chance in drafts_of(parents, q):
            total += chance
            with_q += chance * mean_of_results(parents, paths, mean.__getitem__, p, q, arithmetic)
            without_q = mean_of_results(parents, paths, mean.__getitem__, p, None, arithmetic)
            assert without_q == mean[()], "drafts without probabilities, whatever they are"
        assert total == 1
        if isinstance(arithmetic, Exact):
            assert with_q == mean[()]
        else:
            assert abs(with_q - mean[()]) < Fraction(1, 2**34)


@pytest.mark.parametrize(("vocab", "k"), CHAINS)
def test_chains_are_exact(vocab: int, k: int) -> None:
    check(vocab, list(range(-1, k)))


@pytest.mark.parametrize(("vocab", "parents"), TREES, ids=str)
def test_trees_are_exact(vocab: int, parents: list[int]) -> None:
    check(vocab, parents)


@pytest.mark.parametrize("change", ["accept all", "keep p", "keep q"])
def test_the_enumeration_notices_a_wrong_step(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if change == "accept all":
        monkeypatch.setattr(Every, "accept", lambda *_: True)
    elif change == "keep p":
        monkeypatch.setattr(Exact, "residual", lambda _, p, q: p)
    else:
        monkeypatch.setattr(
            Exact, "residual", lambda _, p, q: [x * (y == 0) for x, y in zip(p, q, strict=True)]
        )
    with pytest.raises(AssertionError):
        check(4, [-1, 0, 0])


P = torch.tensor([[0.3, -1.0, 0.0, 2.0, 1.9, -3.0, 0.7, 1.2], [1.0, 1.0, -2.0, 0.5, -1.0, 2.0, 0.0, -0.5]])
Q = torch.tensor([[1.0, 0.5, 0.0, 1.0, 2.5, -1.0, -2.0, 0.0], [0.0, 2.0, 0.0, 0.5, -1.0, 1.0, -3.0, 0.7]])


def chi_squared(counts: torch.Tensor, p: torch.Tensor) -> float:
    expected = p.double() * counts.sum()
    return float(((counts.double() - expected).square() / expected).sum())


@CPU
def test_a_million_chains(backend: Backend) -> None:
    """Two drafts, drawn by sample_tokens with the seeds and offsets of verify_draft; pairs are counted."""
    counts, batch = torch.zeros(8, 8, dtype=torch.int64), 250_000
    p = torch.cat([P, P[:1]])
    with backend.active() as ops:
        for seed in range(4):
            base, key = torch.arange(batch) * 4 + seed * batch * 4, torch.tensor([seed])
            drafts = [ops.sample_tokens(Q[i].expand(batch, 8), seed=key, offset=base + i)[0] for i in (0, 1)]
            tokens, accepted, *_ = ops.verify_draft(
                p.repeat(batch, 1), torch.stack([drafts[0], *drafts], 1).view(-1),
                torch.arange(0, 3 * batch + 1, 3, dtype=INT32), 3,
                draft_probs=torch.cat([Q, Q[:1]]).softmax(1).repeat(batch, 1), seed=key, offset=base,
            )  # fmt: skip
            following, _ = ops.sample_tokens(P[1].expand(batch, 8), seed=key, offset=base + 1)
            second = torch.where(accepted > 0, tokens[:, 1], following)
            counts.view(-1).index_add_(
                0, tokens[:, 0].long() * 8 + second, torch.ones(batch, dtype=torch.int64)
            )
            assert 0.5 < float((accepted > 0).double().mean()) < 0.8
    joint = P[0].double().softmax(0)[:, None] * P[1].double().softmax(0)
    assert chi_squared(counts, joint) < 132  # 63 degrees of freedom; a right op exceeds this once in 10^6


@CPU
def test_a_million_trees(backend: Backend) -> None:
    """Three children of the root, drawn without replacement."""
    counts, batch = torch.zeros(8, dtype=torch.int64), 250_000
    q = Q[0].softmax(0)
    with backend.active() as ops:
        for seed in range(4):
            drafts = torch.multinomial(q.expand(batch, 8), 3, generator=generator(f"trees {seed}"))
            tokens, accepted, *_ = ops.verify_draft(
                P[0].expand(4 * batch, 8), torch.cat([drafts[:, :1], drafts], 1).view(-1),
                torch.arange(0, 4 * batch + 1, 4, dtype=INT32), 4,
                parents=torch.tensor([-1, 0, 0, 0], dtype=INT32).repeat(batch),
                draft_probs=q.expand(4 * batch, 8), seed=torch.arange(batch), offset=torch.tensor([seed]),
            )  # fmt: skip
            counts += tokens[:, 0].bincount(minlength=8)
            assert float((accepted > 0).double().mean()) > 0.8
    assert chi_squared(counts, P[0].double().softmax(0)) < 42  # 7 degrees of freedom


def test_the_mean_of_a_request_alone() -> None:
    """The flags that the tests above do not look at."""
    got = lamina.verify_draft(
        P[:1], torch.tensor([0]), torch.tensor([0, 1], dtype=INT32), 1, draft_probs=Q[:1].softmax(1),
        seed=torch.tensor([1]), offset=torch.tensor([1]),
    )  # fmt: skip
    assert got.flags.tolist() == [0] and got.num_accepted.tolist() == [0]
