"""Predicted gains of drafts in larger models: a CPU from measured kernels, an H200 from counted floors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from bench.models import MODELS
from bench.study.formats import GROUP, LAYERS
from bench.study.step_time import Attention, Linear, best_gain

WIDTHS = (0, 1, 2, 3, 4, 5, 7)
ACCEPTANCES = (0.6, 0.8)
BATCHES = (1, 4, 8)
MOST_WEIGHTS = 0.9  # of the memory of a GPU; the rest is for the cache


class Gpu(NamedTuple):
    """A GPU by its data sheet: bytes, bytes/s, and operations/s of dense products by their type."""

    memory_bytes: float
    bytes_per_s: float
    ops_per_s: Mapping[str, float]


H200 = Gpu(141e9, 4.8e12, {"bf16": 989e12, "int8": 1979e12})
# Bits of a weight with its scales, and the type of the products.
COUNTED = {
    "bf16": (16.0, "bf16"),
    "w8a8": (8.0, "int8"),
    "w4a16": (4 + 16 / GROUP, "bf16"),
    "w4a8": (4 + 16 / GROUP, "int8"),
}


def counted_seconds(gpu: Gpu, name: str, shape: str, rows: int, batch: int, context: int) -> float:
    """The floor of a step: the bytes or the products of the linear layers, and the bytes of the cache.

    The cache is bf16 with 8 KV heads of 128, and the head is not counted.
    """
    bits, kind = COUNTED[name]
    weights = sum(n * k for n, k in LAYERS[shape])
    linear = max(weights * bits / 8 / gpu.bytes_per_s, 2 * weights * rows / gpu.ops_per_s[kind])
    cache = 2 * 8 * 128 * 2 * batch * context / gpu.bytes_per_s
    return MODELS[shape].layers * (linear + cache)


def counted_rows(shape: str, context: int, batches: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """The gains on an H200 by format, batch and acceptance, from counted floors, where the weights fit."""
    for name in COUNTED:
        weight_bytes = MODELS[shape].layers * sum(n * k for n, k in LAYERS[shape]) * COUNTED[name][0] / 8
        if weight_bytes > MOST_WEIGHTS * H200.memory_bytes:
            continue
        for batch in batches:
            seconds = {
                w: counted_seconds(H200, name, shape, batch * (1 + w), batch, context) for w in range(16)
            }
            yield gains(name, batch, context, seconds)


def measured_rows(tables: Mapping[str, Any], context: int) -> Iterator[dict[str, Any]]:
    """The gains of Llama-3-8B on the measured CPU, by format and batch: layers, head and cache."""
    linear, head = Linear(tables["linear llama3-8b"]), Linear(tables["linear llama3-8b head"])
    attention = Attention(tables["attention llama3-8b"])
    for name in linear.by_format:
        for batch in BATCHES:
            seconds = {
                w: 32 * linear.seconds(name, batch * (1 + w))
                + head.seconds(name, batch * (1 + w))
                + 32 * attention.seconds("bf16/bf16", batch, context, 1 + w)
                for w in WIDTHS
            }
            yield gains(name, batch, context, seconds)


def gains(name: str, batch: int, context: int, seconds: Mapping[int, float]) -> dict[str, Any]:
    """The seconds of a plain step, and the best gain and its width at each acceptance, with free drafts."""
    best = {acceptance: best_gain(seconds, acceptance) for acceptance in ACCEPTANCES}
    return {"format": name, "batch": batch, "context": context, "plain_s": seconds[0], "best": best}
