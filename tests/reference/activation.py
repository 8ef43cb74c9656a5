"""The activations of csrc/gemm/activation.h: exactly, in float64, and by the f32 steps of the kernels."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

F64 = NDArray[np.float64]
F32 = NDArray[np.float32]

NAMES = ("gelu", "gelu_tanh", "silu")
LIPSCHITZ = 1.13  # the largest slope of any of them: gelu's at sqrt(2) is 1.1290
U = 2.0**-24


def exact(name: str, y: F64) -> F64:
    """The activation by its definition; -Inf gives the limit, -0."""
    with np.errstate(invalid="ignore", over="ignore"):
        if name == "gelu":
            share = 0.5 * torch.special.erfc(torch.from_numpy(-y / np.sqrt(2.0))).numpy()
        else:
            v = y if name == "silu" else 2 * np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)
            share = torch.special.expit(torch.from_numpy(v)).numpy()
        return np.where(np.isneginf(y), -0.0, y * share)


def bound(name: str, y: F64, s: F64) -> F64:
    """A bound of |activation(y) - s| where y is an f32 and s = exact(name, y)."""
    c = 0.0 if name == "silu" else 1.0
    with np.errstate(invalid="ignore", over="ignore"):
        negative = np.where(np.isneginf(y), 0.0, np.minimum(y, 0.0))
        return 6 * U * np.abs(s) * (1 + c * negative**2) + 2.0**-148


def steps(name: str, y: F32) -> F32:
    """The documented steps, each rounded to f32."""
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        positive = np.where(y < 0, np.float32(-0.0), y)
        most = {"gelu": 14.805, "gelu_tanh": 10.895, "silu": 109.6}[name]
        t = np.minimum(y.view(np.int32) & 0x7FFFFFFF, np.float32(most).view(np.int32)).view(np.float32)
        unit = np.float32(2.0**31)
        if name == "gelu":
            p = _polynomial(t, "0.5 0x1.c1d33cp-2 0x1.78c454p-3 0x1.4ee548p-5 0x1.102eccp-8")
            q = _polynomial(t, "1 0x1.ad2bcep+0 0x1.349e96p+0 0x1.e2b852p-2 0x1.a3c126p-4 0x1.55207cp-7")
            tail = t * p * _exp_minus(t * t * np.float32(0.5)) / (unit * q)
        else:
            c0, c1 = _constants("0x1.988454p+0 0x1.2444f2p-4")
            e = _exp_minus(t if name == "silu" else t * (c0 + c1 * (t * t)))
            tail = t * e / (unit + e)
        return np.asarray(positive - tail, np.float32)


def _exp_minus(z: F32) -> F32:
    """2^31 exp(-z)."""
    magic, log2_e, high, low = _constants("12583070 0x1.715476p+0 0x1.62e4p-1 0x1.7f7d1cp-20")
    biased = magic - z * log2_e
    n = magic - biased
    r = (n * high - z) + n * low
    p = _polynomial(r, "1 1 0x1.fffffcp-2 0x1.555492p-3 0x1.5558f2p-5 0x1.1239e0p-7 0x1.6a2410p-10")
    scale = (biased.view(np.uint32) << np.uint32(23)).view(np.float32)
    return np.asarray(p * scale, np.float32)


def _constants(text: str) -> list[np.float32]:
    return [np.float32(float.fromhex(word) if "x" in word else float(word)) for word in text.split()]


def _polynomial(x: F32, ascending: str) -> F32:
    """Evaluates a polynomial by Horner's rule."""
    *rest, value = _constants(ascending)
    result = np.full_like(x, value)
    for c in reversed(rest):
        result = result * x + c
    return result
