"""gemm_int4 on a GPU beside torch: cuBLAS on the dequantised weight, and `_weight_int4pack_mm`.

All get the same activations, codes and scales, of the dtype of the case, made on the device; expected is a
float64 product there. Runs on any torch device, so that the tests can run it on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from bench.cases import Accuracy, Candidate, Case, Context, Ring
from bench.gpu.gemm_int8 import CHECK_ROWS, _generator, _largest
from bench.gpu.plans import plan
from bench.ops.gemm_int8 import DTYPES
from bench.peers import PeerUnavailable, wanted_peers
from bench.roofline import Arithmetic, Work
from lamina.testing.reference import K_CHUNK, TINY, U_OUT, U


@dataclass(frozen=True)
class Inputs:
    """One case's operands on its device."""

    a: Tensor  # [m, k]
    q: Tensor  # [n, k] codes
    scale: Tensor  # [groups, n]
    group: int

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """The weight [n, k]."""
        k = self.q.shape[1]
        return ((self.q.to(dtype) - 8).T * self.scale.to(dtype).repeat_interleave(self.group, 0)[:k]).T

    def accuracy(self, out: object, roundings: int = 1, a_error: Tensor | None = None) -> Accuracy:
        """The accuracy of a result [m, n] whose sums are f32.

        roundings  of weights and activations to the case's dtype
        a_error    [m]  the largest error of quantised activations
        """
        assert isinstance(out, Tensor)
        if tuple(out.shape) != (self.a.shape[0], self.q.shape[0]):
            raise RuntimeError(f"got shape {list(out.shape)}")
        w, k, dtype = self.dequantised(torch.float64).T, self.q.shape[1], self.a.dtype
        steps = 3 + 2 * min(k, K_CHUNK) + -(-k // K_CHUNK)
        unit = roundings * U_OUT[dtype]
        worst, worst_ratio = 0.0, 0.0
        for begin in range(0, self.a.shape[0], CHECK_ROWS):
            rows = slice(begin, begin + CHECK_ROWS)
            a = self.a[rows].double()
            exact, sizes = a @ w, a.abs() @ w.abs()
            rounded = unit * sizes + TINY[dtype] * a.abs().sum(1, keepdim=True)
            if a_error is not None:
                rounded += a_error[rows, None] * w.abs().sum(0)
            bound = rounded + steps * U * (sizes + rounded)
            bound += (U + U_OUT[out.dtype]) * (exact.abs() + bound) + TINY[out.dtype]
            error = (out[rows].double() - exact).abs()
            worst, worst_ratio = max(worst, _largest(error)), max(worst_ratio, _largest(error / bound))
        return Accuracy(worst, worst_ratio)


@lru_cache(maxsize=1)
def _weight(n: int, k: int, values: str, group: int, device: str) -> tuple[Tensor, Tensor]:
    g = _generator(device, n, k, group)
    if values == "uniform":
        q = torch.randint(0, 16, (n, k), dtype=torch.uint8, device=device, generator=g)
    else:
        q = torch.randn(n, k, device=device, generator=g).mul_(3).add_(8).round_().clamp_(0, 15).byte()
    return q, torch.rand(-(-k // group), n, device=device, generator=g) * 0.008 + 0.002


def make_inputs(case: Case) -> Inputs:
    group = case.group or -(-case.k // 16) * 16
    q, scale = _weight(case.n, case.k, case.values, group, case.device)
    g = _generator(case.device, case.m, case.n, case.k)
    a = torch.randn(case.m, case.k, device=case.device, generator=g)
    dtype = DTYPES[case.dtype]
    return Inputs(a.to(dtype), q, scale.to(dtype), group)


def work(case: Case, inputs: Inputs, ceiling: Arithmetic = "bf16") -> Work:
    moved = inputs.q.numel() // 2 + inputs.scale.nbytes + inputs.a.nbytes
    moved += case.m * case.n * inputs.a.itemsize
    return Work(moved, 2 * case.m * case.n * case.k, ceiling)


def packed_weights(case: Case, inputs: Inputs, context: Context) -> Ring[tuple[Any, Tensor]]:
    """Copies of the packed weight (PackedInt4) and of its scales, in turn."""
    import lamina
    from lamina.ops.pack_int4 import layout_for

    first: list[lamina.PackedInt4] = []

    def make() -> tuple[lamina.PackedInt4, Tensor]:
        if not first:
            first.append(lamina.pack_int4(inputs.q, layout_for(inputs.q.device)))
        return replace(first[0], data=first[0].data.clone()), inputs.scale.clone()

    nbytes = inputs.q.numel() // 2 + inputs.scale.nbytes
    return context.rotation.ring(("lamina", case.n, case.k, inputs.group), nbytes, make)


def _lamina(case: Case, inputs: Inputs, context: Context) -> Candidate:
    import lamina

    ring = packed_weights(case, inputs, context)

    def call() -> Tensor:
        packed, scale = next(ring)
        return lamina.gemm_int4(inputs.a, packed, scale, group=inputs.group)

    computes = f"activations and weights in {case.dtype}"
    return Candidate(
        *("lamina", computes, call, lambda: inputs.accuracy(call()), work(case, inputs), ring),
        plan=plan(case, inputs.group),
        check_output=inputs.accuracy,
    )


def _linear(case: Case, inputs: Inputs, context: Context, *, impl: str, dtype: torch.dtype) -> Candidate:
    a, w = inputs.a.to(dtype), inputs.dequantised(torch.float32).to(dtype)
    ring = context.rotation.ring((impl, case.n, case.k, inputs.group), w.nbytes, w.clone)

    def call() -> Tensor:
        return torch.nn.functional.linear(a, next(ring)).to(inputs.a.dtype)

    moved = w.nbytes + (a.numel() + case.m * case.n) * dtype.itemsize
    done = Work(moved, 2 * case.m * case.n * case.k, "bf16")
    computes = f"F.linear of the dequantised weight in {impl.removeprefix('torch_')}"
    return Candidate(impl, computes, call, lambda: inputs.accuracy(call(), 4), done, ring)


def _int4pack(case: Case, inputs: Inputs, context: Context) -> Candidate:
    """bf16 only; codes and a pair of scale and zero point a group, 8 tiles of k inside."""
    if case.dtype != "bf16" or inputs.group not in (32, 64, 128, 256) or case.k % 128 or case.n % 8:
        raise PeerUnavailable("bf16, groups of 32 to 256, k % 128 = 0 and n % 8 = 0 are what it takes")
    aten, (q, scale) = torch.ops.aten, (inputs.q, inputs.scale)
    pairs = torch.stack([scale, torch.zeros_like(scale)], 2).contiguous()  # [groups, n, scale and zero]
    try:
        packed = aten._convert_weight_to_int4pack((q[:, ::2] << 4 | q[:, 1::2]).contiguous(), 8)
        aten._weight_int4pack_mm(inputs.a, packed, inputs.group, pairs)
    except (RuntimeError, NotImplementedError) as error:
        raise PeerUnavailable(str(error).splitlines()[0]) from error

    def make() -> tuple[Tensor, Tensor]:
        return packed.clone(), pairs.clone()

    key = ("torch_int4pack", case.n, case.k, inputs.group)
    ring = context.rotation.ring(key, packed.nbytes + pairs.nbytes, make)

    def call() -> Tensor:
        copy, scales = next(ring)
        out: Tensor = aten._weight_int4pack_mm(inputs.a, copy, inputs.group, scales)
        return out

    computes = "_weight_int4pack_mm, activations and scales in bf16"
    check = lambda: inputs.accuracy(call(), 4)  # noqa: E731
    return Candidate("torch_int4pack", computes, call, check, work(case, inputs), ring)


_PEERS: dict[str, Callable[[Case, Inputs, Context], Candidate]] = {
    "torch_f16": partial(_linear, impl="torch_f16", dtype=torch.float16),
    "torch_bf16": partial(_linear, impl="torch_bf16", dtype=torch.bfloat16),
    "torch_int4pack": _int4pack,
}
PEERS = tuple(_PEERS)


def candidates(case: Case, context: Context) -> list[Candidate]:
    return beside_peers(case, context, _lamina)


def beside_peers(
    case: Case, context: Context, lamina: Callable[[Case, Inputs, Context], Candidate]
) -> list[Candidate]:
    inputs = make_inputs(case)
    return [lamina(case, inputs, context), *wanted_peers(_PEERS, case, inputs, context)]
