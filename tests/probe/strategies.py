"""Random arguments that several files of properties share."""

from __future__ import annotations

from hypothesis import strategies as st


def groups(op: str) -> st.SearchStrategy[int]:
    """Input features that share scales, few or many; 0 without scales along k."""
    if op in ("gemm_int8", "matmul_sparse24_int8"):
        return st.sampled_from((0, 128))
    if op == "matmul_sparse24":
        return st.just(0)
    return (st.integers(1, 80) | st.integers(80, 4000)).map(lambda steps: 16 * steps)
