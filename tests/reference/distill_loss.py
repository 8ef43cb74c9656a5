"""The divergence of two distributions over a vocabulary in float64, token by token."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]


def probabilities(hidden: F64, head: F64, bias: F64, temperature: float) -> list[float]:
    logits = [(float(row @ hidden) + float(b)) / temperature for row, b in zip(head, bias, strict=True)]
    largest = max(logits)
    powers = [math.exp(logit - largest) for logit in logits]
    return [power / math.fsum(powers) for power in powers]


def kl(p: list[float], q: list[float]) -> float:
    return math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def divergence(p: list[float], q: list[float], kind: str, beta: float) -> float:
    """p of the teacher, q of the student."""
    if kind == "forward":
        return kl(p, q)
    if kind == "reverse":
        return kl(q, p)
    middle = [beta * a + (1 - beta) * b for a, b in zip(p, q, strict=True)]
    return beta * kl(p, middle) + (1 - beta) * kl(q, middle)


def distill_loss(
    student: tuple[F64, F64, F64], teacher: tuple[F64, F64, F64], kind: str, beta: float, temperature: float,
    weight: F64,
) -> float:  # fmt: skip
    """Student and teacher are (hidden states [tokens, d], head [V, d], bias [V])."""
    total = 0.0
    for at in range(len(weight)):
        q = probabilities(student[0][at], student[1], student[2], temperature)
        p = probabilities(teacher[0][at], teacher[1], teacher[2], temperature)
        total += float(weight[at]) * divergence(p, q, kind, beta)
    return total / math.fsum(weight) * temperature**2
