"""rms_norm_int8 with a residual (symmetric) beside torch ops in sequence: m tokens of n. k is not used."""

from __future__ import annotations

import torch
from torch import Tensor

import lamina
from bench.activations import DTYPES, ActivationBench, Inputs, Subject, bytes_of
from bench.cases import Case
from lamina.testing import reference
from lamina.testing.reference import Expected

EPS = 1e-5


def make_inputs(case: Case, generator: torch.Generator) -> Inputs:
    """x, residual and weight."""
    shape, dtype = (case.m, case.n), DTYPES[case.dtype]
    x, residual = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    return x, residual, (torch.rand(case.n, generator=generator) + 0.5).to(dtype)


def eager(x: Tensor, residual: Tensor, weight: Tensor) -> Tensor:
    """LlamaRMSNorm of transformers after the addition of the residual."""
    z = x + residual
    wide = z.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)
    return weight * wide.to(x.dtype)


def expected(x: Tensor, residual: Tensor, weight: Tensor) -> Expected:
    return reference.rms_norm(x + residual, weight, EPS)


def other_bytes(case: Case) -> int:
    """x, residual and new residual; the weight stays in cache."""
    return bytes_of(case, 3)


def _quantized(x: Tensor, residual: Tensor, weight: Tensor) -> lamina.QuantizedInt8:
    return lamina.rms_norm_int8(x, weight, eps=EPS, residual=residual)[0]


BENCH = ActivationBench(
    Subject(
        "rms_norm_int8",
        True,
        "adds the residual, normalises, quantises per token",
        make_inputs,
        _quantized,
        eager,
        expected,
        "explain_rms_norm",
        other_bytes,
    )
)
