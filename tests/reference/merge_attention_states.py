"""Attention merged from parts, in float64, with the bound of the documented steps."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tests.reference.gemm import Expected

F64 = NDArray[np.float64]
U = 2.0**-24
# Unit roundoff and smallest subnormal of the result.
ROUNDOFF = {"float32": (0.0, 2.0**-149), "float16": (2.0**-11, 2.0**-24), "bfloat16": (2.0**-8, 2.0**-133)}


def merge_attention_states(
    outs: list[F64], lses: list[F64], sinks: F64 | None, out_dtype: str
) -> tuple[Expected, Expected]:
    """outs [tokens, heads, head_dim] and lses [heads, tokens] in float64; returns out and lse with bounds."""
    parts, (tokens, heads, head_dim) = len(outs), outs[0].shape
    out, out_bound = np.zeros((2, tokens, heads, head_dim))
    lse, lse_bound = np.full((heads, tokens), -np.inf), np.zeros((heads, tokens))
    unit, smallest = ROUNDOFF[out_dtype]
    for t in range(tokens):
        for h in range(heads):
            given = [p for p in range(parts) if lses[p][h, t] != -np.inf]
            if not given:
                continue
            logs = np.array([lses[p][h, t] for p in given])
            rows = np.stack([outs[p][t, h] for p in given])
            lse[h, t], drift = _log_sum(logs)
            lse_bound[h, t] = U * (drift + parts + 4 + 2 * np.log(parts) + abs(lse[h, t]))
            sink = -np.inf if sinks is None else sinks[h]
            total, drift = _log_sum(np.append(logs, sink))
            weights = np.exp(logs - total)
            # An infinite row with a weight of 0 is not read.
            rows = np.where(weights[:, None] == 0, 0.0, rows)
            distance = np.abs(logs - max(logs.max(), sink))
            out[t, h] = weights @ rows
            spread = (weights * (distance + drift + 2 * parts + 8)) @ np.abs(rows)
            out_bound[t, h] = (
                U * spread + unit * np.abs(out[t, h]) + 2.0**-148 * np.abs(rows).sum(0) + smallest
            )
    return Expected(out, out_bound), Expected(lse, lse_bound)


def _log_sum(logs: F64) -> tuple[float, float]:
    """log(sum(exp(logs))), and the mean distance to the largest, weighted by the exponentials."""
    largest = logs.max()
    weights = np.exp(logs - largest)
    distances = np.where(weights > 0, largest - np.where(weights > 0, logs, largest), 0.0)
    return float(largest + np.log(weights.sum())), float((weights * distances).sum() / weights.sum())
