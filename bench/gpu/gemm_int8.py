"""gemm_int8 on a GPU beside cuBLAS through torch: F.linear in f16 and bf16, and _int_mm.

The numbers are made on the device; the expected result is a float64 product there, which is exact: every sum
is a whole number below 2^53. Runs on any torch device, so that the tests can run it on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
from torch import Tensor

from bench.cases import Accuracy, Candidate, Case, Context
from bench.gpu.plans import plan
from bench.ops.gemm_int8 import DTYPES, least_work, refuse_groups
from bench.peers import PeerUnavailable, wanted_peers
from lamina.testing import reference

CHECK_ROWS = 512  # float64 copies of so many rows at a time
INT_MM_MIN_M = 17
INT_MM_MULTIPLE = 8


@dataclass(frozen=True)
class Inputs:
    """One case's operands on its device."""

    a: Tensor  # [m, k] int8
    w: Tensor  # [n, k] int8
    a_scale: Tensor  # [m, groups] f32, one without scales along k
    w_scale: Tensor  # [groups, n] f32
    out_dtype: torch.dtype
    group: int | None = None

    def accuracy(self, out: object, *, is_scaled: bool = True) -> Accuracy:
        """The accuracy of a result [m, n]; without scales it has int32 sums and integer errors."""
        assert isinstance(out, Tensor)
        if tuple(out.shape) != (self.a.shape[0], self.w.shape[0]):
            raise RuntimeError(f"got shape {list(out.shape)}")
        worst, worst_ratio = 0.0, 0.0
        for begin in range(0, self.a.shape[0], CHECK_ROWS):
            rows = slice(begin, begin + CHECK_ROWS)
            exact, bound = reference.gemm_int8(
                self.a[rows], self.w, self.a_scale[rows], self.w_scale, self.out_dtype, group=self.group
            )
            factor = 1.0 if is_scaled else self.a_scale[rows].double() * self.w_scale.double()
            error = (out[rows].double() * factor - exact).abs()
            worst = max(worst, _largest(error / factor))
            worst_ratio = max(worst_ratio, _largest(error / bound))
        return Accuracy(worst if is_scaled else round(worst), worst_ratio)

    def dequantised(self) -> tuple[Tensor, Tensor]:
        """a [m, k] and w [n, k], scaled."""
        k = self.a.shape[1]
        group = self.group or k
        a_scale, w_scale = (s.repeat_interleave(group, 1)[:, :k] for s in (self.a_scale, self.w_scale.t()))
        return self.a * a_scale, self.w * w_scale


def _largest(x: Tensor) -> float:
    """The maximum; a NaN counts as infinite."""
    return float(torch.nan_to_num(x, nan=float("inf"), posinf=float("inf")).max()) if x.numel() else 0.0


def _generator(device: str, *seeds: int) -> torch.Generator:
    seed = 0
    for value in seeds:
        seed = seed * 1_000_003 + value
    return torch.Generator(device).manual_seed(seed % (1 << 62))


def _rows(g: torch.Generator, rows: int, columns: int, values: str, lowest: int) -> Tensor:
    """As bench/ops/gemm_int8.py: rows as a per-row quantiser leaves them, or over the full range."""
    if values == "uniform":
        return torch.randint(lowest, 128, (rows, columns), dtype=torch.int8, device=g.device, generator=g)
    x = torch.randn(rows, columns, device=g.device, generator=g)
    return x.mul_(127 / x.abs().amax(1, keepdim=True)).round_().to(torch.int8)


def _scales(g: torch.Generator, *shape: int) -> Tensor:
    return (torch.rand(*shape, device=g.device, generator=g) * 1.5 + 0.5) / 127


@lru_cache(maxsize=1)
def _weight(n: int, k: int, values: str, groups: int, device: str) -> tuple[Tensor, Tensor]:
    g = _generator(device, n, k)
    return _rows(g, n, k, values, -127), _scales(g, groups, n)


def make_inputs(case: Case) -> Inputs:
    groups = -(-case.k // (case.group or case.k))
    w, w_scale = _weight(case.n, case.k, case.values, groups, case.device)
    g = _generator(case.device, case.m, case.n, case.k)
    a = _rows(g, case.m, case.k, case.values, -128)
    return Inputs(a, w, _scales(g, case.m, groups), w_scale, DTYPES[case.dtype], case.group)


def _lamina(case: Case, inputs: Inputs, context: Context) -> Candidate:
    import lamina

    first: list[lamina.PackedInt8] = []

    def make() -> lamina.PackedInt8:
        if not first:
            first.append(lamina.pack_int8(inputs.w.cpu(), case.group).to(case.device))
        return replace(first[0], data=first[0].data.clone(), column_sums=first[0].column_sums.clone())

    ring = context.rotation.ring(("lamina", case.n, case.k, case.group), case.n * case.k, make)
    w_scale = inputs.w_scale if case.group else inputs.w_scale[0]

    def call() -> Tensor:
        return lamina.gemm_int8(inputs.a, next(ring), inputs.a_scale, w_scale, out_dtype=inputs.out_dtype)

    work = least_work(case, "int8", 1, inputs.out_dtype.itemsize)
    computes = f"quantised product, scaled to {case.dtype}"
    return Candidate(
        "lamina", computes, call, lambda: inputs.accuracy(call()), work, ring, plan=plan(case, case.group)
    )


def _linear(case: Case, inputs: Inputs, context: Context, *, impl: str, dtype: torch.dtype) -> Candidate:
    a, w = (x.to(dtype) for x in inputs.dequantised())
    nbytes = inputs.w.numel() * dtype.itemsize
    ring = context.rotation.ring((impl, case.n, case.k, case.group), nbytes, w.clone)

    def call() -> Tensor:
        return torch.nn.functional.linear(a, next(ring))

    work = least_work(case, "bf16", dtype.itemsize, dtype.itemsize)
    computes = f"F.linear of the dequantised operands in {impl.removeprefix('torch_')}"
    return Candidate(impl, computes, call, lambda: inputs.accuracy(call()), work, ring)


def int_mm_refusal(case: Case) -> str | None:
    """Why torch._int_mm takes no such shape on CUDA; None where it does."""
    if case.m < INT_MM_MIN_M:
        return f"torch._int_mm needs m > {INT_MM_MIN_M - 1} on CUDA"
    for name, extent in (("n", case.n), ("k", case.k)):
        if extent % INT_MM_MULTIPLE:
            return f"torch._int_mm needs {name} % {INT_MM_MULTIPLE} = 0 on CUDA"
    return None


def _int_mm(case: Case, inputs: Inputs, context: Context) -> Candidate:
    refuse_groups(case)
    if why := int_mm_refusal(case):
        raise PeerUnavailable(why)
    ring = context.rotation.ring(("torch_int_mm", case.n, case.k), inputs.w.nbytes, inputs.w.clone)

    def call() -> Tensor:
        return torch._int_mm(inputs.a, next(ring).t())

    def check() -> Accuracy:
        return inputs.accuracy(call(), is_scaled=False)

    work = least_work(case, "int8", 1, 4)
    return Candidate("torch_int_mm", "_int_mm to int32, unscaled", call, check, work, ring)


_PEERS: dict[str, Callable[[Case, Inputs, Context], Candidate]] = {
    "torch_f16": partial(_linear, impl="torch_f16", dtype=torch.float16),
    "torch_bf16": partial(_linear, impl="torch_bf16", dtype=torch.bfloat16),
    "torch_int_mm": _int_mm,
}
PEERS = tuple(_PEERS)


def candidates(case: Case, context: Context) -> list[Candidate]:
    inputs = make_inputs(case)
    lamina = _lamina(case, inputs, context)
    lamina.check_output = inputs.accuracy
    return [lamina, *wanted_peers(_PEERS, case, inputs, context)]
