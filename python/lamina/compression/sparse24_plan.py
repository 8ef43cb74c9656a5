"""lamina.plan_sparse24: times each linear layer of a model, dense and 2:4, on this machine."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lamina._checks import require_int
from lamina._progress import with_progress
from lamina.compression.candidates import Candidate, find_candidates
from lamina.compression.reasons import Skip, checked_filters, filtered, unsuitable
from lamina.compression.schemes import SCHEMES, Sparse24Scheme

GAIN = 1.05  # a smaller gain is not worth the error of pruning, and may be noise of the measurement
CACHE_BYTES = 128 << 20  # weights are rotated up to this size, beyond most last-level caches
SAMPLES, SECONDS = 31, 1.0  # of each kind of layer, whichever ends first, but at least LEAST samples
LEAST = 5


@dataclass(frozen=True)
class PlannedLayer:
    """One linear layer with weight [n, k] and the medians of its two times."""

    name: str
    n: int
    k: int
    pays: bool  # whether the 2:4 layer is faster by GAIN
    reason: str
    dense_us: float | None = None
    sparse24_us: float | None = None


@dataclass(frozen=True)
class Sparse24Plan:
    """Result of lamina.plan_sparse24; print it."""

    scheme: str
    tokens: int
    layers: tuple[PlannedLayer, ...]

    @property
    def dense(self) -> list[str]:
        """The layers for which 2:4 does not pay, for the argument `dense` of lamina.compress."""
        return [layer.name for layer in self.layers if not layer.pays]

    def __str__(self) -> str:
        lines = [
            f"{layer.name}  {layer.n} x {layer.k}  {'2:4' if layer.pays else 'dense'}  {layer.reason}"
            for layer in self.layers
        ]
        paying = len(self.layers) - len(self.dense)
        return "\n".join(
            [*lines, f"{self.scheme}, {self.tokens} tokens: 2:4 pays for {paying} of {len(lines)} layers"]
        )


def plan_sparse24(
    model: nn.Module,
    tokens: int,
    scheme: str = "sparse24-w8a8",
    *,
    skip: Skip | Sequence[Skip] = (),
    progress: bool | None = None,
) -> Sparse24Plan:
    """Says for each linear layer whether 2:4 pays on its device for calls of `tokens` tokens, and why.

    model    any nn.Module with float weights; it is neither run nor changed. The CPU is measured for layers
             on the meta device
    tokens   > 0: rows of the inputs of a layer in one call, such as 1 for decoding
    scheme   a sparse24 scheme of lamina.compression.SCHEMES, or its name in lamina.compress
    skip     layers to leave, as in lamina.compress
    progress as in lamina.compress
    returns  Sparse24Plan. 2:4 pays if the median time of the 2:4 layer times 1.05 is at most that of the
             dense one, so a plan never picks 2:4 where the dense kernel is faster
    Raises   ValueError naming argument, value and allowed values

    Every shape of the model is measured once, with random weights: both layers in turn, 31 samples or one
    second. The weights rotate through as many copies as the model has bytes, at most 128 MiB, because a
    layer's weight is not in the cache when its turn comes. The plan holds for this machine, its threads and
    inputs of torch.float32, on CUDA of the dtype of the weights. Times include the quantisation of the inputs
    and, on CUDA, the launch.

        plan = lamina.plan_sparse24(model, tokens=1)
        lamina.compress(model, "sparse24-w8a8", dense=plan.dense)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"plan_sparse24: model must be a torch.nn.Module, got {type(model).__name__}")
    require_int("plan_sparse24", "tokens", tokens)
    if tokens < 1:
        raise ValueError(f"plan_sparse24: tokens = {tokens}; must be at least 1")
    sparse = SCHEMES.get(scheme)
    if not isinstance(sparse, Sparse24Scheme):
        allowed = ", ".join(name for name, one in SCHEMES.items() if one.is_sparse)
        raise ValueError(f"plan_sparse24: scheme must be one of {allowed}, got {scheme!r}")
    candidates = find_candidates(model)
    reasons, _ = filtered(candidates, checked_filters(skip))
    for candidate in candidates:
        if candidate.name not in reasons and (
            reason := unsuitable(model, candidate, sparse, must_shrink=True)
        ):
            reasons[candidate.name] = reason
    kinds = {_kind(c): c for c in candidates if c.name not in reasons}
    model_bytes = sum(c.linear.weight.numel() for c in candidates if c.name not in reasons)
    times = {
        kind: _measured(kind, tokens, sparse, model_bytes)
        for kind in with_progress(kinds, len(kinds), "measuring", progress, "plan_sparse24")
    }
    rows = []
    for candidate in candidates:
        n, k = candidate.linear.weight.shape
        if candidate.name in reasons:
            rows.append(PlannedLayer(candidate.name, n, k, False, reasons[candidate.name]))
        else:
            rows.append(_row(candidate.name, n, k, times[_kind(candidate)]))
    return Sparse24Plan(scheme, tokens, tuple(rows))


class _Times(NamedTuple):
    dense_us: float
    sparse24_us: float


def _row(name: str, n: int, k: int, times: _Times) -> PlannedLayer:
    gain = times.dense_us / times.sparse24_us
    reason = f"{times.dense_us:.1f} us dense, {times.sparse24_us:.1f} us 2:4, {gain:.2f}x"
    return PlannedLayer(name, n, k, gain >= GAIN, reason, *times)


class _Kind(NamedTuple):
    """Layers that take the same time."""

    n: int
    k: int
    device: torch.device
    dtype: torch.dtype


def _kind(candidate: Candidate) -> _Kind:
    weight = candidate.linear.weight
    n, k = weight.shape
    if weight.is_cuda:
        return _Kind(n, k, weight.device, weight.dtype)
    return _Kind(n, k, torch.device("cpu"), torch.float32)


def _measured(kind: _Kind, tokens: int, scheme: Sparse24Scheme, model_bytes: int) -> _Times:
    n, k, device, dtype = kind
    x = torch.randn(tokens, k, device=device, dtype=dtype)
    linear = nn.Linear(k, n, device=device, dtype=dtype)
    rings = []
    for one in (scheme.dense, scheme):
        layer = linear if one is None else one.convert(linear)
        copies = max(1, min(model_bytes, CACHE_BYTES) // max(n * k, 1))
        rings.append([layer, *(copy.deepcopy(layer) for _ in range(copies - 1))])
    samples: tuple[list[float], list[float]] = ([], [])
    began = time.perf_counter()
    with torch.inference_mode():
        while len(samples[1]) < LEAST or (
            len(samples[1]) < SAMPLES and time.perf_counter() - began < SECONDS
        ):
            for ring, found in zip(rings, samples, strict=True):
                found.append(_seconds(ring[len(found) % len(ring)], x))
    return _Times(*(median(found) * 1e6 for found in samples))


def _seconds(layer: nn.Module, x: Tensor) -> float:
    _wait(x)
    start = time.perf_counter()
    layer(x)
    _wait(x)
    return time.perf_counter() - start


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
