"""rms_norm and rms_norm_int8: exactly, in float64, and by the f32 steps of csrc/ops/rms_norm/rms_norm.h."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from tests.reference.gemm import Expected
from tests.reference.quantize import Quantized, quantize_int8

F32 = NDArray[np.float32]
U = 2.0**-24
ROUNDING = {torch.float32: 0.0, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
SMALLEST = {torch.float32: 2.0**-149, torch.float16: 2.0**-25, torch.bfloat16: 2.0**-134}


def add(x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """The new residual."""
    return (x.float() + residual.float()).to(x.dtype)


def rms_norm(z: torch.Tensor, weight: torch.Tensor, eps: float) -> Expected:
    """The result and its documented bound for rows z [m, n], the new residual where there is one."""
    n = z.shape[1]
    values, scales = z.double(), weight.double()
    mean = values.square().sum(1, keepdim=True) / max(n, 1)
    exact = values / (mean + float(np.float32(eps))).sqrt() * scales
    steps = 14 + -(-n // _columns_a_turn(z.dtype))
    relative = (steps / 2 + 5) * U + 2 * ROUNDING[z.dtype]
    bound = (exact.abs() * relative + SMALLEST[z.dtype] * (1 + scales.abs())) * (1 + 2.0**-6)
    return Expected(exact.numpy(), bound.numpy())


def rms_norm_steps(z: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """The documented steps, each rounded to f32."""
    values, n = z.float().numpy(), z.shape[1]
    with np.errstate(over="ignore", invalid="ignore", divide="ignore", under="ignore"):
        mean = _sum_of_squares(values, _columns_a_turn(z.dtype) // 256) / np.float32(n)
        inverse = np.float32(1) / np.sqrt(mean + np.float32(eps))
        scaled = torch.from_numpy(values * inverse[:, None]).to(z.dtype)
    return (scaled.float() * weight.float()).to(z.dtype)


def rms_norm_int8(z: torch.Tensor, weight: torch.Tensor, eps: float, symmetric: bool) -> Quantized:
    """The int8 form of rms_norm_steps."""
    return quantize_int8(rms_norm_steps(z, weight, eps).float().numpy(), symmetric=symmetric)


def _columns_a_turn(dtype: torch.dtype) -> int:
    """Columns that the 256 lanes take at once, 16 bytes each."""
    return 256 * 16 // dtype.itemsize


def _sum_of_squares(z: F32, chunk: int) -> F32:
    m, n = z.shape
    sums = np.zeros(
        (m, 8 * 32 * chunk), np.float32
    )  # of each eighth of the lanes, lane, and place in a chunk
    for begin in range(0, n, sums.shape[1]):
        part = z[:, begin : begin + sums.shape[1]]
        sums[:, : part.shape[1]] += part * part
    by_lane = np.moveaxis(sums.reshape(m, 8, 32, chunk), 2, 0)
    by_eighth = np.moveaxis(_halved(by_lane), 1, 0)
    return _halved(np.moveaxis(_halved(by_eighth), 1, 0))


def _halved(terms: F32) -> F32:
    """The sum over the first axis: term a takes term a + half, again and again."""
    while len(terms) > 1:
        half = len(terms) // 2
        terms = terms[:half] + terms[half:]
    first: F32 = terms[0]
    return first
