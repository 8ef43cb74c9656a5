"""How many tokens to draft in each step: a fixed number, or one that measured times and acceptance decide."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple, Protocol

NAME = "lamina.speculate.ClosedLoop"


class Step(NamedTuple):
    """A step, as it was measured.

    width     the drafts of a request that the step was allowed
    rows      the rows that the model verified, roots and drafts of all requests
    draft_s   seconds of drafting
    verify_s  seconds of the model and of the choice of tokens
    parents   for each request the parent rows of its drafts
    accepted  for each request the rows that were kept: 0, then its accepted drafts
    """

    width: int
    rows: int
    draft_s: float
    verify_s: float
    parents: Sequence[Sequence[int]]
    accepted: Sequence[Sequence[int]]


class Width(Protocol):
    """Chooses how many tokens to draft."""

    most: int

    def choose(self, requests: int, parents: Sequence[int]) -> int:
        """The drafts of a request in the next step, from 0 to len(parents), for a tree with these parents."""

    def observe(self, step: Step) -> None:
        """Learns from a step."""


class FixedWidth:
    """The same number of drafts in each step."""

    def __init__(self, most: int) -> None:
        if most < 0:
            raise ValueError(f"lamina.speculate.FixedWidth: most = {most}; must be at least 0")
        self.most = most

    def choose(self, requests: int, parents: Sequence[int]) -> int:
        """That number, or the nodes of the tree if they are fewer."""
        return len(parents)

    def observe(self, step: Step) -> None:
        """Learns nothing."""


class ClosedLoop:
    """The width with the most expected tokens for each second, from 0 (plain decoding) to `most`.

    most    drafts of a request
    retry   every so many steps another width is tried, so that one whose time or whose acceptance has changed
            can come back: the next best where plain decoding is the best, else the least recently used
    memory  weight of what was known before in the averages of acceptance, at least 0 and below 1
    budget  the part of all seconds that drafts may lose against plain decoding, besides half a plain step.
            While they have lost more, steps are plain

    The time of verifying is averaged for each number of rows, that of drafting for each width; between
    measured numbers it is interpolated, and beyond the largest it is taken to be the same, so that a larger
    width is tried, by one more draft at a time. Half of each new time enters its average. Acceptance is
    averaged for each rank: the chance that the first, second, ... child of an accepted row is accepted. It is
    1/2, 1/4, ... at first, which counts as two observations until `memory` has forgotten it. A step with
    drafts has lost the seconds that it took beyond those of plain steps with as many tokens; gains are
    negative losses.
    """

    def __init__(self, most: int = 8, *, retry: int = 64, memory: float = 0.9, budget: float = 0.01) -> None:
        for name, value, ok, allowed in (
            ("most", most, most >= 1, "at least 1"),
            ("retry", retry, retry >= 2, "at least 2"),
            ("memory", memory, 0 <= memory < 1, "at least 0 and below 1"),
            ("budget", budget, 0 <= budget <= 1, "from 0 to 1"),
        ):
            if not ok:
                raise ValueError(f"{NAME}: {name} = {value}; must be {allowed}")
        self.most, self.retry, self.memory, self.budget = most, retry, memory, budget
        self.seconds = self.lost = 0.0
        self.acceptance: list[float] = []
        self._seen: list[int] = []  # observations of each rank
        self.verifying, self.drafting = Seconds(), Seconds()
        self._steps = 0
        self._used: dict[int, int] = {}  # width -> the step that used it last

    def choose(self, requests: int, parents: Sequence[int]) -> int:
        """The width for a batch. The first step is plain: it measures the cost of no drafts."""
        plain = self.verifying.estimate(requests)
        if not self._steps or self.lost > self.budget * self.seconds + plain / 2:
            return 0
        accepted = self._expected(parents)

        def tokens_per_second(width: int) -> float:
            seconds = self.verifying.estimate(requests * (1 + width))
            seconds += self.drafting.estimate(width) if width else 0
            return requests * (1 + accepted[width]) / max(seconds, 1e-9)

        reach = min(len(parents), max(self._used) + 1)
        best, *others = sorted(range(reach + 1), key=tokens_per_second, reverse=True)
        if self._steps % self.retry or not others:
            return best
        return others[0] if best == 0 else min(others, key=lambda width: self._used.get(width, -1))

    def observe(self, step: Step) -> None:
        """Averages the times and the acceptance of a step."""
        self.verifying.add(step.rows, step.verify_s)
        was_plain = self._used.get(0) == self._steps
        self._steps += 1
        self._used[step.width] = self._steps
        drafts = max(map(len, step.parents))
        self.seconds += step.draft_s + step.verify_s
        if step.width:
            plain = self.verifying.estimate(len(step.parents)) / len(step.parents)
            self.lost += step.draft_s + step.verify_s - plain * sum(map(len, step.accepted))
        if drafts and not was_plain:  # after a plain step a draft model also reads what it has missed
            self.drafting.add(drafts, step.draft_s)
        for parents, kept in zip(step.parents, step.accepted, strict=True):
            for row in kept:
                children = [child for child, parent in enumerate(parents, 1) if parent == row]
                for rank, child in enumerate(children):
                    old = self._acceptance(rank)
                    self._seen[rank] += 1
                    new = max(1 - self.memory, 1 / (2 + self._seen[rank]))
                    self.acceptance[rank] = old * (1 - new) + (child in kept) * new

    def _expected(self, parents: Sequence[int]) -> list[float]:
        """The expected number of accepted drafts of a request, for each width."""
        reached, ranks, total = [1.0], [0] * (len(parents) + 1), [0.0]
        for parent in parents:
            reached.append(reached[parent] * self._acceptance(ranks[parent]))
            ranks[parent] += 1
            total.append(total[-1] + reached[-1])
        return total

    def _acceptance(self, rank: int) -> float:
        while len(self.acceptance) <= rank:
            self.acceptance.append(0.5 ** (len(self.acceptance) + 1))
            self._seen.append(0)
        return self.acceptance[rank]


class Seconds:
    """Averages of the seconds that work of some sizes takes."""

    def __init__(self) -> None:
        self._of: dict[int, float] = {}

    def add(self, size: int, seconds: float) -> None:
        """Averages a measurement in."""
        self._of[size] = (self._of.get(size, seconds) + seconds) / 2

    def estimate(self, size: int) -> float:
        """The seconds of a size, interpolated; outside of the measured sizes those of the next one."""
        known = sorted(self._of)
        at = bisect_left(known, size)
        if not known:
            return 0.0
        if at == len(known) or at == 0:
            return self._of[known[min(at, len(known) - 1)]]
        low, high = known[at - 1], known[at]
        part = (size - low) / (high - low)
        return self._of[low] * (1 - part) + self._of[high] * part
