"""Drafts: cheap guesses of the next tokens of each request, and prompt lookup."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from lamina.speculate.request import Running


class Proposal(NamedTuple):
    """The drafts of a step.

    tokens   for each request its drafts, without the root; there may be none
    parents  for each request the rows after which its drafts follow: 0 is the root, i the i-th draft. None:
             all requests have chains
    probs    [rows, vocab]  f32: draft_probs of verify_draft, with a row for each root and each draft. None:
             no draft was drawn at random
    """

    tokens: list[list[int]]
    parents: list[list[int]] | None = None
    probs: Tensor | None = None


class Draft(Protocol):
    """A way to guess tokens.

    A draft is told what was accepted by the tokens of a request: they end with the accepted drafts and the
    bonus token of the step before.

    parents  the rows after which the first, second, ... draft of a request follows, as in Proposal: as many
             drafts as asked for are the first ones of this tree. None: a chain
    """

    parents: tuple[int, ...] | None

    def propose(self, running: Sequence[Running], widths: Sequence[int]) -> Proposal:
        """At most widths[i] drafts for running[i]."""

    def forget(self, running: Running) -> None:
        """The request has ended."""


class PromptLookup:
    """Guesses that a request goes on as it did after the last place where it had the same n tokens.

    n  the most tokens that are compared; if they have no earlier place, n - 1 are compared, down to `least`

    A guess may go beyond the known tokens, into the guesses themselves, so that a text that repeats itself
    gives as many drafts as are asked for.
    """

    parents: tuple[int, ...] | None = None

    def __init__(self, n: int = 3, *, least: int = 1) -> None:
        for name, value, bound in (("least", least, 1), ("n", n, least)):
            if value < bound:
                raise ValueError(f"lamina.speculate.PromptLookup: {name} = {value}; must be at least {bound}")
        self.n, self.least = n, least
        self._places: dict[Running, _Places] = {}

    def propose(self, running: Sequence[Running], widths: Sequence[int]) -> Proposal:
        """The tokens after the last place of the same n tokens; none where there is no such place."""
        return Proposal([self._guess(one, width) for one, width in zip(running, widths, strict=True)])

    def forget(self, running: Running) -> None:
        """Drops the places of a request."""
        self._places.pop(running, None)

    def _guess(self, running: Running, width: int) -> list[int]:
        tokens = running.tokens
        places = self._places.setdefault(running, _Places())
        for end in range(places.seen, len(tokens)):  # those before the last token have a next token
            for size in range(self.least, min(self.n, end) + 1):
                places.next[tuple(tokens[end - size : end])] = end
        places.seen = len(tokens)
        for size in range(min(self.n, len(tokens)), self.least - 1, -1):
            at = places.next.get(tuple(tokens[-size:]))
            if at is not None:
                distance = len(tokens) - at
                return [tokens[at + i % distance] for i in range(width)]
        return []


class _Places:
    """next: some tokens -> the index of the token after their last place. seen: how many tokens were read."""

    def __init__(self) -> None:
        self.next: dict[tuple[int, ...], int] = {}
        self.seen = 1
