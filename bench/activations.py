"""The benchmarks of ops on activations beside torch ops in sequence: m rows of n, to floats or to int8.

There is no weight to speak of: the activations themselves rotate. k is not used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.cases import Accuracy, Candidate, Case, Context, Ring
from bench.roofline import Work
from lamina.testing import reference
from lamina.testing.reference import Expected

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Subject:
    """The measured functions. Each one takes the inputs of a case; `int8` tells whether the op quantises."""

    name: str
    int8: bool
    computes: str
    inputs: Callable[[Case, torch.Generator], Inputs]
    lamina: Callable[..., Any]  # the result [m, n], or a QuantizedInt8
    torch: Callable[..., Tensor]  # the float result in eager torch
    expected: Callable[..., Expected]
    explain: str  # the op that prints the plan
    other_bytes: Callable[[Case], int]  # read and written beside the result


class ActivationBench:
    devices = ("cpu", "cuda")
    dtypes = tuple(DTYPES)
    groups: tuple[int, ...] = ()

    def __init__(self, subject: Subject) -> None:
        self.name = subject.name
        self._subject = subject

    def peers_on(self, device: str) -> tuple[str, ...]:
        return ("torch_eager",)

    def candidates(self, case: Case, context: Context) -> list[Candidate]:
        generator = torch.Generator().manual_seed(case.m * 1_000_003 + case.n)
        inputs = tuple(t.to(case.device) for t in self._subject.inputs(case, generator))
        isas: Sequence[str | None] = context.isas if case.device == "cpu" else (None,)
        found = [self._lamina(case, inputs, context, isa) for isa in isas]
        if context.wants("torch_eager"):
            found.append(self._candidate("torch_eager", case, inputs, context, self._eager))
        return found

    def _lamina(self, case: Case, inputs: Inputs, context: Context, isa: str | None) -> Candidate:
        """`isa` None: on a GPU."""
        found = self._candidate("lamina", case, inputs, context, self._subject.lamina)
        if isa is not None:
            found.isa, found.select = isa, partial(torch.ops.lamina.set_cpu_isa, isa)
            found.select()
            found.plan = getattr(torch.ops.lamina, self._subject.explain)(case.m, case.n)
        return found

    def _eager(self, *inputs: Tensor) -> Any:
        out = self._subject.torch(*inputs)
        if not self._subject.int8:
            return out
        values = out.float()
        scale = values.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / 127
        return (values / scale).round_().clamp_(-127, 127).to(torch.int8), scale

    def _candidate(
        self, impl: str, case: Case, inputs: Inputs, context: Context, run: Callable[..., Any]
    ) -> Candidate:
        subject = self._subject
        row_bytes = sum(t.nbytes for t in inputs)
        ring: Ring[Inputs] = context.rotation.ring(
            (subject.name, case.m, case.n, case.dtype), row_bytes, lambda: tuple(t.clone() for t in inputs)
        )
        expected = subject.expected(*(t.cpu() for t in inputs))

        def call() -> object:
            return run(*next(ring))

        def check_output(out: Any) -> Accuracy:
            bound = expected.bound
            if subject.int8:
                scale = out[1].double().cpu()
                got = out[0].double().cpu() * scale
                bound = bound + scale * reference.GRID_ERROR
            else:
                got = out.double().cpu()
            error = (got - expected.exact).abs()
            return Accuracy(float(error.max()), float((error / bound).max()))

        elements = case.m * case.n
        out_bytes = elements + 4 * case.m if subject.int8 else elements * DTYPES[case.dtype].itemsize
        # One operation per element, for a figure in elements per second; bytes alone set the floor.
        work = Work(subject.other_bytes(case) + out_bytes, elements, "none")
        computes = subject.computes if impl == "lamina" else "the same formula in eager torch"
        found = Candidate(impl, computes, call, lambda: check_output(call()), work, ring)
        found.check_output = check_output
        return found


def bytes_of(case: Case, tensors: int) -> int:
    """Bytes of so many tensors [m, n]."""
    return tensors * case.m * case.n * DTYPES[case.dtype].itemsize
