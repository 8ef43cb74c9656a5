"""gemm_int8 beside onnxruntime's MatMulInteger and torch's products; on a GPU bench/gpu/gemm_int8.py.

All get the same numbers: int8 activations and weights, f32 scales per token and channel, with --group of each
group of k too.
Only lamina applies the scales in the call; the integer peers stop at int32 and their check scales the result
in float64, so that one bound measures all. The float peers multiply the dequantised operands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.cases import Accuracy, Candidate, Case, Context
from bench.peers import Bound, OnnxSession, PeerUnavailable, onnx_model, wanted_peers
from bench.roofline import Arithmetic, Work
from lamina.ops.pack_int8 import GROUP
from lamina.testing import reference

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
F64 = NDArray[np.float64]
MAX_SESSIONS = 128  # an onnxruntime session costs some ms and memory beyond its weight


@dataclass(frozen=True)
class Inputs:
    """One case's operands and exact product, as arrays: every implementation makes its own form of them."""

    a: NDArray[np.int8]  # [m, k]
    w: NDArray[np.int8]  # [n, k]
    a_scale: NDArray[np.float32]  # [m, 1] or [m, groups]
    w_scale: NDArray[np.float32]  # [n] or [groups, n]
    expected: reference.Expected
    group: int | None = None

    def dequantised(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """a [m, k] and w [n, k], scaled."""
        if self.group is None:
            return self.a * self.a_scale, self.w * self.w_scale[:, None]
        k = self.a.shape[1]
        a_scale, w_scale = (s.repeat(self.group, 1)[:, :k] for s in (self.a_scale, self.w_scale.T))
        return self.a * a_scale, self.w * w_scale

    def accuracy(self, out: F64) -> Accuracy:
        error = np.abs(out - self.expected.exact.numpy())
        return Accuracy(float(error.max()), float((error / self.expected.bound.numpy()).max()))

    def accuracy_of_integers(self, acc: NDArray[Any]) -> Accuracy:
        """The absolute error in integer units, the ratio after scaling."""
        factor = self.a_scale.astype(np.float64) * self.w_scale
        scaled = acc.astype(np.float64) * factor
        units = np.abs(scaled - self.expected.exact.numpy()) / factor
        return Accuracy(float(np.rint(units.max())), self.accuracy(scaled).over_bound)


def _scales(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    return (rng.uniform(0.5, 2, shape) / 127).astype(np.float32)


def _rows(rng: np.random.Generator, shape: tuple[int, int], values: str, lowest: int) -> NDArray[np.int8]:
    """Rows as a per-row quantiser leaves them, or over the full range: time may depend on the values."""
    if values == "uniform":
        return rng.integers(lowest, 128, shape, np.int8)
    x = rng.standard_normal(shape, np.float32)
    x *= 127 / np.abs(x).max(axis=1, keepdims=True)
    return np.rint(x).astype(np.int8)


@lru_cache(maxsize=1)
def _weight(n: int, k: int, values: str, groups: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """groups: 0 for scales of all k."""
    rng = np.random.default_rng([n, k])
    return _rows(rng, (n, k), values, -127), _scales(rng, (groups, n) if groups else (n,))


def make_inputs(case: Case) -> Inputs:
    rng = np.random.default_rng([case.m, case.n, case.k])
    group = case.group or case.k
    groups = -(-case.k // group)
    w, w_scale = _weight(case.n, case.k, case.values, groups if case.group else 0)
    a = _rows(rng, (case.m, case.k), case.values, -128)
    a_scale = _scales(rng, (case.m, groups))
    expected = reference.gemm_int8(
        torch.from_numpy(a), torch.from_numpy(w), torch.from_numpy(a_scale),
        torch.from_numpy(w_scale).view(groups, case.n), DTYPES[case.dtype], group=case.group,
    )  # fmt: skip
    return Inputs(a, w, a_scale, w_scale, expected, case.group)


def least_work(case: Case, arithmetic: Arithmetic, operand_bytes: int, out_bytes: int) -> Work:
    moved = (case.m * case.k + case.n * case.k) * operand_bytes + case.m * case.n * out_bytes
    return Work(moved, 2 * case.m * case.n * case.k, arithmetic)


def _lamina(case: Case, inputs: Inputs, context: Context, isa: str) -> Candidate:
    import lamina

    weight = torch.from_numpy(inputs.w)
    packed = lamina.pack_int8(weight, case.group)
    # Packed anew, not cloned: pack_int8 asks for huge pages.
    ring = context.rotation.ring(
        ("lamina", case.n, case.k, case.group),
        packed.data.nbytes,
        lambda: lamina.pack_int8(weight, case.group),
    )
    a, a_scale, w_scale = (torch.from_numpy(x) for x in (inputs.a, inputs.a_scale, inputs.w_scale))
    out_dtype = DTYPES[case.dtype]

    def call() -> Tensor:
        return lamina.gemm_int8(a, next(ring), a_scale, w_scale, out_dtype=out_dtype)

    def select() -> None:
        torch.ops.lamina.set_cpu_isa(isa)

    select()
    return Candidate(
        "lamina",
        f"quantised product, scaled to {case.dtype}",
        call,
        lambda: inputs.accuracy(call().double().numpy()),
        least_work(case, "int8", 1, out_dtype.itemsize),
        ring,
        isa,
        select,
        torch.ops.lamina.explain_gemm_int8(case.m, case.n, case.k, case.group),
    )


def _onnxruntime(case: Case, inputs: Inputs, context: Context, *, impl: str, is_unsigned: bool) -> Candidate:
    """MatMulInteger with a constant weight. u8 x s8: activations shifted by 128, their zero point."""
    refuse_groups(case)
    a_type: type[np.generic] = np.uint8 if is_unsigned else np.int8
    zero_point = 128 if is_unsigned else 0

    def make() -> OnnxSession:
        model = onnx_model(
            [("MatMulInteger", ["a", "w", "a_zero_point"], ["acc"])],
            {"a": (a_type, ["m", case.k])},
            {"acc": (np.int32, ["m", case.n])},
            {"w": np.ascontiguousarray(inputs.w.T), "a_zero_point": np.array(zero_point, a_type)},
        )
        return OnnxSession(model, context.threads)

    ring = context.rotation.ring((impl, case.n, case.k), case.n * case.k, make, MAX_SESSIONS)
    shifted = (inputs.a.astype(np.int16) + zero_point).astype(a_type)
    bound = Bound({"a": shifted}, {"acc": np.zeros((case.m, case.n), np.int32)}, context.threads)
    for session in ring.copies:
        session.bind(bound)

    def call() -> None:
        next(ring).run()

    def check() -> Accuracy:
        call()
        return inputs.accuracy_of_integers(bound.output("acc"))

    computes = f"MatMulInteger {'u8' if is_unsigned else 's8'} x s8 to int32, unscaled"
    return Candidate(impl, computes, call, check, least_work(case, "int8", 1, 4), ring)


def _torch_linear(
    case: Case, inputs: Inputs, context: Context, *, impl: str, dtype: torch.dtype
) -> Candidate:
    a, w = (torch.from_numpy(x).to(dtype) for x in inputs.dequantised())
    ring = context.rotation.ring((impl, case.n, case.k, case.group), w.nbytes, w.clone)

    def call() -> Tensor:
        return torch.nn.functional.linear(a, next(ring))

    arithmetic: Arithmetic = "f32" if dtype == torch.float32 else "bf16"
    return Candidate(
        impl,
        f"F.linear of the dequantised operands in {impl.removeprefix('torch_')}",
        call,
        lambda: inputs.accuracy(call().double().numpy()),
        least_work(case, arithmetic, dtype.itemsize, dtype.itemsize),
        ring,
    )


def refuse_groups(case: Case) -> None:
    """For peers that add up all of k in integers."""
    if case.group is not None:
        raise PeerUnavailable("its int32 sums are of all k: no scales along k")


def _torch_int_mm(case: Case, inputs: Inputs, context: Context) -> Candidate:
    refuse_groups(case)
    a = torch.from_numpy(inputs.a)
    w = torch.from_numpy(inputs.w)
    ring = context.rotation.ring(("torch_int_mm", case.n, case.k), w.nbytes, w.clone)

    def call() -> Tensor:
        return torch._int_mm(a, next(ring).t())

    try:
        call()
    except RuntimeError as error:
        raise PeerUnavailable(str(error).splitlines()[0]) from error
    return Candidate(
        "torch_int_mm",
        "_int_mm to int32, unscaled",
        call,
        lambda: inputs.accuracy_of_integers(call().numpy()),
        least_work(case, "int8", 1, 4),
        ring,
    )


Build = Callable[[Case, Inputs, Context], Candidate]
_PEERS: dict[str, Build] = {
    "onnxruntime": partial(_onnxruntime, impl="onnxruntime", is_unsigned=True),
    "onnxruntime_s8s8": partial(_onnxruntime, impl="onnxruntime_s8s8", is_unsigned=False),
    "torch_f32": partial(_torch_linear, impl="torch_f32", dtype=torch.float32),
    "torch_bf16": partial(_torch_linear, impl="torch_bf16", dtype=torch.bfloat16),
    "torch_int_mm": _torch_int_mm,
}


class GemmInt8Bench:
    name = "gemm_int8"
    devices = ("cpu", "cuda")
    dtypes = tuple(DTYPES)
    groups = (GROUP,)

    def peers_on(self, device: str) -> tuple[str, ...]:
        from bench.gpu import gemm_int8 as gpu

        return gpu.PEERS if device == "cuda" else tuple(_PEERS)

    def candidates(self, case: Case, context: Context) -> list[Candidate]:
        from bench.gpu import gemm_int8 as gpu

        if case.device == "cuda":
            return gpu.candidates(case, context)
        inputs = make_inputs(case)
        found = [_lamina(case, inputs, context, isa) for isa in context.isas]
        return found + wanted_peers(_PEERS, case, inputs, context)


BENCH = GemmInt8Bench()
