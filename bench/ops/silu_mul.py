"""silu_mul beside torch ops in sequence: m tokens of n. k is not used."""

from __future__ import annotations

import lamina
from bench.activations import ActivationBench, Subject
from bench.ops.silu_mul_int8 import eager, make_inputs, other_bytes
from lamina.testing import reference

BENCH = ActivationBench(
    Subject(
        "silu_mul",
        False,
        "SiLU(gate) * up",
        make_inputs,
        lamina.silu_mul,
        eager,
        reference.silu_mul,
        "explain_silu_mul",
        other_bytes,
    )
)
