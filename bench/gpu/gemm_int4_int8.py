"""gemm_int4_int8 on a GPU, quantising activations in the call, beside the peers of gemm_int4.

Expected is the product of what was given, so that the bound holds what quantising activations may cost.
"""

from __future__ import annotations

from torch import Tensor

from bench.cases import Accuracy, Candidate, Case, Context
from bench.gpu.gemm_int4 import PEERS, Inputs, beside_peers, make_inputs, packed_weights, work
from bench.gpu.plans import plan

__all__ = ["PEERS", "candidates", "make_inputs"]


def candidates(case: Case, context: Context) -> list[Candidate]:
    return beside_peers(case, context, _lamina)


def accuracy(inputs: Inputs, out: object) -> Accuracy:
    """Activations are at most half a step off, and what rounding to f32 adds."""
    half_steps = inputs.a.double().abs().amax(1) / 254
    return inputs.accuracy(out, a_error=half_steps * (1 + 2**-16))


def _lamina(case: Case, inputs: Inputs, context: Context) -> Candidate:
    import lamina

    ring = packed_weights(case, inputs, context)

    def call() -> Tensor:
        packed, scale = next(ring)
        return lamina.gemm_int4_int8(inputs.a, packed, scale, group=inputs.group, out_dtype=inputs.a.dtype)

    def check(out: object) -> Accuracy:
        return accuracy(inputs, out)

    computes = f"activations from {case.dtype} to int8 per token, integer sums of groups"
    return Candidate(
        *("lamina", computes, call, lambda: check(call()), work(case, inputs, "int8"), ring),
        plan=plan(case, inputs.group),
        check_output=check,
    )
