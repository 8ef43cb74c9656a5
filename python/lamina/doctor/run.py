"""Runs the checks of all ops on every instruction set and CUDA device of this machine."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lamina import ops
from lamina.devices import cpu_isas, cuda_problem
from lamina.doctor.checks import CHECKS
from lamina.doctor.outcome import DeviceCheck, Outcome
from lamina.testing import same_values, using_isa

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Check:
    """One op on one backend."""

    op: str
    backend: str
    outcomes: tuple[Outcome, ...]
    error: str = ""  # an exception
    skipped: str = ""  # why it did not run

    @property
    def worst(self) -> Outcome:
        """The case nearest to its bound, or past it."""
        return max(
            self.outcomes,
            key=lambda o: math.inf if math.isnan(o.ratio) else o.ratio,
            default=Outcome("none", math.inf),
        )

    @property
    def passed(self) -> bool:
        """Whether every case ran and is within its bound."""
        return not self.error and not self.skipped and self.worst.ratio <= 1.0

    @property
    def failed(self) -> bool:
        """Whether it ran and did not pass."""
        return not self.passed and not self.skipped


def run_checks() -> Iterator[Check]:
    """Every check on every ISA and every CUDA device, one by one as they finish."""
    for isa in cpu_isas():
        with using_isa(isa):
            for op, check in CHECKS.items():
                yield run_check(op, f"cpu {isa}", check, CPU)
    yield run_check("gemm_int8", "cpu all", _check_same_bits, CPU)
    problem = cuda_problem()
    if problem is not None:
        for op in CHECKS:
            yield Check(op, "cuda", (), skipped=problem)
        return
    for device in (torch.device("cuda", index) for index in range(torch.cuda.device_count())):
        for op, check in CHECKS.items():
            yield run_check(op, str(device), check, device)
        yield run_check("gemm_int8", f"{device} and cpu", check_same_bits_as_cpu, device)


def count_checks() -> int:
    """The number of checks that run_checks yields; fewer come if lamina cannot use a CUDA device."""
    return len(CHECKS) * len(cpu_isas()) + 1 + max(len(CHECKS), torch.cuda.device_count() * (len(CHECKS) + 1))


def run_check(op: str, backend: str, check: DeviceCheck, device: torch.device) -> Check:
    """The result of one check, exceptions included."""
    try:
        with torch.device("cpu"):  # checks create tensors on the CPU and move them to `device`
            return Check(op, backend, tuple(check(device)))
    except (RuntimeError, ValueError) as error:  # a broken build is what the doctor is asked about
        return Check(op, backend, (), f"{type(error).__name__}: {error}")


def _layer(device: torch.device) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """An input and an int8 layer, from f32 to f32, both on the device."""
    seed = torch.Generator().manual_seed(4)
    x = torch.randn(37, 300, generator=seed).to(device)
    w = ops.pack_int8(torch.randint(-128, 128, (70, 300), dtype=torch.int8, generator=seed)).to(device)
    w_scale = (torch.rand(70, generator=seed) * 0.01).to(device)

    def product(rows: Tensor) -> Tensor:
        a = ops.quantize_int8(rows, symmetric=False)
        return ops.gemm_int8(a.q, w, a.scale, w_scale, a_zero_point=a.zero_point)

    return x, product


def _one_by_one(x: Tensor, product: Callable[[Tensor], Tensor], expected: Tensor) -> Outcome:
    alone = torch.cat([product(x[row : row + 1]) for row in range(len(x))])
    return Outcome("rows one by one", 0.0 if same_values(alone, expected) else math.inf)


def check_same_bits_as_cpu(device: torch.device) -> Iterator[Outcome]:
    """A row of the result has the same bits on the device as on the CPU, and in every batch."""
    x, product = _layer(device)
    x_cpu, product_cpu = _layer(CPU)
    got = product(x)
    yield Outcome("against the cpu", 0.0 if same_values(got, product_cpu(x_cpu)) else math.inf)
    yield _one_by_one(x, product, got)


def _check_same_bits(device: torch.device) -> Iterator[Outcome]:
    """A row of the result has the same bits on every ISA, in every batch and with any thread count."""
    x, product = _layer(device)
    expected = product(x)
    for isa in cpu_isas():
        with using_isa(isa):
            yield Outcome(
                f"{isa} against the default", 0.0 if same_values(product(x), expected) else math.inf
            )
    yield _one_by_one(x, product, expected)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        yield Outcome("one thread", 0.0 if same_values(product(x), expected) else math.inf)
    finally:
        torch.set_num_threads(threads)
