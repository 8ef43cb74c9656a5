"""silu_mul and silu_mul_int8: exactly, in float64, and by the f32 steps of csrc/ops/silu_mul/silu_mul.h."""

from __future__ import annotations

import numpy as np
import torch

from tests.reference import activation
from tests.reference.gemm import Expected
from tests.reference.quantize import Quantized, quantize_int8

ROUNDING = {torch.float32: 0.0, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
SMALLEST = {torch.float32: 2.0**-149, torch.float16: 2.0**-24, torch.bfloat16: 2.0**-133}


def silu_mul(gate: torch.Tensor, up: torch.Tensor) -> Expected:
    """The result and its documented bound."""
    factor = up.double().numpy()
    with np.errstate(invalid="ignore", over="ignore"):
        exact = activation.exact("silu", gate.double().numpy()) * factor
        relative = 7 * activation.U + ROUNDING[gate.dtype]
        bound = np.abs(exact) * relative + 2.0**-148 * np.abs(factor) + SMALLEST[gate.dtype]
        return Expected(exact, bound * (1 + 2.0**-7))


def silu_mul_steps(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """The documented steps, each rounded to f32."""
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        product = activation.steps("silu", gate.float().numpy()) * up.float().numpy()
    return torch.from_numpy(product).to(gate.dtype)


def silu_mul_int8(gate: torch.Tensor, up: torch.Tensor, symmetric: bool) -> Quantized:
    """The int8 form of silu_mul_steps."""
    return quantize_int8(silu_mul_steps(gate, up).float().numpy(), symmetric=symmetric)
