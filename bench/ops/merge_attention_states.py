"""merge_attention_states of 4 parts: m tokens, n heads of k elements, beside the formula in eager torch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from bench.cases import Accuracy, Candidate, Case, Context, Ring
from bench.roofline import Work

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
PARTS = 4
States = tuple[list[Tensor], list[Tensor]]


def _states(case: Case) -> States:
    g = torch.Generator().manual_seed(case.m * 1_000_003 + case.k)
    outs = [torch.randn(case.m, case.n, case.k, generator=g).to(DTYPES[case.dtype]) for _ in range(PARTS)]
    lses = [torch.randn(case.n, case.m, generator=g) * 3 for _ in range(PARTS)]
    return [out.to(case.device) for out in outs], [lse.to(case.device) for lse in lses]


def _eager(outs: list[Tensor], lses: list[Tensor], wide: torch.dtype) -> Tensor:
    weights = torch.stack(lses).to(wide).softmax(0).transpose(1, 2)[..., None]
    return (weights * torch.stack(outs).to(wide)).sum(0)


def _candidate(
    impl: str, case: Case, states: States, context: Context, isa: str | None, computes: str
) -> Candidate:
    """`isa` None: a peer, or lamina on a GPU."""
    import lamina

    row = case.m * case.n * case.k * DTYPES[case.dtype].itemsize
    key = ("states", case.m, case.n, case.k, case.dtype)

    def copy() -> States:
        return [out.clone() for out in states[0]], [lse.clone() for lse in states[1]]

    ring: Ring[States] = context.rotation.ring(key, PARTS * row, copy)

    def call() -> Tensor:
        outs, lses = next(ring)
        if impl != "lamina":
            return _eager(outs, lses, torch.float32).to(outs[0].dtype)
        return lamina.merge_attention_states(outs, lses)[0]

    def check_output(out: object) -> Accuracy:
        assert isinstance(out, Tensor)
        exact = _eager(*states, torch.float64)
        error = (out.double() - exact).abs()
        unit = torch.finfo(DTYPES[case.dtype]).eps / 2 if case.dtype != "f32" else 0.0
        largest = torch.stack(states[0]).double().abs().amax(0)
        bound = 2.0**-24 * largest * (2 * PARTS + 60) + unit * exact.abs() + 2.0**-24
        return Accuracy(float(error.max()), float((error / bound).max()))

    lse_bytes = 4 * case.m * case.n * (PARTS + 1)
    elements = PARTS * case.m * case.n * case.k
    work = Work((PARTS + 1) * row + lse_bytes, elements, "none")
    found = Candidate(impl, computes, call, lambda: check_output(call()), work, ring, isa)
    found.check_output = check_output
    return found


class MergeAttentionStatesBench:
    name = "merge_attention_states"
    devices = ("cpu", "cuda")
    dtypes = tuple(DTYPES)
    groups: tuple[int, ...] = ()

    def peers_on(self, device: str) -> tuple[str, ...]:
        return ("torch_eager",)

    def candidates(self, case: Case, context: Context) -> list[Candidate]:
        states, found = _states(case), []
        isas: Sequence[str | None] = context.isas if case.device == "cpu" else (None,)
        for isa in isas:
            ours = _candidate("lamina", case, states, context, isa, f"{PARTS} parts, one pass")
            found.append(ours)
            if isa is None:
                continue
            ours.select = partial(torch.ops.lamina.set_cpu_isa, isa)
            ours.select()
            ours.plan = torch.ops.lamina.explain_merge_attention_states()
        if context.wants("torch_eager"):
            found.append(_candidate("torch_eager", case, states, context, None, "the formula in eager torch"))
        return found


BENCH = MergeAttentionStatesBench()
