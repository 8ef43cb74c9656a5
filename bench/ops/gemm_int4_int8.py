"""gemm_int4_int8 beside onnxruntime's MatMulNBits and torch's int4 product; on a GPU: bench/gpu.

All get the same float activations, codes and scales, and give floats. lamina quantises the activations in the
call, per token; onnxruntime's level 4 per token and block. Every result is checked against float64: lamina's
against the product of what it quantised, a peer's against the product of the floats, with a bound for what it
computes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.cases import Accuracy, Candidate, Case, Context
from bench.peers import Bound, OnnxSession, PeerUnavailable, onnx_model, wanted_peers
from bench.roofline import Arithmetic, Work
from lamina.testing import reference
from lamina.testing.reference import Expected, U

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
BF16_ISA = "avx512_bf16"
MAX_SESSIONS = 128  # an onnxruntime session costs some ms and memory beyond its weight
UNITS = {"f32": U, "bf16": 2.0**-8, "f16": 2.0**-11}


@dataclass(frozen=True)
class Weight:
    q: NDArray[np.uint8]  # [n, k] codes
    scale: F32  # [groups, n]
    group: int

    def dequantised(self) -> F32:
        """[n, k]: as f32 steps give it."""
        k = self.q.shape[1]
        return (self.q.astype(np.float32) - 8) * self.scale.repeat(self.group, 0)[:k].T


@dataclass(frozen=True)
class Inputs:
    """One case's operands: every implementation makes its own form of them."""

    a: F32  # [m, k], values of the case's dtype
    w: Weight
    exact: F64  # a @ w.T
    absolute: F64  # |a| @ |w|.T

    def accuracy(self, out: F64, bound: F64) -> Accuracy:
        error = np.abs(out - self.exact)
        return Accuracy(float(error.max()), float((error / bound).max()))

    def float_bound(self, unit: float, roundings: int) -> F64:
        """The bound of f32 sums of k products; `unit` is that of the roundings of factors and result."""
        bound: F64 = (roundings * unit + (self.a.shape[1] + 4) * U) * self.absolute
        return bound

    def int8_bound(self) -> F64:
        """Activations rounded to a 254th of their row's range, or of a part of it."""
        step = np.abs(self.a).max(axis=1, keepdims=True).astype(np.float64) / 127
        weights = np.abs(self.w.dequantised()).astype(np.float64).sum(1)
        bound: F64 = 0.51 * step * weights + self.float_bound(U, 4)
        return bound


@lru_cache(maxsize=1)
def _weight(n: int, k: int, values: str, group: int) -> Weight:
    rng = np.random.default_rng([n, k, group])
    if values == "uniform":
        q = rng.integers(0, 16, (n, k), np.uint8)
    else:  # as a quantiser leaves a normal weight: the largest of a group at an end
        q = np.clip(np.rint(rng.standard_normal((n, k), np.float32) * 3) + 8, 0, 15).astype(np.uint8)
    return Weight(q, rng.uniform(0.002, 0.01, (-(-k // group), n)).astype(np.float32), group)


def make_inputs(case: Case) -> Inputs:
    rng = np.random.default_rng([case.m, case.n, case.k])
    w = _weight(case.n, case.k, case.values, case.group or -(-case.k // 16) * 16)
    shape = (case.m, case.k)
    x = rng.uniform(-1, 1, shape) if case.values == "uniform" else rng.standard_normal(shape)
    a = torch.from_numpy(x).to(DTYPES[case.dtype]).float().numpy()
    floats, weight = a.astype(np.float64), w.dequantised().astype(np.float64)
    return Inputs(a, w, floats @ weight.T, np.abs(floats) @ np.abs(weight).T)


def least_work(case: Case, w: Weight, arithmetic: Arithmetic, a_bytes: int, scale_bytes: int = 4) -> Work:
    """Codes, scales, activations and results, which have their dtype, once."""
    moved = w.q.size // 2 + w.scale.size * scale_bytes + (case.m * case.k + case.m * case.n) * a_bytes
    return Work(moved, 2 * case.m * case.n * case.k, arithmetic)


def expected_of_int8(case: Case, inputs: Inputs) -> Expected:
    """The product of the int8 that quantize_int8 makes."""
    codes, w_scale = torch.from_numpy(inputs.w.q), torch.from_numpy(inputs.w.scale)
    q, a_scale, _ = reference.quantize_int8(torch.from_numpy(inputs.a))
    return reference.gemm_int4_int8(q, codes, w_scale, inputs.w.group, a_scale, DTYPES[case.dtype])


@dataclass(frozen=True)
class Product:
    """An op of lamina."""

    name: str
    computes: str
    arithmetic: Arithmetic
    expected: Callable[[Case, Inputs], Expected]
    computes_bf16: str = ""  # for bf16 activations, with a kernel of BF16_ISA


def _lamina(
    product: Product, case: Case, inputs: Inputs, expected: Expected, context: Context, isa: str
) -> Candidate:
    import lamina

    op = getattr(lamina, product.name)
    w, dtype = inputs.w, DTYPES[case.dtype]
    codes, w_scale = torch.from_numpy(w.q), torch.from_numpy(w.scale)
    # Packed anew, not cloned: pack_int4 asks for huge pages.
    ring = context.rotation.ring(
        ("lamina", case.n, case.k, w.group),
        codes.numel() // 2 + w_scale.nbytes,
        lambda: (lamina.pack_int4(codes, "int4_rows"), w_scale.clone()),
    )
    a = torch.from_numpy(inputs.a).to(dtype)

    def call() -> Tensor:
        packed, scales = next(ring)
        out: Tensor = op(a, packed, scales, group=w.group, out_dtype=dtype)
        return out

    def check() -> Accuracy:
        error = (call().double() - expected.exact).abs()
        return Accuracy(float(error.max()), float((error / expected.bound).max()))

    def select() -> None:
        torch.ops.lamina.set_cpu_isa(isa)

    select()
    options = {"bf16": case.dtype == "bf16"} if product.computes_bf16 else {}
    plan = getattr(torch.ops.lamina, f"explain_{product.name}")(case.m, case.n, case.k, w.group, **options)
    work, computes = least_work(case, w, product.arithmetic, dtype.itemsize), product.computes
    if f"{product.name}_{BF16_ISA} on " in plan:
        work, computes = replace(work, arithmetic="bf16", isa=BF16_ISA), product.computes_bf16
    return Candidate(
        "lamina",
        computes.format(case.dtype),
        call,
        check,
        work,
        ring,
        isa,
        select,
        plan,
    )


def _onnxruntime(case: Case, inputs: Inputs, context: Context, *, impl: str, level: int) -> Candidate:
    """MatMulNBits with a constant weight; level 4: activations in int8, 0: in f32."""
    w = inputs.w
    blocks = -(-case.k // w.group)
    if w.group not in (16, 32, 64, 128, 256):
        raise PeerUnavailable(f"its blocks are 16 to 256 input features, not {w.group}")
    codes = np.full((case.n, blocks * w.group), 8, np.uint8)
    codes[:, : case.k] = w.q
    packed = (codes[:, ::2] | codes[:, 1::2] << 4).reshape(case.n, blocks, w.group // 2)
    sizes = {"K": case.k, "N": case.n, "bits": 4, "block_size": w.group, "accuracy_level": level}
    model = onnx_model(
        [("MatMulNBits", ["a", "w", "w_scale"], ["out"])],
        {"a": (np.float32, ["m", case.k])},
        {"out": (np.float32, ["m", case.n])},
        {"w": packed, "w_scale": np.ascontiguousarray(w.scale.T).reshape(-1)},
        domain="com.microsoft",
        attributes=sizes,
    )
    ring = context.rotation.ring(
        (impl, case.n, case.k, w.group),
        packed.nbytes + w.scale.nbytes,
        lambda: OnnxSession(model, context.threads),
        MAX_SESSIONS,
    )
    bound = Bound({"a": inputs.a}, {"out": np.zeros((case.m, case.n), np.float32)}, context.threads)
    for session in ring.copies:
        session.bind(bound)

    def call() -> None:
        next(ring).run()

    def check() -> Accuracy:
        call()
        limit = inputs.int8_bound() if level == 4 else inputs.float_bound(U, 4)
        return inputs.accuracy(bound.output("out").astype(np.float64), limit)

    computes = f"MatMulNBits, accuracy level {level}, f32 in and out"
    return Candidate(
        impl, computes, call, check, least_work(case, w, "int8" if level == 4 else "f32", 4), ring
    )


def _torch_int4(case: Case, inputs: Inputs, context: Context, *, impl: str, dtype: torch.dtype) -> Candidate:
    """Its scales have the activations' dtype."""
    w = inputs.w
    if w.group not in (32, 64, 128, 256) or case.k % w.group:
        raise PeerUnavailable(f"its groups are 32 to 256 input features that divide k, not {w.group}")
    codes = torch.from_numpy(w.q).int()
    scales = torch.from_numpy(w.scale).to(dtype)
    both = torch.stack([scales, torch.zeros_like(scales)], 2).contiguous()  # [groups, n, scale and zero]
    a = torch.from_numpy(inputs.a).to(dtype)
    aten = torch.ops.aten
    try:
        packed = aten._convert_weight_to_int4pack_for_cpu(codes, 2)
        aten._weight_int4pack_mm_for_cpu(a, packed, w.group, both)
    except RuntimeError as error:
        raise PeerUnavailable(str(error).splitlines()[0]) from error
    ring = context.rotation.ring(
        (impl, case.n, case.k, w.group),
        packed.nbytes + both.nbytes // 2,
        lambda: (packed.clone(), both.clone()),
    )

    def call() -> Tensor:
        copy, scales_of_copy = next(ring)
        out: Tensor = aten._weight_int4pack_mm_for_cpu(a, copy, w.group, scales_of_copy)
        return out

    unit = UNITS[impl.removeprefix("torch_int4_")]
    arithmetic: Arithmetic = "f32" if dtype == torch.float32 else "bf16"
    return Candidate(
        impl,
        f"_weight_int4pack_mm_for_cpu, activations and scales in {impl.removeprefix('torch_int4_')}",
        call,
        # Activations, scales, weights and results are rounded.
        lambda: inputs.accuracy(call().double().numpy(), inputs.float_bound(unit, 4)),
        least_work(case, w, arithmetic, dtype.itemsize, dtype.itemsize),
        ring,
    )


def _torch_linear(case: Case, inputs: Inputs, context: Context) -> Candidate:
    w, dtype = torch.from_numpy(inputs.w.dequantised()), DTYPES[case.dtype]
    ring = context.rotation.ring(
        ("torch_linear", case.n, case.k, inputs.w.group, dtype),
        w.numel() * dtype.itemsize,
        lambda: w.to(dtype, copy=True),
    )
    a = torch.from_numpy(inputs.a).to(dtype)

    def call() -> Tensor:
        return torch.nn.functional.linear(a, next(ring))

    moved = (w.numel() + case.m * (case.k + case.n)) * dtype.itemsize
    return Candidate(
        "torch_linear",
        f"F.linear of the dequantised weight in {case.dtype}",
        call,
        lambda: inputs.accuracy(call().double().numpy(), inputs.float_bound(UNITS[case.dtype], 4)),
        Work(moved, 2 * case.m * case.n * case.k, "f32" if dtype == torch.float32 else "bf16"),
        ring,
    )


Build = Callable[[Case, Inputs, Context], Candidate]
_PEERS: dict[str, Build] = {
    "onnxruntime_level4": partial(_onnxruntime, impl="onnxruntime_level4", level=4),
    "onnxruntime_level0": partial(_onnxruntime, impl="onnxruntime_level0", level=0),
    "torch_int4_f32": partial(_torch_int4, impl="torch_int4_f32", dtype=torch.float32),
    "torch_int4_bf16": partial(_torch_int4, impl="torch_int4_bf16", dtype=torch.bfloat16),
    "torch_linear": _torch_linear,
}


class Int4Bench:
    devices = ("cpu", "cuda")
    dtypes = tuple(DTYPES)
    groups = (16, 32, 48, 64, 128, 256)

    def __init__(self, product: Product) -> None:
        self.name = product.name
        self._product = product

    def peers_on(self, device: str) -> tuple[str, ...]:
        return self._gpu.PEERS if device == "cuda" else tuple(_PEERS)

    @property
    def _gpu(self) -> Any:
        return import_module(f"bench.gpu.{self.name}")

    def candidates(self, case: Case, context: Context) -> list[Candidate]:
        if case.device == "cuda":
            found: list[Candidate] = self._gpu.candidates(case, context)
            return found
        inputs = make_inputs(case)
        expected = self._product.expected(case, inputs)
        found = [_lamina(self._product, case, inputs, expected, context, isa) for isa in context.isas]
        return found + wanted_peers(_PEERS, case, inputs, context)


BENCH = Int4Bench(
    Product(
        "gemm_int4_int8",
        "activations of {} to int8 per token, exact sums of groups",
        "int8",
        expected_of_int8,
    )
)
