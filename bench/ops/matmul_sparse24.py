"""The products with 2:4 weights beside lamina's own dense product of the same types, and torch's 2:4 tensors.

All get the same numbers: a random weight of which each group of four input features keeps two. The dense
product gets it with zeros in place. `--weight-dtype` is int8, int4, bf16, f16, f32, or int4_int8 for int4
weights with activations that the call quantises to int8. Activations and results of float weights have their
dtype. Work counts the bytes of the compressed weight and the products with kept weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from bench.cases import Accuracy, Candidate, Case, Context
from bench.peers import PeerUnavailable, wanted_peers
from bench.roofline import Arithmetic, Work
from lamina.ops.pack_int8 import GROUP
from lamina.testing import reference
from lamina.testing.reference import Expected, U

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
INT4_GROUP = 128  # unless --group says otherwise
FILL = {"int4": 8, "int4_int8": 8}  # the code of what is not kept


@dataclass(frozen=True)
class Inputs:
    """One case's operands: the weight [n, k], which of its entries are kept, and its scales."""

    a: Tensor
    a_scale: Tensor
    w: Tensor
    kept: Tensor
    w_scale: Tensor
    group: int
    out_dtype: torch.dtype
    expected: Expected


@lru_cache(maxsize=1)
def _mask(n: int, k: int) -> Tensor:
    g = torch.Generator().manual_seed(n * 31 + k)
    return (torch.rand(n, k // 4, 4, generator=g).argsort(-1) < 2).view(n, k)


def float_expected(a: Tensor, w: Tensor, dtype: torch.dtype) -> Expected:
    """The bound of the docstring, with the rounding of the result."""
    k, x, y = a.shape[1], a.double(), w.double()
    exact = x @ y.T
    roundings = 1 + min(k, 1024) // 2 + -(-k // 1024)
    unit = {torch.float32: 0.0, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}[dtype]
    return Expected(exact, roundings * U * (x.abs() @ y.abs().T) + (unit + U) * exact.abs() + 2.0**-24)


def make_inputs(case: Case) -> Inputs:
    g = torch.Generator().manual_seed(7 * case.n + 13 * case.k)  # one weight for every m
    kept, kind = _mask(case.n, case.k), str(case.weight_dtype)
    x = torch.randn(case.m, case.k, generator=torch.Generator().manual_seed(case.m))
    one = torch.ones(1)
    if kind in DTYPES:
        dtype = DTYPES[kind]
        a, w = x.to(dtype), (torch.randn(case.n, case.k, generator=g) * kept).to(dtype)
        return Inputs(a, one, w, kept, one, 0, dtype, float_expected(a, w, dtype))
    out_dtype = DTYPES[case.dtype]
    if kind == "int8":
        groups = -(-case.k // GROUP) if case.group else 1
        w = (torch.randn(case.n, case.k, generator=g) * 40 * kept).round().clamp(-127, 127).to(torch.int8)
        a, a_scale, _ = torch.ops.lamina.quantize_int8(x)
        w_scale = torch.rand(groups, case.n, generator=g) * 0.01 + 0.001
        spread = a_scale.expand(case.m, groups)
        expected = reference.gemm_int8(a, w, spread, w_scale, out_dtype, group=case.group)
        return Inputs(a, a_scale, w, kept, w_scale, case.group or 0, out_dtype, expected)
    group = case.group or INT4_GROUP
    codes = (torch.randn(case.n, case.k, generator=g) * 3 + 8).round().clamp(0, 15)
    q = torch.where(kept, codes, 8.0).to(torch.uint8)
    w_scale = torch.rand(-(-case.k // group), case.n, generator=g) * 0.01 + 0.002
    a = x.to(out_dtype)
    if kind == "int4":
        expected = reference.gemm_int4(a.float(), q, w_scale, group, out_dtype)
    else:
        int8, a_scale, _ = reference.quantize_int8(a.float())
        expected = reference.gemm_int4_int8(int8, q, w_scale, group, a_scale, out_dtype)
    return Inputs(a, one, q, kept, w_scale, group, out_dtype, expected)


def _work(case: Case, inputs: Inputs, weight_bytes: int, macs: int) -> Work:
    arithmetic: Arithmetic = "int8" if case.weight_dtype in ("int8", "int4_int8") else "f32"
    scales = inputs.w_scale.nbytes if inputs.w_scale.numel() > 1 else 0
    moved = weight_bytes + scales + inputs.a.nbytes + case.m * case.n * inputs.out_dtype.itemsize
    return Work(moved, 2 * macs, arithmetic)


Weight = Any  # packed
Call = Callable[[Weight], Tensor]


def _sparse_call(kind: str, i: Inputs) -> Call:
    import lamina

    if kind == "int8":
        w_scale = i.w_scale if i.group else i.w_scale[0]
        return lambda w: lamina.matmul_sparse24_int8(i.a, w, i.a_scale, w_scale, out_dtype=i.out_dtype)
    if kind in DTYPES:
        return lambda w: lamina.matmul_sparse24(i.a, w)
    op = lamina.matmul_sparse24_int4 if kind == "int4" else lamina.matmul_sparse24_int4_int8
    return lambda w: op(i.a, w, i.w_scale, group=i.group, out_dtype=i.out_dtype)


def _dense_call(kind: str, i: Inputs) -> Call:
    import lamina

    if kind == "int8":
        w_scale = i.w_scale if i.group else i.w_scale[0]
        return lambda w: lamina.gemm_int8(i.a, w, i.a_scale, w_scale, out_dtype=i.out_dtype)
    op = lamina.gemm_int4 if kind == "int4" else lamina.gemm_int4_int8
    return lambda w: op(i.a, w, i.w_scale, group=i.group, out_dtype=i.out_dtype)


def _candidate(
    impl: str, computes: str, case: Case, inputs: Inputs, context: Context, isa: str, macs: int,
    pack: Callable[[], Weight], run: Call, plan: str | None,
) -> Candidate:  # fmt: skip
    key = (impl, case.n, case.k, case.weight_dtype, inputs.group)
    nbytes = int(pack().nbytes)
    # Packed anew, not cloned: packing asks for huge pages.
    ring = context.rotation.ring(key, nbytes, pack)

    def call() -> Tensor:
        return run(next(ring))

    def check() -> Accuracy:
        error = (call().double() - inputs.expected.exact).abs()
        return Accuracy(float(error.max()), float((error / inputs.expected.bound).max()))

    def select() -> None:
        torch.ops.lamina.set_cpu_isa(isa)

    select()
    work = _work(case, inputs, nbytes, macs)
    return Candidate(impl, computes, call, check, work, ring, isa, select, plan)


def _plan(kind: str, case: Case, inputs: Inputs) -> str:
    explain = torch.ops.lamina
    if kind in DTYPES:
        return str(explain.explain_matmul_sparse24(case.m, case.n, case.k))
    of_kind = getattr(explain, f"explain_matmul_sparse24_{kind}")
    return str(of_kind(case.m, case.n, case.k, inputs.group or None))


def _lamina(case: Case, inputs: Inputs, context: Context, isa: str) -> Candidate:
    import lamina

    kind = str(case.weight_dtype)
    sparse = lamina.compress_sparse24(inputs.w, inputs.kept, FILL.get(kind, 0))
    torch.ops.lamina.set_cpu_isa(isa)
    plan = _plan(kind, case, inputs)
    group = GROUP if kind == "int8" and inputs.group else None
    return _candidate(
        "lamina", f"{kind} 2:4 weight", case, inputs, context, isa, case.m * case.n * case.k // 2,
        lambda: lamina.pack_sparse24(sparse, group=group), _sparse_call(kind, inputs), plan,
    )  # fmt: skip


def _lamina_dense(case: Case, inputs: Inputs, context: Context) -> Candidate:
    import lamina

    kind = str(case.weight_dtype)
    if kind in DTYPES:
        raise PeerUnavailable("lamina has no dense product of float weights; torch_linear is one")
    group = GROUP if inputs.group else None
    pack: Callable[[], Weight] = (
        partial(lamina.pack_int8, inputs.w, group)
        if kind == "int8"
        else partial(lamina.pack_int4, inputs.w, "int4_rows")
    )
    return _candidate(
        "lamina-dense", f"{kind} weight with zeros in place", case, inputs, context, context.isas[-1],
        case.m * case.n * case.k, pack, _dense_call(kind, inputs), None,
    )  # fmt: skip


def _dequantised(case: Case, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """a [m, k] and w [n, k] as floats; what is not kept is 0."""
    i, kind = inputs, str(case.weight_dtype)
    if kind in DTYPES:
        return i.a, i.w
    each = i.group or case.k
    scale = i.w_scale.repeat_interleave(each, 0)[: case.k].T
    a = i.a.float() * i.a_scale if kind == "int8" else i.a.float()
    return a, (i.w.float() - FILL.get(kind, 0)) * scale


def _torch(case: Case, inputs: Inputs, context: Context, *, impl: str) -> Candidate:
    a, w = _dequantised(case, inputs)
    sparse = impl == "torch_sparse24"
    make = torch.sparse.to_sparse_semi_structured if sparse else Tensor.clone
    try:
        torch.nn.functional.linear(a, make(w))
    except (RuntimeError, NotImplementedError, ValueError) as error:
        raise PeerUnavailable(str(error).splitlines()[0]) from error
    ring = context.rotation.ring((impl, case.n, case.k, case.weight_dtype), w.nbytes, lambda: make(w))

    def call() -> Tensor:
        return torch.nn.functional.linear(a, next(ring))

    def check() -> Accuracy:
        error = (call().double() - inputs.expected.exact).abs()
        return Accuracy(float(error.max()), float((error / inputs.expected.bound).max()))

    work = _work(case, inputs, w.nbytes, case.m * case.n * case.k)
    computes = "to_sparse_semi_structured" if sparse else "F.linear with zeros in place"
    return Candidate(impl, computes, call, check, work, ring)


_PEERS: dict[str, Callable[[Case, Inputs, Context], Candidate]] = {
    "lamina-dense": _lamina_dense,
    "torch_linear": partial(_torch, impl="torch_linear"),
    "torch_sparse24": partial(_torch, impl="torch_sparse24"),
}


class Sparse24Bench:
    name = "matmul_sparse24"
    devices = ("cpu", "cuda")
    dtypes = tuple(DTYPES)
    groups = (32, 64, 128)
    weight_dtypes = ("int8", "int4", "int4_int8", *DTYPES)

    def peers_on(self, device: str) -> tuple[str, ...]:
        from bench.gpu import matmul_sparse24 as gpu

        return gpu.PEERS if device == "cuda" else tuple(_PEERS)

    def candidates(self, case: Case, context: Context) -> list[Candidate]:
        from bench.gpu import matmul_sparse24 as gpu

        if case.device == "cuda":
            return gpu.candidates(case, context)
        inputs = make_inputs(case)
        found = [_lamina(case, inputs, context, isa) for isa in context.isas]
        return found + wanted_peers(_PEERS, case, inputs, context)


BENCH = Sparse24Bench()
