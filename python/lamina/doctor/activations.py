"""The checks of lamina doctor for rms_norm, silu_mul and their int8 forms."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from lamina import ops
from lamina.doctor.outcome import DeviceCheck, Outcome
from lamina.ops import QuantizedInt8
from lamina.testing import error_over_bound, reference, same_values

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SHAPES = ((1, 1), (3, 65), (5, 2200))


def _cases() -> Iterator[tuple[Tensor, Tensor, Tensor, str]]:
    """Two inputs [m, n], of which the first has rows n + 3 apart, a weight [n], and a label."""
    seed = torch.Generator().manual_seed(7)
    for m, n in SHAPES:
        for dtype in DTYPES:
            x = (torch.randn(m, n + 3, generator=seed) * 3 + 1).to(dtype)[:, :n]
            other = torch.randn(m, n, generator=seed).to(dtype)
            weight = torch.randn(n, generator=seed).to(dtype)
            yield x, other, weight, f"{str(dtype).removeprefix('torch.')} [{m}, {n}]"


def _check_rms_norm(device: torch.device) -> Iterator[Outcome]:
    for x, residual, weight, label in _cases():
        out = ops.rms_norm(x.to(device), weight.to(device))
        yield Outcome(label, error_over_bound(out.cpu(), reference.rms_norm(x, weight, 1e-6)))
        out, z = ops.rms_norm(x.to(device), weight.to(device), residual=residual.to(device))
        error = error_over_bound(out.cpu(), reference.rms_norm(x + residual, weight, 1e-6))
        yield Outcome(f"residual {label}", error if same_values(z, x + residual) else math.inf)


def _check_rms_norm_int8(device: torch.device) -> Iterator[Outcome]:
    for x, residual, weight, label in _cases():
        given = x.to(device), weight.to(device)
        for symmetric in (True, False):
            q, z = ops.rms_norm_int8(*given, residual=residual.to(device), symmetric=symmetric)
            out, want_z = ops.rms_norm(*given, residual=residual.to(device))
            same = _is_quantised(q, out, symmetric) and same_values(z, want_z.cpu())
            yield Outcome(_label(symmetric, label), 0.0 if same else math.inf)


def _check_silu_mul(device: torch.device) -> Iterator[Outcome]:
    for gate, up, _, label in _cases():
        expected = reference.silu_mul(gate, up)
        out = ops.silu_mul(gate.to(device), up.to(device))
        yield Outcome(label, error_over_bound(out.cpu(), expected))
        out = ops.silu_mul(torch.cat([gate, up], 1).to(device))
        yield Outcome(f"one tensor {label}", error_over_bound(out.cpu(), expected))


def _check_silu_mul_int8(device: torch.device) -> Iterator[Outcome]:
    for gate, up, _, label in _cases():
        given = gate.to(device), up.to(device)
        for symmetric in (True, False):
            q = ops.silu_mul_int8(*given, symmetric=symmetric)
            same = _is_quantised(q, ops.silu_mul(*given), symmetric)
            yield Outcome(_label(symmetric, label), 0.0 if same else math.inf)


def _is_quantised(got: QuantizedInt8, x: Tensor, symmetric: bool) -> bool:
    """Whether `got` has the bits of the int8 form of x."""
    q, scale, zero_point = reference.quantize_int8(x.cpu(), symmetric=symmetric)
    same = same_values(got.q, q) and same_values(got.scale, scale)
    return same and (got.zero_point is None or same_values(got.zero_point, zero_point))


def _label(symmetric: bool, label: str) -> str:
    return f"{'symmetric' if symmetric else 'asymmetric'} {label}"


CHECKS: dict[str, DeviceCheck] = {
    "rms_norm": _check_rms_norm,
    "rms_norm_int8": _check_rms_norm_int8,
    "silu_mul": _check_silu_mul,
    "silu_mul_int8": _check_silu_mul_int8,
}
