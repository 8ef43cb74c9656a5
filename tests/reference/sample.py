"""sample_tokens, verify_draft and pack_tree_mask: by their documented steps in integers, and exactly.

A decision of verify_draft takes a chooser: a random number of Philox for one result, or every outcome in turn
with its probability.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from tests.reference.activation import _exp_minus

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
ONE = 2**40
U = 2.0**-24
PARAMETER, NOT_FINITE, NO_TOKEN, DRAFT_PROBS, OFFSETS, NO_ROW = range(1, 7)
AGAINST_DRAFT = 2**32 - 1


def philox(counter: Sequence[int], key: Sequence[int]) -> list[int]:
    """Philox4x32-10."""
    c, k, low = list(counter), list(key), 2**32 - 1
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b & low, (a >> 32) ^ c[3] ^ k[1], a & low]
        k = [(k[0] + 0x9E3779B9) & low, (k[1] + 0xBB67AE85) & low]
    return c


def uniform(seed: int, offset: int, stream: int) -> int:
    """64 random bits."""
    low = 2**32 - 1
    words = philox([offset & low, offset >> 32 & low, stream, 0], [seed & low, seed >> 32 & low])
    return words[1] << 32 | words[0]


class Settings(NamedTuple):
    """How a row is sampled; the defaults change nothing."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def are_valid(self) -> bool:
        """Whether the row can be sampled with them. A comparison with NaN is false."""
        is_finite = 0 <= self.temperature < math.inf
        return is_finite and 0 < self.top_p <= 1 and 0 <= self.min_p <= 1


def flag_of(logits: F32, s: Settings) -> int:
    """Why a row has no token; 0 if it has one."""
    if not s.are_valid():
        return PARAMETER
    if np.isnan(logits).any() or (logits == np.inf).any():
        return NOT_FINITE
    return 0 if (logits > -np.inf).any() else NO_TOKEN


def weights(logits: F32, temperature: float) -> list[int]:
    """2^40 exp((x - max x) / temperature), rounded, by the f32 steps; one is left if it is 0."""
    if temperature == 0:
        best = int(np.argmax(logits))
        return [int(j == best) for j in range(len(logits))]
    with np.errstate(over="ignore", under="ignore"):
        inverse = np.float32(1) / np.float32(temperature)
        inverse = np.clip(inverse, np.finfo(np.float32).tiny, np.finfo(np.float32).max)
        z = np.minimum((logits.max() - logits) * inverse, np.float32(109.6))
        scaled = _exp_minus(z).astype(np.float64) * 2.0**9
    return [int(w) for w in np.rint(scaled)]


def kept_weights(logits: F32, s: Settings) -> list[int]:
    """The weights of a row without a flag, 0 where top_k, top_p or min_p drops the token."""
    w = weights(logits, s.temperature)
    if s.temperature == 0:
        return w
    values = [float(x) for x in logits]
    kept = sorted(range(len(w)), key=lambda j: -values[j])
    if 1 <= s.top_k < len(kept):
        least = values[kept[s.top_k - 1]]
        kept = [j for j in kept if values[j] >= least]
    if s.top_p < 1:
        share = Fraction(int(float(np.float32(s.top_p)) * 2**32), 2**32)
        target = max(1, math.ceil(share * sum(w[j] for j in kept)))
        mass = 0
        for place, j in enumerate(kept):
            mass += w[j]
            if mass >= target:
                kept = [i for i in kept if values[i] >= values[kept[place]]]
                break
    least_weight = Fraction(float(np.float32(s.min_p))) * ONE
    found = {j for j in kept if w[j] >= least_weight}
    return [w[j] if j in found else 0 for j in range(len(w))]


def below(total: int, u: int) -> int:
    """A number below `total` that 64 random bits choose."""
    return u * total >> 64


def draw(w: Sequence[int], u: int) -> int:
    """The first token whose sum of weights is above the number that u chooses."""
    at, reached = below(sum(w), u), 0
    for j, weight in enumerate(w):
        reached += weight
        if reached > at:
            return j
    raise AssertionError("no token has a weight")


def sample_tokens(logits: F32, s: Settings, seed: int, offset: int) -> tuple[int, int]:
    """The token and the flag of a row."""
    flag = flag_of(logits, s)
    return (0, flag) if flag else (draw(kept_weights(logits, s), uniform(seed, offset, 0)), 0)


def probabilities(logits: F64, s: Settings, kept: NDArray[np.bool_]) -> tuple[F64, F64]:
    """The exact probabilities of the kept tokens in float64, and the documented bound of their error."""
    z = (logits.max() - logits) / s.temperature
    exact = np.where(kept, np.exp(-z), 0.0)
    error = np.where(kept, exact * (3 * np.minimum(z, 110) + 3) * U + 2.0**-41, 0.0)
    total = exact.sum()
    return exact / total, (error + exact / total * error.sum()) / total * (1 + 2.0**-20)


class Chooser(Protocol):
    """Where a decision comes from. stream and offset: of its random number."""

    def accept(self, above: int, under: int, stream: int, offset: int) -> bool:
        """True with probability min(1, above / under)."""

    def token(self, p: Sequence[Any], stream: int, offset: int) -> int:
        """A token with a probability in proportion to p."""


def cut_to_64_bits(above: int, under: int) -> tuple[int, int]:
    """A probability whose denominator keeps its 64 highest bits."""
    shift = max(0, under.bit_length() - 64)
    return above >> shift, under >> shift


@dataclass
class Random:
    """Decisions as the ops make them."""

    seed: int

    def accept(self, above: int, under: int, stream: int, offset: int) -> bool:
        """By the documented steps."""
        above, under = cut_to_64_bits(above, under)
        return below(under, uniform(self.seed, offset, stream)) < above

    def token(self, p: Sequence[int], stream: int, offset: int) -> int:
        """By the documented steps."""
        return draw(p, uniform(self.seed, offset, stream))


@dataclass
class Every:
    """One of all outcomes: follows `script`, then takes the first possible outcome; see outcomes()."""

    script: list[int]
    chance: Fraction = Fraction(1)
    taken: list[int] = field(default_factory=list)
    following: list[int] = field(default_factory=list)  # the outcome after the one taken, or -1

    def accept(self, above: Any, under: Any, stream: int, offset: int) -> bool:
        """Exactly with the probability above / under."""
        p = Fraction(above) / Fraction(under)
        return self._take([p, 1 - p]) == 0

    def token(self, p: Sequence[Any], stream: int, offset: int) -> int:
        """Exactly in proportion to p."""
        total = sum(p)
        return self._take([Fraction(x) / Fraction(total) for x in p])

    def _take(self, chances: list[Fraction]) -> int:
        possible = [i for i, chance in enumerate(chances) if chance > 0]
        made = len(self.taken)
        place = possible.index(self.script[made]) if made < len(self.script) else 0
        self.taken.append(possible[place])
        self.following.append(possible[place + 1] if place + 1 < len(possible) else -1)
        self.chance *= chances[possible[place]]
        return possible[place]


def outcomes(program: Callable[[Every], Any]) -> Iterator[tuple[Any, Fraction]]:
    """Every result of a program that makes decisions, with its probability."""
    script: list[int] | None = []
    while script is not None:
        every = Every(script)
        yield program(every), every.chance
        last = max((i for i, option in enumerate(every.following) if option >= 0), default=-1)
        script = None if last < 0 else [*every.taken[:last], every.following[last]]


class Arithmetic(Protocol):
    """The numbers p and q are made of."""

    def residual(self, p: list[Any], q: list[Any]) -> list[Any]:
        """max(p - q, 0) in any unit, from p and q in units of their sums."""


class Steps:
    """Integers as in the ops."""

    def residual(self, p: list[int], q: list[int]) -> list[int]:
        """In units that keep every weight at most that of p."""
        p_total, q_total = sum(p), sum(q)
        return [
            max(x * q_total - y * p_total, 0) >> (q_total - 1).bit_length() for x, y in zip(p, q, strict=True)
        ]


class Exact:
    """Rational numbers."""

    def residual(self, p: list[Fraction], q: list[Fraction]) -> list[Fraction]:
        """Without a rounding."""
        p_total, q_total = sum(p), sum(q)
        return [max(x / p_total - y / q_total, Fraction(0)) for x, y in zip(p, q, strict=True)]


class Verified(NamedTuple):
    """The results of a request."""

    tokens: list[int]
    accepted: list[int]
    flag: int


@dataclass
class Request:
    """The rows of a request. p(i) and q(i): the weights after row i, or a flag; parents None: a chain."""

    drafts: list[int]
    p: Callable[[int], list[Any] | int]
    q: Callable[[int], list[Any] | int] | None
    parents: list[int] | None = None
    offset: int = 0
    greedy: bool = False


def verify_draft(r: Request, choose: Chooser, arithmetic: Arithmetic) -> Verified:
    """The walk from the root along accepted drafts."""
    if not r.drafts:
        return Verified([], [], NO_ROW)
    parents = list(range(-1, len(r.drafts) - 1)) if r.parents is None else r.parents
    tokens: list[int] = []
    accepted = [0]
    while True:
        node, offset = accepted[-1], r.offset + len(tokens)
        children = [c for c in range(node + 1, len(r.drafts)) if parents[c] == node]
        p = r.p(node)
        if isinstance(p, int):
            return Verified([*tokens, 0], accepted, p)
        if r.q is None or r.greedy:
            token = choose.token(p, 0, offset)
            following = [c for c in children if r.drafts[c] == token]
        else:
            children = [c for c in children if 0 <= r.drafts[c] < len(p)]
            q = r.q(node) if children else []
            if isinstance(q, int):
                return Verified([*tokens, 0], accepted, q)
            token, following = -1, []
            for stream, child in enumerate(children, 1):
                x = r.drafts[child]
                rest = q if sum(q) > 0 else [int(j == x) for j in range(len(p))]
                above, under = p[x] * sum(rest), rest[x] * sum(p)
                if p[x] > 0 and (above >= under or choose.accept(above, under, stream, offset)):
                    token, following = x, [child]
                    break
                left = arithmetic.residual(p, rest)
                p = left if sum(left) > 0 else p
                q = [0 if j == x else y for j, y in enumerate(q)]
            if token < 0:
                token = choose.token(p, AGAINST_DRAFT, offset)
        tokens.append(token)
        if not following:
            return Verified(tokens, accepted, 0)
        accepted.append(following[0])


def draft_weights(q: F32) -> list[int] | int:
    """Probabilities of drafts as weights, or a flag."""
    if not ((q >= 0) & (q <= 1 + 2.0**-7)).all():
        return DRAFT_PROBS
    return [int(x) for x in np.rint(q.astype(np.float64) * ONE)]


def pack_tree_mask(parents: Sequence[int], words: int) -> tuple[NDArray[np.int32], list[int]]:
    """The rows of the mask of one tree, and the depths, by walking up from every node."""
    mask, depths = np.zeros((len(parents), words), np.uint32), []
    for node in range(len(parents)):
        at, seen = node, []
        while at >= 0:
            seen.append(at)
            at = parents[at]
        for j in seen:
            mask[node, j // 32] |= np.uint32(1 << j % 32)
        depths.append(len(seen) - 1)
    return mask.view(np.int32), depths
