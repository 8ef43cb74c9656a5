"""rms_norm with a residual beside torch ops in sequence: m tokens of n. k is not used."""

from __future__ import annotations

from torch import Tensor

import lamina
from bench.activations import ActivationBench, Subject
from bench.ops.rms_norm_int8 import EPS, eager, expected, make_inputs, other_bytes


def _normalized(x: Tensor, residual: Tensor, weight: Tensor) -> Tensor:
    return lamina.rms_norm(x, weight, eps=EPS, residual=residual)[0]


BENCH = ActivationBench(
    Subject(
        "rms_norm",
        False,
        "adds the residual, normalises",
        make_inputs,
        _normalized,
        eager,
        expected,
        "explain_rms_norm",
        other_bytes,
    )
)
