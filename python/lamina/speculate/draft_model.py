"""A second, cheaper model that guesses the tokens of the first one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lamina.ops import sample_tokens
from lamina.speculate.drafts import Proposal
from lamina.speculate.request import Running, parameters
from lamina.speculate.rows import Model, run

NAME = "lamina.speculate.DraftModel"


class DraftModel:
    """Guesses of a model with a cache of its own: another model, or the same one in fewer bits.

    model    has the vocabulary of the model whose tokens it guesses
    parents  None: a chain, each token the most probable one after that before it. Else a static tree: draft i
             follows row parents[i - 1], with 0 for the root, and siblings are the most probable tokens after
             their parent, the most probable first. Only drafts with children go through the model
    sampled  the chain is drawn at random, at the temperature of the request and without its filters, and is
             verified by its probabilities. Not with parents
    """

    def __init__(self, model: Model, parents: Sequence[int] | None = None, *, sampled: bool = False) -> None:
        if parents is not None and sampled:
            raise ValueError(f"{NAME}: sampled = True; must be False with parents")
        for at, parent in enumerate(parents or ()):
            if not 0 <= parent <= at:
                raise ValueError(
                    f"{NAME}: parents[{at}] = {parent}; must be from 0 to {at}, a row before draft {at + 1}"
                )
        self.model, self.sampled = model, sampled
        self.parents = None if parents is None else tuple(parents)
        self._cached: dict[Running, _Cached] = {}

    def propose(self, running: Sequence[Running], widths: Sequence[int]) -> Proposal:
        """The drafts of the model, which first reads the tokens that it has not seen."""
        trees = [list((self.parents or range(width))[:width]) for width in widths]
        guesses = _Guesses(running, trees)
        branches = [self._root(i, one) for i, one in enumerate(running) if trees[i]]
        forks: list[int] = []
        try:
            while branches:
                logits = run(self.model, [b.seq for b in branches], [b.fed for b in branches], only_last=True)
                for branch in branches:
                    cached = self._cached[running[branch.of]]
                    if branch.seq == cached.seq:
                        cached.tokens.extend(branch.fed)
                if self.sampled:
                    guesses.draw(branches, logits)
                else:
                    guesses.take_most_probable(branches, logits)
                branches = [below for branch in branches for below in self._below(branch, guesses, forks)]
        finally:
            for seq in forks:
                self.model.cache.free(seq)
        return Proposal(guesses.tokens, None if self.parents is None else trees, guesses.probs)

    def forget(self, running: Running) -> None:
        """Frees the sequence of a request."""
        if cached := self._cached.pop(running, None):
            self.model.cache.free(cached.seq)

    def _root(self, of: int, running: Running) -> _Branch:
        """The branch of the root of a request, whose sequence keeps the tokens that are still right."""
        cached = self._cached.get(running)
        if cached is None:
            cached = self._cached[running] = _Cached(self.model.cache.new(), [])
        pairs = zip(cached.tokens, running.tokens[:-1], strict=False)
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        same = min(len(cached.tokens), len(running.tokens) - 1) if same is None else same
        self.model.cache.truncate(cached.seq, same)
        del cached.tokens[same:]
        return _Branch(of, 0, cached.seq, running.tokens[same:])

    def _below(self, branch: _Branch, guesses: _Guesses, forks: list[int]) -> list[_Branch]:
        """Branches for those children of a branch that have children. The first one keeps the sequence."""
        children = guesses.children[branch.of]
        grown: list[_Branch] = []
        for row in children[branch.row]:
            if children[row]:
                seq = branch.seq
                if grown:
                    seq = self.model.cache.fork(seq)
                    forks.append(seq)
                grown.append(_Branch(branch.of, row, seq, [guesses.tokens[branch.of][row - 1]]))
        return grown


class _Cached(NamedTuple):
    """A sequence in the cache of the draft, and its tokens."""

    seq: int
    tokens: list[int]


class _Branch(NamedTuple):
    """A row of request `of` that goes through the model as the last of the tokens `fed` to a sequence."""

    of: int
    row: int
    seq: int
    fed: list[int]


class _Guesses:
    """The drafts of a step while they are made.

    tokens    for each request, those of its drafts
    children  for each request and row, the rows of its children
    """

    def __init__(self, running: Sequence[Running], trees: list[list[int]]) -> None:
        self.running, self.trees = running, trees
        self.tokens = [[0] * len(tree) for tree in trees]
        self.children: list[list[list[int]]] = [[[] for _ in range(len(tree) + 1)] for tree in trees]
        for tree, children in zip(trees, self.children, strict=True):
            for row, parent in enumerate(tree, 1):
                children[parent].append(row)
        self.probs: Tensor | None = None

    def take_most_probable(self, branches: list[_Branch], logits: Tensor) -> None:
        """The children of each branch are the most probable tokens."""
        most = max(len(self.children[b.of][b.row]) for b in branches)
        for branch, best in zip(branches, logits.topk(most).indices.tolist(), strict=True):
            for row, token in zip(self.children[branch.of][branch.row], best, strict=False):
                self.tokens[branch.of][row - 1] = token

    def draw(self, branches: list[_Branch], logits: Tensor) -> None:
        """The child of each branch is drawn. The distribution becomes the row of the branch in `probs`."""
        given = parameters([self.running[b.of] for b in branches], logits.device)
        depth = torch.tensor([b.row for b in branches], device=logits.device)  # of a chain
        heat = given["temperature"]
        drawn = sample_tokens(logits, heat, seed=given["seed"], offset=given["offset"] + depth).tokens
        for branch, token in zip(branches, drawn.tolist(), strict=True):
            self.tokens[branch.of][branch.row] = token
        if self.probs is None:
            rows = sum(len(tree) + 1 for tree in self.trees)
            self.probs = torch.zeros(rows, logits.shape[1], device=logits.device)
        places = [sum(len(tree) + 1 for tree in self.trees[: b.of]) + b.row for b in branches]
        is_warm = heat > 0
        found = (logits[is_warm].float() / heat[is_warm, None]).softmax(-1)
        self.probs[torch.tensor(places, device=logits.device)[is_warm]] = found
