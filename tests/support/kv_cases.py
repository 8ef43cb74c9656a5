"""Paged caches of every layout, full of NaN, with inputs for the ops on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.support.backends import Backend
from tests.support.cases import FLOAT_DTYPES, generator

CACHE_DTYPES = (*FLOAT_DTYPES, torch.float8_e4m3fn, torch.int8)
QUANTIZED = CACHE_DTYPES[3:]
LAYOUTS = ("nhd", "hnd", "interleaved", "padded", "odd")
WRITTEN = ("k_cache", "v_cache", "k_scale", "v_scale", "q")


def run(backend: Backend, op: str, **arguments: Any) -> tuple[Tensor, ...]:
    """Runs an op on a paged cache; the tensors that the op writes change in place. On CUDA no index may be
    bad."""
    results = run_with_errors(backend, op, **arguments)
    assert backend.take_error() == ""
    return results


def run_with_errors(backend: Backend, op: str, **arguments: Any) -> tuple[Tensor, ...]:
    """The same with any indices."""
    written = {} if op == "gather_paged_kv" else {name: arguments.get(name) for name in WRITTEN}
    placed = {
        name: value
        if not isinstance(value, Tensor)
        else backend.place_written(value)
        if written.get(name) is not None
        else backend.place(value)
        for name, value in arguments.items()
    }
    with backend.active() as ops:
        results = getattr(ops, op)(**placed)
    for name, tensor in written.items():
        if tensor is not None and placed[name] is not tensor:
            tensor.copy_(placed[name])
    return tuple(result.cpu() for result in results or ())


def paged(
    layout: str, pages: int, page: int, heads: int, dims: Sequence[int], dtype: torch.dtype
) -> list[Tensor]:
    """Keys and values [pages, page, heads, dim] of these dims, with all bytes 0xff: NaN, or -1 in int8."""

    def memory(*shape: int) -> Tensor:
        size = torch.Size(shape).numel() * dtype.itemsize
        return torch.full((size,), 255, dtype=torch.uint8).view(dtype).reshape(shape)

    if layout == "nhd":
        return [memory(pages, page, heads, d) for d in dims]
    if layout == "hnd":
        return [memory(pages, heads, page, d).transpose(1, 2) for d in dims]
    if layout == "interleaved":  # the keys and values of a page beside each other
        both = memory(pages, 2, page, heads, max(dims))
        return [both[:, i, :, :, :d] for i, d in enumerate(dims)]
    apart = 8 if layout == "padded" else 3  # odd: rows begin anywhere
    wide = [memory(pages + 1, page + 2, heads + 1, d + apart) for d in dims]
    return [t[1:, 1:-1, :heads, apart:] for t in wide]


@dataclass
class Caches:
    """The caches of a call, and their scales: "none", "tensor" (one) or "token"."""

    k: Tensor
    v: Tensor
    k_scale: Tensor | None = None
    v_scale: Tensor | None = None

    @property
    def scales(self) -> dict[str, Tensor | None]:
        return {"k_scale": self.k_scale, "v_scale": self.v_scale}

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors that hold a row for each page, slot and head."""
        scales = (self.k_scale, self.v_scale)
        return [self.k, self.v, *(s for s in scales if s is not None and s.dim() == 3)]

    def clone(self) -> Caches:
        """The same values in memory of their own, without strides."""
        copies = [None if t is None else t.clone() for t in (self.k, self.v, self.k_scale, self.v_scale)]
        return Caches(*copies)  # type: ignore[arg-type]

    def bytes_between(self) -> list[Tensor]:
        """All memory with zeros where the tensors are: what no op may change."""
        memory: dict[int, Tensor] = {}
        for tensor in (t for t in (self.k, self.v, self.k_scale, self.v_scale) if t is not None):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in memory:
                memory[storage.data_ptr()] = torch.empty(0, dtype=tensor.dtype).set_(storage).clone()
            copy = memory[storage.data_ptr()]
            copy.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).zero_()
        return [copy.view(torch.uint8) for copy in memory.values()]


def caches(
    layout: str,
    pages: int,
    page: int,
    heads: int,
    dims: Sequence[int],
    dtype: torch.dtype,
    scales: str = "none",
) -> Caches:
    k, v = paged(layout, pages, page, heads, dims, dtype)
    if scales == "none":
        return Caches(k, v)
    if scales == "tensor":
        return Caches(k, v, torch.tensor(0.021), torch.tensor([0.013]))
    nan = [torch.full((heads, pages, page + 1), torch.nan) for _ in dims]
    return Caches(k, v, nan[0].permute(1, 2, 0)[:, 1:], torch.full((pages, page, heads), torch.nan))


def filled(case: Caches, seed: str) -> Caches:
    """The same caches with random values in every row; the scales of int8 and float8 are positive."""
    g = generator(seed)
    for tensor in (case.k, case.v):
        values = torch.randn(tensor.shape, generator=g) * 30
        tensor.copy_(values.clamp(-127, 127).to(tensor.dtype))
    for scale in (case.k_scale, case.v_scale):
        if scale is not None:
            scale.copy_(torch.rand(scale.shape, generator=g) + 0.1)
    return case


def scales_of(dtype: torch.dtype) -> tuple[str, ...]:
    """The kinds of scales that a cache may have."""
    if dtype not in QUANTIZED:
        return ("none",)
    return ("tensor", "token") if dtype == torch.int8 else ("none", "tensor", "token")


def rows(tokens: int, heads: int, dim: int, dtype: torch.dtype, seed: str = "rows") -> Tensor:
    """[tokens, heads, dim] with strides of its own and rows of different magnitude."""
    g = generator(f"{seed} {tokens} {heads} {dim}")
    spread = torch.pow(2.0, torch.randint(-6, 7, (tokens, heads, 1), generator=g))
    wide = torch.full((heads + 1, tokens + 1, dim + 3), torch.nan).to(dtype)
    result = wide[1:, 1:, 3:].transpose(0, 1)
    result.copy_(torch.randn(tokens, heads, dim, generator=g) * spread)
    return result


def angles(positions: int, pairs: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin [positions, pairs] as two slices of one table."""
    frequency = 10000.0 ** (-torch.arange(pairs) / max(pairs, 1))
    turns = torch.arange(positions)[:, None] * frequency
    table = torch.cat([turns.cos(), turns.sin()], 1).to(dtype)
    return table[:, :pairs], table[:, pairs:]
