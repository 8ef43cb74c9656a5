"""The products with 2:4 weights on a GPU beside lamina's dense products, cuBLAS, and 2:4 tensors of torch.

All get the same operands, made on the device; the weight keeps two of every four, and dense products get it
with zeros in place. torch has two libraries for 2:4 weights, CUTLASS and cuSPARSELt, neither of which scales
int8 or takes int4. Runs on any torch device, so that the tests can run it on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from bench.cases import Accuracy, Candidate, Case, Context
from bench.gpu import gemm_int4, gemm_int4_int8, gemm_int8
from bench.gpu.gemm_int8 import CHECK_ROWS, _generator, _largest
from bench.gpu.plans import plan
from bench.ops.matmul_sparse24 import DTYPES, FILL, INT4_GROUP, float_expected
from bench.peers import PeerUnavailable, wanted_peers
from bench.roofline import Arithmetic, Work

BITS = {"int8": 8, "int4": 4, "int4_int8": 4, "bf16": 16, "f16": 16}


@dataclass(frozen=True)
class FloatInputs:
    """Operands of the product with float weights; what is not kept is 0."""

    a: Tensor  # [m, k]
    w: Tensor  # [n, k]

    def accuracy(self, out: object) -> Accuracy:
        assert isinstance(out, Tensor)
        worst, worst_ratio = 0.0, 0.0
        for begin in range(0, len(self.a), CHECK_ROWS):
            rows = slice(begin, begin + CHECK_ROWS)
            exact, bound = float_expected(self.a[rows], self.w, self.a.dtype)
            error = (out[rows].double() - exact).abs()
            worst, worst_ratio = max(worst, _largest(error)), max(worst_ratio, _largest(error / bound))
        return Accuracy(worst, worst_ratio)


@dataclass(frozen=True)
class Inputs:
    """One case's operands, which entries of the weight are kept, and how a result is judged."""

    kind: str  # the type of the weight
    of: Any  # FloatInputs, gemm_int8.Inputs or gemm_int4.Inputs
    kept: Tensor  # [n, k] bool
    accuracy: Callable[[object], Accuracy]

    @property
    def weight(self) -> Tensor:
        """[n, k]: values or codes."""
        weight: Tensor = self.of.q if "int4" in self.kind else self.of.w
        return weight

    @property
    def out_dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.of.out_dtype if self.kind == "int8" else self.of.a.dtype
        return dtype

    def dequantised(self) -> tuple[Tensor, Tensor]:
        """a [m, k] and w [n, k] in the dtype of the result."""
        i, dtype = self.of, self.out_dtype
        if self.kind == "int8":
            a, w = i.dequantised()
            return a.to(dtype), w.to(dtype)
        return i.a, i.w if self.kind in DTYPES else i.dequantised(torch.float32).to(dtype)


@lru_cache(maxsize=1)
def _mask(n: int, k: int, device: str) -> Tensor:
    g = _generator(device, 24, n, k)
    return (torch.rand(n, k // 4, 4, device=device, generator=g).argsort(-1) < 2).view(n, k)


def make_inputs(case: Case) -> Inputs:
    kind, kept = str(case.weight_dtype), _mask(case.n, case.k, case.device)
    of: Any
    if kind == "int8":
        of = gemm_int8.make_inputs(replace(case, group=None))
        of = replace(of, w=of.w * kept)
        return Inputs(kind, of, kept, of.accuracy)
    if kind in DTYPES:
        g = _generator(case.device, case.m, case.n, case.k)
        a, w = (torch.randn(rows, case.k, device=case.device, generator=g) for rows in (case.m, case.n))
        of = FloatInputs(a.to(DTYPES[kind]), (w * kept).to(DTYPES[kind]))
        return Inputs(kind, of, kept, of.accuracy)
    of = gemm_int4.make_inputs(replace(case, group=case.group or INT4_GROUP))
    of = replace(of, q=torch.where(kept, of.q, FILL[kind]))
    judge = of.accuracy if kind == "int4" else partial(gemm_int4_int8.accuracy, of)
    return Inputs(kind, of, kept, judge)


def _work(case: Case, inputs: Inputs, bits: float, macs: int) -> Work:
    arithmetic: Arithmetic = "int8" if inputs.kind in ("int8", "int4_int8") else "bf16"
    scales = inputs.of.scale.nbytes if "int4" in inputs.kind else 0
    moved = int(case.n * case.k * bits / 8) + scales + inputs.of.a.nbytes
    return Work(moved + case.m * case.n * inputs.out_dtype.itemsize, 2 * macs, arithmetic)


def _candidate(
    impl: str, computes: str, case: Case, inputs: Inputs, context: Context, *, packed: Any, work: Work,
    call: Callable[[Any], Tensor],
) -> Candidate:  # fmt: skip
    key = (impl, case.n, case.k, inputs.kind, case.group)
    ring = context.rotation.ring(key, packed.nbytes, packed.clone)

    def run() -> Tensor:
        return call(next(ring))

    text = plan(case, case.group) if impl == "lamina" else None
    return Candidate(
        impl, computes, run, lambda: inputs.accuracy(run()), work, ring, plan=text,
        check_output=inputs.accuracy,
    )  # fmt: skip


def _call(inputs: Inputs, int8: Any, int4: Any, int4_int8: Any) -> Callable[[Any], Tensor]:
    """The call of the product of these weights, among three."""
    i, kind, dtype = inputs.of, inputs.kind, inputs.out_dtype
    if kind == "int8":
        return lambda w: int8(i.a, w, i.a_scale, i.w_scale[0], out_dtype=dtype)
    if kind == "int4":
        return lambda w: int4(i.a, w, i.scale, group=i.group)
    return lambda w: int4_int8(i.a, w, i.scale, group=i.group, out_dtype=dtype)


def _lamina(case: Case, inputs: Inputs, context: Context) -> Candidate:
    import lamina
    from lamina.ops.pack_sparse24 import sparse24_layout_for

    kind = inputs.kind
    sparse = lamina.compress_sparse24(inputs.weight, inputs.kept, FILL.get(kind, 0))
    packed = lamina.pack_sparse24(sparse, sparse24_layout_for(inputs.weight.device))
    if kind in DTYPES:
        call: Callable[[Any], Tensor] = partial(lamina.matmul_sparse24, inputs.of.a)
    else:
        products = (
            lamina.matmul_sparse24_int8,
            lamina.matmul_sparse24_int4,
            lamina.matmul_sparse24_int4_int8,
        )
        call = _call(inputs, *products)
    work = _work(case, inputs, BITS[kind] / 2 + 1, case.m * case.n * case.k // 2)
    return _candidate(
        "lamina", f"{kind} 2:4 weight", case, inputs, context, packed=packed, work=work, call=call
    )


def _dense(case: Case, inputs: Inputs, context: Context) -> Candidate:
    import lamina
    from lamina.ops.pack_int4 import layout_for

    kind, w = inputs.kind, inputs.weight
    if kind in DTYPES:
        raise PeerUnavailable("lamina has no dense product of float weights; torch_linear is one")
    packed = lamina.pack_int8(w) if kind == "int8" else lamina.pack_int4(w, layout_for(w.device))
    call = _call(inputs, lamina.gemm_int8, lamina.gemm_int4, lamina.gemm_int4_int8)
    return _candidate(
        "lamina-dense", f"{kind} weight with zeros in place", case, inputs, context, packed=packed,
        work=_work(case, inputs, BITS[kind], case.m * case.n * case.k), call=call,
    )  # fmt: skip


def _linear(case: Case, inputs: Inputs, context: Context) -> Candidate:
    a, w = inputs.dequantised()
    done = Work(w.nbytes + a.nbytes + case.m * case.n * a.itemsize, 2 * case.m * case.n * case.k, "bf16")
    ring = context.rotation.ring(("torch_linear", case.n, case.k, inputs.kind), w.nbytes, w.clone)

    def call() -> Tensor:
        return torch.nn.functional.linear(a, next(ring))

    computes = f"F.linear with zeros in place, in {inputs.out_dtype}".replace("torch.", "")
    return Candidate("torch_linear", computes, call, lambda: inputs.accuracy(call()), done, ring)


def _torch_sparse24(case: Case, inputs: Inputs, context: Context, *, library: str) -> Candidate:
    """torch.sparse.to_sparse_semi_structured of float weights, with one of its two libraries."""
    if inputs.kind not in DTYPES:
        raise PeerUnavailable(f"{library}: {inputs.kind} has no scales there; bf16 and f16 do without")
    made = getattr(torch.sparse, f"SparseSemiStructuredTensor{library}")
    a, w = inputs.of.a, inputs.of.w
    try:
        torch.nn.functional.linear(a, made.from_dense(w))
    except (RuntimeError, NotImplementedError, ValueError, AttributeError, AssertionError) as error:
        raise PeerUnavailable((str(error) or type(error).__name__).splitlines()[0]) from error
    impl = f"torch_sparse24_{library.lower()}"
    nbytes = w.nbytes * 9 // 16
    ring = context.rotation.ring((impl, case.n, case.k), nbytes, lambda: made.from_dense(w))

    def call() -> Tensor:
        return torch.nn.functional.linear(a, next(ring))

    work = _work(case, inputs, BITS[inputs.kind] / 2 + 1, case.m * case.n * case.k // 2)
    computes = f"to_sparse_semi_structured, {library}"
    return Candidate(impl, computes, call, lambda: inputs.accuracy(call()), work, ring)


def _cusparselt_int8(case: Case, inputs: Inputs, context: Context) -> Candidate:
    """cuSPARSELt's int8 product, whose sums are not scaled."""
    if inputs.kind != "int8":
        raise PeerUnavailable("of int8 weights alone")
    a, w = inputs.of.a, inputs.of.w

    def product(packed: Tensor) -> Tensor:
        return torch._cslt_sparse_mm(packed, a.t(), out_dtype=torch.int32).t()

    try:
        packed = torch._cslt_compress(w)
        product(packed)
    except (RuntimeError, NotImplementedError, AttributeError) as error:
        raise PeerUnavailable(str(error).splitlines()[0]) from error
    ring = context.rotation.ring(("cusparselt_int8", case.n, case.k), packed.nbytes, packed.clone)

    def call() -> Tensor:
        return product(next(ring))

    work = _work(case, inputs, BITS["int8"] / 2 + 1, case.m * case.n * case.k // 2)
    return Candidate(
        "torch_cslt_int8", "_cslt_sparse_mm to int32, unscaled", call,
        lambda: inputs.of.accuracy(call(), is_scaled=False), work, ring,
    )  # fmt: skip


_PEERS: dict[str, Callable[[Case, Inputs, Context], Candidate]] = {
    "lamina-dense": _dense,
    "torch_linear": _linear,
    "torch_sparse24_cutlass": partial(_torch_sparse24, library="CUTLASS"),
    "torch_sparse24_cusparselt": partial(_torch_sparse24, library="CUSPARSELT"),
    "torch_cslt_int8": _cusparselt_int8,
}
PEERS = tuple(_PEERS)


def candidates(case: Case, context: Context) -> list[Candidate]:
    inputs = make_inputs(case)
    return [_lamina(case, inputs, context), *wanted_peers(_PEERS, case, inputs, context)]
