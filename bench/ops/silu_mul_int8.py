"""silu_mul_int8 (symmetric, per token) beside torch ops in sequence: m tokens of n. k is not used."""

from __future__ import annotations

import torch
from torch import Tensor

import lamina
from bench.activations import DTYPES, ActivationBench, Inputs, Subject, bytes_of
from bench.cases import Case
from lamina.testing import reference


def make_inputs(case: Case, generator: torch.Generator) -> Inputs:
    """Gate and up."""
    gate, up = torch.randn(2, case.m, case.n, generator=generator).to(DTYPES[case.dtype])
    return gate * 2, up


def eager(gate: Tensor, up: Tensor) -> Tensor:
    return torch.nn.functional.silu(gate) * up


def other_bytes(case: Case) -> int:
    return bytes_of(case, 2)


BENCH = ActivationBench(
    Subject(
        "silu_mul_int8",
        True,
        "SiLU(gate) * up, quantised per token",
        make_inputs,
        lamina.silu_mul_int8,
        eager,
        reference.silu_mul,
        "explain_silu_mul",
        other_bytes,
    )
)
