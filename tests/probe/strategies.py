"""Random arguments that several files of properties share."""

from __future__ import annotations

from hypothesis import strategies as st


def groups(op: str) -> st.SearchStrategy[int]:
    """Input features that share scales, few or many; 0 without scales along k."""
    if op == "gemm_int8":
        return st.sampled_from((0, 128))
    return (st.integers(1, 80) | st.integers(80, 4000)).map(lambda steps: 16 * steps)
