"""The inputs that the settings and the ops that explain refuse."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tests.support.bad_input import RAW, BadInput


def bad_inputs() -> Iterator[BadInput]:
    def explain(m: int, n: int, k: int) -> Callable[[], Any]:
        return lambda: RAW.explain_gemm_int8(m, n, k)

    def bad(op: str, what: str, call: Callable[[], Any], argument: str, got: str, allowed: str) -> BadInput:
        return BadInput(op, what, call, argument, got, allowed)

    yield bad("set_cpu_isa", "unknown", lambda: RAW.set_cpu_isa("sse9"), "name", "sse9", "allowed: auto")
    yield bad("explain_gemm_int8", "negative m", explain(-1, 2, 3), "m = ", "-1", "negative")
    yield bad("explain_gemm_int8", "deep k", explain(1, 2, 2**24), "k = ", "16777216", "at most 16777215")
    yield bad("explain_gemm_int8", "group 7", lambda: RAW.explain_gemm_int8(1, 2, 3, 7), "group", "7", "128")
    yield bad("explain_gemm_int8", "huge", explain(2**40, 2**40, 3), "m = ", "1099511627776", "2^63 bytes")
    yield bad(
        "explain_quantize_int8",
        "negative k",
        lambda: RAW.explain_quantize_int8(1, -2),
        "k = ",
        "-2",
        "negative",
    )

    def attention(*extents: int) -> Callable[[], Any]:
        return lambda: RAW.explain_paged_attention(*extents)

    op = "explain_paged_attention"
    yield bad(op, "no requests", attention(0, 1, 8, 4, 2), "batch = ", "0", "at least 1")
    yield bad(op, "few keys", attention(1, 9, 8, 4, 2), "context = ", "8", "q_len = 9")
    yield bad(op, "uneven heads", attention(1, 1, 8, 4, 3), "heads = ", "4", "multiple of kv_heads")
