"""append_paged_kv of m tokens with n KV heads of k elements from bf16, beside torch's index_put.

The cache of keys and values rotates. --dtype is that of the cache; int8 has a scale for each token and head.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.cases import Accuracy, Candidate, Case, Context, Ring
from bench.roofline import Work

DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32, "int8": torch.int8}
PAGE = 16


class _Inputs:
    """Rows, and slots of a cache with room for twice as many, in random order."""

    def __init__(self, case: Case) -> None:
        g = torch.Generator().manual_seed(case.m * 1_000_003 + case.k)
        self.pages = -(-2 * case.m // PAGE)
        self.row = (case.n, case.k)
        self.device, self.dtype = case.device, DTYPES[case.dtype]
        self.k, self.v = (
            torch.randn(case.m, *self.row, generator=g).bfloat16().to(self.device) for _ in range(2)
        )
        self.slots = torch.randperm(self.pages * PAGE, generator=g)[: case.m].to(self.device)

    def cache(self) -> tuple[Tensor, Tensor]:
        k, v = (
            torch.zeros(self.pages, PAGE, *self.row, dtype=self.dtype, device=self.device) for _ in range(2)
        )
        return k, v

    def scale(self) -> Tensor:
        return torch.zeros(self.pages, PAGE, self.row[0], device=self.device)

    def ring(self, case: Case, context: Context) -> Ring[tuple[Tensor, Tensor]]:
        nbytes = 2 * self.pages * PAGE * self.k[0].numel() * self.dtype.itemsize
        return context.rotation.ring(("cache", case.m, case.n, case.k, case.dtype), nbytes, self.cache)

    def work(self) -> Work:
        scales = 8 * len(self.k) * self.row[0] if self.dtype == torch.int8 else 0
        # One operation per element, for a figure in elements per second; bytes alone set the floor.
        return Work(2 * self.k.numel() * (2 + self.dtype.itemsize) + scales, 2 * self.k.numel(), "none")

    def accuracy(self, cache: tuple[Tensor, Tensor], scales: list[Tensor]) -> Accuracy:
        """Distance of the stored rows from the given ones, against half a step of an int8 row, or 0."""
        worst, ratio = 0.0, 0.0
        for i, (rows, stored) in enumerate(zip((self.k, self.v), cache, strict=True)):
            got, step = stored.flatten(0, 1)[self.slots].double(), torch.zeros(1, device=self.device)
            if scales:
                step = scales[i].flatten(0, 1)[self.slots][..., None].double()
                got *= step
            error = (got - rows.double()).abs()
            worst = max(worst, float(error.max()))
            # Without scales every row is exact.
            over = error / (step * (0.5 + 2.0**-14)) if scales else (error > 0) * 2.0
            ratio = max(ratio, float(over.max()))
        return Accuracy(worst, ratio)


def _lamina(case: Case, inputs: _Inputs, context: Context, isa: str | None) -> Candidate:
    """`isa` None: on a GPU."""
    import lamina

    ring = inputs.ring(case, context)
    is_int8 = inputs.dtype == torch.int8
    scales = [inputs.scale(), inputs.scale()] if is_int8 else []
    options: dict[str, Any] = dict(zip(("k_scale", "v_scale"), scales, strict=False))

    def call() -> tuple[Tensor, Tensor]:
        cache = next(ring)
        lamina.append_paged_kv(inputs.k, inputs.v, *cache, inputs.slots, **options)
        return cache

    computes = "bf16 rows to int8 with a scale each" if is_int8 else f"bf16 rows to {case.dtype}"

    def check_output(out: object) -> Accuracy:
        assert isinstance(out, tuple)
        return inputs.accuracy(out, scales)

    found = Candidate("lamina", computes, call, lambda: check_output(call()), inputs.work(), ring, isa)
    found.check_output = check_output
    if isa is None:
        return found
    found.select = partial(torch.ops.lamina.set_cpu_isa, isa)
    found.select()
    found.plan = torch.ops.lamina.explain_paged_kv()
    return found


def _torch_index_put(case: Case, inputs: _Inputs, context: Context) -> Candidate:
    ring = inputs.ring(case, context)

    def call() -> tuple[Tensor, Tensor]:
        cache = next(ring)
        for rows, stored in zip((inputs.k, inputs.v), cache, strict=True):
            stored.view(-1, *inputs.row).index_put_((inputs.slots,), rows.to(inputs.dtype))
        return cache

    computes = "index_put_ of keys, then of values"
    return Candidate(
        "torch_index_put", computes, call, lambda: inputs.accuracy(call(), []), inputs.work(), ring
    )


class PagedKvBench:
    name = "paged_kv"
    devices = ("cpu", "cuda")
    dtypes = tuple(DTYPES)
    groups: tuple[int, ...] = ()

    def peers_on(self, device: str) -> tuple[str, ...]:
        return ("torch_index_put",)

    def candidates(self, case: Case, context: Context) -> list[Candidate]:
        inputs = _Inputs(case)
        isas: Sequence[str | None] = context.isas if case.device == "cpu" else (None,)
        found = [_lamina(case, inputs, context, isa) for isa in isas]
        if context.wants("torch_index_put"):
            if inputs.dtype == torch.int8:
                context.skipped["torch_index_put"] = "torch does not quantise while it stores"
            else:
                found.append(_torch_index_put(case, inputs, context))
        return found


BENCH = PagedKvBench()
