"""Tables of seconds: linear layers by the number of rows, attention by its batch, queries and context."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.progress import track

from bench.machine import describe
from bench.models import MODELS
from bench.results_file import save
from bench.study.formats import stacks_of
from lamina.kv import PagedCache

Row = dict[str, Any]
ROWS = (*range(1, 65), 72, 80, 96, 112, 128, 160, 192, 224, 256)
SOME = (*range(1, 9), 10, 12, 16, 20, 24, 32, 40, 48, 64)
ROWS_OF = {"smollm2": ROWS, "llama3-8b": ROWS, "llama3-8b head": SOME}
SAMPLES = {"smollm2": 5, "llama3-8b": 3, "llama3-8b head": 3}
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
ATTENTION = {name: MODELS[name] for name in ("smollm2", "llama3-8b")}
CONTEXTS = {"smollm2": (128, 256, 512, 2048, 8192), "llama3-8b": (512, 4096, 32768)}
QUERIES = {"smollm2": (1, 2, 3, 4, 5, 6, 7, 8), "llama3-8b": (1, 2, 4, 8)}
BATCHES = (1, 4, 8)
KINDS = {"smollm2": ("f32/f32", "f32/int8", "bf16/bf16"), "llama3-8b": ("bf16/bf16", "bf16/int8")}
LEAST_BYTES = 64 << 20  # of the layers of a cache that take turns, more than processors cache
LONGEST_S = 1.0  # that a sample of attention may take


def measure(file: Path, minutes: float | None, only: str) -> None:
    """Adds the tables that the file lacks."""
    content: dict[str, Any] = {"machine": describe(), "tables": {}}
    if file.exists():
        content = json.loads(file.read_text())
    end = math.inf if minutes is None else time.monotonic() + 60 * minutes
    for name, make in tables().items():
        if name in content["tables"] or only not in name or time.monotonic() > end:
            continue
        content["tables"][name] = list(make())
        save(file, content)


def tables() -> dict[str, Callable[[], Iterator[Row]]]:
    """The functions that measure the tables, by name."""
    found: dict[str, Callable[[], Iterator[Row]]] = {}
    for shape in ROWS_OF:
        found[f"linear {shape}"] = lambda shape=shape: linear_table(shape, ROWS_OF[shape], SAMPLES[shape])  # type: ignore[misc]
    for shape in ATTENTION:
        found[f"attention {shape}"] = lambda shape=shape: attention_table(shape)  # type: ignore[misc]
    return found


@torch.inference_mode()
def linear_table(shape: str, rows: Sequence[int], samples: int) -> Iterator[Row]:
    """The seconds of one pass through the layers of each format, for each number of rows.

    Each round has one sample of every format and number of rows, in an order that is drawn anew: a slow
    minute falls on all of them. The weights of the formats together are larger than the caches, so that a
    pass reads its weights from memory, except those of the first layer, whose call has woken the threads.
    """
    stacks = stacks_of(shape)
    cells = [(name, m) for name in stacks for m in rows]
    seconds: dict[tuple[str, int], list[float]] = {cell: [] for cell in cells}
    shuffle = random.Random(0).shuffle
    for _ in track(range(samples), f"linear {shape}"):
        shuffle(cells)
        for name, m in cells:
            stack, inputs = stacks[name], stacks[name].inputs(m)
            stack.wake(inputs)
            start = time.perf_counter()
            stack(inputs)
            seconds[name, m].append(time.perf_counter() - start)
    for (name, m), of in seconds.items():
        yield {"format": name, "rows": m, **summary(of)}


@torch.inference_mode()
def attention_table(shape: str) -> Iterator[Row]:
    """The seconds of writing and attending in one layer."""
    cells = [
        (kind, context, batch) for kind in KINDS[shape] for context in CONTEXTS[shape] for batch in BATCHES
    ]
    for kind, context, batch in track(cells, f"attention {shape}"):
        for q in QUERIES[shape]:
            row = {"kind": kind, "context": context, "batch": batch, "queries": q}
            yield row | attention_seconds(shape, kind, context, batch, q)


def attention_seconds(shape: str, kind: str, context: int, batch: int, queries: int, samples: int = 5) -> Row:
    """The seconds of one layer, the mean of a pass through as many layers as LEAST_BYTES asks for."""
    model = ATTENTION[shape]
    heads, kv_heads, dim = model.heads, model.kv_heads, model.head_dim
    dtype, kv_dtype = (DTYPES[part] for part in kind.split("/"))
    layer_bytes = 2 * batch * context * kv_heads * dim * kv_dtype.itemsize
    layers = min(model.layers, max(1, -(-LEAST_BYTES // layer_bytes)))
    pages = batch * (-(-context // 16) + 1)
    cache = PagedCache(layers, pages, 16, kv_heads, dim, dtype=kv_dtype)
    seqs = [cache.new() for _ in range(batch)]
    slots = cache.append(seqs, context - queries)
    noise = torch.randn(2, len(slots), kv_heads, dim, dtype=dtype)
    for layer in range(layers):
        cache.write(layer, noise[0], noise[1], slots)
    slots, tables = cache.append(seqs, queries), cache.batch(seqs, queries)
    q = torch.randn(batch * queries, heads, dim, dtype=dtype)
    k, v = torch.randn(2, batch * queries, kv_heads, dim, dtype=dtype)
    seconds: list[float] = []
    spent = 0.0
    while len(seconds) <= samples and spent < LONGEST_S * samples:
        start = time.perf_counter()
        for layer in range(layers):
            cache.write(layer, k, v, slots)
            cache.attend(layer, q, tables)
        seconds.append((time.perf_counter() - start) / layers)
        spent += seconds[-1] * layers
    return summary(seconds[1:] or seconds)


def summary(seconds: Sequence[float]) -> Row:
    """The median of some samples, and the least and the most."""
    return {"s": median(seconds), "least": min(seconds), "most": max(seconds), "samples": len(seconds)}
