"""The ops on paged caches by their formulas: a row at a time, in float32 steps in the documented order.

Caches and scales are torch tensors, which the functions change in place. torch's own conversions round to
float16, bfloat16 and float8_e4m3fn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

F32 = NDArray[np.float32]
FLT_MIN = np.float32(2.0**-126)
LARGEST = {torch.int8: np.float32(127), torch.float8_e4m3fn: np.float32(448)}


def append_paged_kv(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Sequence[int],
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    angles: tuple[Tensor, Tensor] | None = None,
    positions: Sequence[int] = (),
    interleaved: bool = False,
    q: Tensor | None = None,
) -> None:
    """angles: cos and sin. q changes in place."""
    for token, slot in enumerate(slot_mapping):
        if q is not None and angles is not None:
            for head in range(q.shape[1]):
                row = rotate(_row(q[token, head]), angles, positions[token], interleaved)
                q[token, head] = torch.from_numpy(row).to(q.dtype)
        if slot == -1:
            continue
        page, offset = divmod(slot, k_cache.shape[1])
        for head in range(k_cache.shape[2]):
            row = _row(k[token, head])
            if angles is not None:
                row = rotate(row, angles, positions[token], interleaved)
            _store(row, k_cache, k_scale, (page, offset, head))
            _store(_row(v[token, head]), v_cache, v_scale, (page, offset, head))


def rotate(row: F32, angles: tuple[Tensor, Tensor], position: int, interleaved: bool) -> F32:
    """The row with its pairs rotated; each product and each sum is rounded."""
    cos, sin = (_row(table[position]) for table in angles)
    result, pairs = row.copy(), len(cos)
    for i in range(pairs):
        first, second = (2 * i, 2 * i + 1) if interleaved else (i, i + pairs)
        result[first] = row[first] * cos[i] - row[second] * sin[i]
        result[second] = row[second] * cos[i] + row[first] * sin[i]
    return result


def gather_paged_kv(
    k_cache: Tensor,
    v_cache: Tensor,
    places: Sequence[tuple[int, int]],
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    out_dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """places: page and offset of each token."""
    k = [_decode(k_cache, k_scale, place) for place in places]
    v = [_decode(v_cache, v_scale, place) for place in places]
    heads = k_cache.shape[2]
    return tuple(  # type: ignore[return-value]
        torch.stack(rows).to(out_dtype) if rows else torch.empty(0, heads, cache.shape[3], dtype=out_dtype)
        for rows, cache in ((k, k_cache), (v, v_cache))
    )


def copy_kv_blocks(tensors: Sequence[Tensor], mapping: Sequence[tuple[int, int]]) -> None:
    """tensors: caches and scales whose first dimension counts pages."""
    before = [tensor.clone() for tensor in tensors]
    for source, target in mapping:
        for tensor, old in zip(tensors, before, strict=True):
            tensor[target] = old[source]


def compact_kv(
    tensors: Sequence[Tensor],
    block_table: Sequence[Sequence[int]],
    seq_lens: Sequence[int],
    tree_len: Sequence[int],
    accepted: Sequence[Sequence[int]],
) -> None:
    """accepted: lists without their -1."""
    before = [tensor.clone() for tensor in tensors]
    page = tensors[0].shape[1]
    for blocks, length, nodes, kept in zip(block_table, seq_lens, tree_len, accepted, strict=True):
        prefix = length - nodes
        for i, node in enumerate(kept):
            to, at = divmod(prefix + i, page), divmod(prefix + node, page)
            for tensor, old in zip(tensors, before, strict=True):
                tensor[blocks[to[0]], to[1]] = old[blocks[at[0]], at[1]]


def slots(places: Sequence[Sequence[int]], lengths: Sequence[int], page: int) -> Iterator[tuple[int, int]]:
    """Page and offset of every token of requests with these pages and lengths."""
    for blocks, length in zip(places, lengths, strict=True):
        for slot in range(length):
            yield blocks[slot // page], slot % page


def _row(x: Tensor) -> F32:
    result: F32 = x.to(torch.float32).numpy().copy()
    return result


def _store(row: F32, cache: Tensor, scale: Tensor | None, at: tuple[int, int, int]) -> None:
    if cache.dtype not in LARGEST:
        cache[at] = torch.from_numpy(row).to(cache.dtype)
        return
    largest = LARGEST[cache.dtype]
    used = np.float32(1)
    if scale is not None and scale.dim() == 3:
        is_finite = bool(np.isfinite(row).all())
        used = np.maximum(np.abs(row).max() / largest, FLT_MIN) if is_finite else np.float32(np.nan)
        scale[at] = float(used)
        if not is_finite:
            cache[at] = torch.zeros(len(row)).to(cache.dtype)
            return
    elif scale is not None:
        used = np.float32(scale.item())
    with np.errstate(over="ignore", invalid="ignore"):
        steps = np.clip(row * (np.float32(1) / used), -largest, largest)
    if cache.dtype == torch.int8:
        steps = np.rint(np.nan_to_num(steps, nan=0.0))
    cache[at] = torch.from_numpy(steps).to(cache.dtype)


def _decode(cache: Tensor, scale: Tensor | None, place: tuple[int, int]) -> Tensor:
    rows = cache[place].to(torch.float32)
    if scale is None:
        return rows
    factors = scale[place][:, None] if scale.dim() == 3 else scale.reshape(1, 1)
    return rows * factors
