"""Every input that sample_tokens, verify_draft and pack_tree_mask refuse."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch

import lamina
from tests.support.bad_input import RAW, BadInput, M, N

LONG, INT32 = torch.int64, torch.int32


def sample_arguments() -> dict[str, Any]:
    return {
        "logits": torch.ones(M, N),
        "seed": torch.ones(M, dtype=LONG),
        "offset": torch.ones(M, dtype=LONG),
    }


def verify_arguments() -> dict[str, Any]:
    """Two requests."""
    return {
        "logits": torch.ones(M, N),
        "draft_tokens": torch.ones(M, dtype=INT32),
        "cu_seqlens_q": torch.tensor([0, 1, M], dtype=INT32),
        "max_seqlen_q": M,
        "seed": torch.ones(2, dtype=LONG),
        "offset": torch.ones(2, dtype=LONG),
    }


def bad_inputs() -> Iterator[BadInput]:
    def bad(what: str, argument: str, got: str, allowed: str, **changed: Any) -> BadInput:
        call = functools.partial(lamina.sample_tokens, **(sample_arguments() | changed))
        return BadInput("sample_tokens", what, call, argument, got, allowed)

    x, one = torch.ones(M, N), torch.ones(1)
    yield bad("logits None", "logits", "None", "torch.Tensor", logits=None)
    yield bad("temperature a number", "temperature", "float 1.0", "torch.Tensor or None", temperature=1.0)
    yield bad("top_k a number", "top_k", "int 5", "torch.Tensor or None", top_k=5)
    yield bad("seed a number", "seed", "int 5", "torch.Tensor", seed=5)
    yield bad("logits 1-D", "logits", "1-D [5]", "2-D [m, vocab]", logits=x[0])
    yield bad("logits transposed", "logits", "3", "column stride 1", logits=torch.ones(N, M).T)
    yield bad("logits f64", "logits", "float64", "bfloat16", logits=x.double())
    vocab = 2**22 + 1
    wide = torch.empty(0, vocab)
    yield bad("too many tokens", "vocab = ", str(vocab), "at most 4194304", logits=wide)
    for name in ("temperature", "top_p", "min_p"):
        yield bad(f"{name} f64", name, "float64", "float32", **{name: one.double()})
        yield bad(f"{name} of two", name, "1-D [2]", "1 element or be [m] = 3", **{name: torch.ones(2)})
    yield bad("top_k int64", "top_k", "int64", "int32", top_k=one.long())
    yield bad("top_k of two", "top_k", "1-D [2]", "1 element or be [m] = 3", top_k=torch.ones(2, dtype=INT32))
    for name in ("seed", "offset"):
        yield bad(f"{name} int32", name, "int32", "int64", **{name: one.int()})
        yield bad(
            f"{name} of two", name, "1-D [2]", "1 element or be [m] = 3", **{name: torch.ones(2).long()}
        )
    yield bad("top_p on another device", "top_p", "meta", "cpu", top_p=one.to("meta"))
    yield bad("seed on another device", "seed", "meta", "cpu", seed=one.long().to("meta"))

    def bad_verify(what: str, argument: str, got: str, allowed: str, **changed: Any) -> BadInput:
        call = functools.partial(lamina.verify_draft, **(verify_arguments() | changed))
        return BadInput("verify_draft", what, call, argument, got, allowed)

    yield bad_verify("draft_tokens a list", "draft_tokens", "list [1]", "torch.Tensor", draft_tokens=[1])
    yield bad_verify("max_seqlen_q a float", "max_seqlen_q", "float 3.0", "int", max_seqlen_q=3.0)
    yield bad_verify("parents a list", "parents", "list [1]", "torch.Tensor or None", parents=[1])
    yield bad_verify("logits 1-D", "logits", "1-D [5]", "2-D [m, vocab]", logits=x[0])
    yield bad_verify("too many tokens", "vocab = ", str(vocab), "at most 4194304", logits=wide)
    yield bad_verify(
        "draft_tokens of floats", "draft_tokens", "float32", "int32 or int64", draft_tokens=torch.ones(M)
    )
    yield bad_verify(
        "too few drafts", "draft_tokens", "1-D [1]", "= 3", draft_tokens=torch.ones(1, dtype=INT32)
    )
    yield bad_verify(
        "cu_seqlens_q int64", "cu_seqlens_q", "int64", "int32", cu_seqlens_q=torch.tensor([0, 1, M])
    )
    none = torch.ones(0, dtype=INT32)
    yield bad_verify("cu_seqlens_q empty", "cu_seqlens_q", "1-D [0]", "1-D [requests + 1]", cu_seqlens_q=none)
    strided = torch.zeros(6, dtype=INT32)[::2]
    yield bad_verify(
        "cu_seqlens_q strided", "cu_seqlens_q", "contiguous", ".contiguous()", cu_seqlens_q=strided
    )
    for most in (0, -1, 2**31):
        yield bad_verify(f"max_seqlen_q {most}", "max_seqlen_q", f"= {most}", "at least 1", max_seqlen_q=most)
    yield bad_verify("parents int64", "parents", "int64", "int32", parents=torch.ones(M, dtype=LONG))
    yield bad_verify("too few parents", "parents", "1-D [2]", "= 3", parents=torch.ones(2, dtype=INT32))
    yield bad_verify("draft_probs f16", "draft_probs", "float16", "float32", draft_probs=x.half())
    yield bad_verify("draft_probs 1-D", "draft_probs", "1-D [5]", "2-D [m, vocab]", draft_probs=x[0])
    yield bad_verify("draft_probs of two rows", "draft_probs", "2-D [2, 5]", "= [3, 5]", draft_probs=x[:2])
    yield bad_verify("seed for each row", "seed", "1-D [3]", "[requests] = 2", seed=torch.ones(3, dtype=LONG))
    yield bad_verify(
        "parents on another device",
        "parents",
        "meta",
        "cpu",
        parents=torch.ones(M, dtype=INT32, device="meta"),
    )

    good: dict[str, Any] = {
        "parents": torch.tensor([-1, 0, -1], dtype=INT32),
        "cu_seqlens_q": torch.tensor([0, 2, 3], dtype=INT32),
        "max_seqlen_q": 2,
    }

    def bad_tree(what: str, argument: str, got: str, allowed: str, **changed: Any) -> BadInput:
        call = functools.partial(lamina.pack_tree_mask, **(good | changed))
        return BadInput("pack_tree_mask", what, call, argument, got, allowed)

    def ints(*values: int) -> torch.Tensor:
        return torch.tensor(values, dtype=INT32)

    yield bad_tree("parents a list", "parents", "list [1]", "torch.Tensor", parents=[1])
    yield bad_tree("max_seqlen_q None", "max_seqlen_q", "None", "int", max_seqlen_q=None)
    yield bad_tree("parents int64", "parents", "int64", "int32", parents=good["parents"].long())
    yield bad_tree("parents 2-D", "parents", "2-D [1, 3]", "1-D [tokens]", parents=good["parents"][None])
    yield bad_tree(
        "a node above itself",
        "parents[1]",
        "= 1 of node 1 of request 0",
        "-1 or a node before it",
        parents=ints(-1, 1, -1),
    )
    yield bad_tree(
        "a cycle",
        "parents[0]",
        "= 1 of node 0 of request 0",
        "-1 or a node before it",
        parents=ints(1, 0, -1),
    )
    yield bad_tree(
        "a node of another request",
        "parents[2]",
        "= 1 of node 0 of request 1",
        "-1 or a node before it",
        parents=ints(-1, 0, 1),
    )
    yield bad_tree(
        "a parent below -1", "parents[1]", "= -2", "-1 or a node before it", parents=ints(-1, -2, -1)
    )
    yield bad_tree(
        "offsets that begin late", "cu_seqlens_q[0]", "= 1", "must be 0", cu_seqlens_q=ints(1, 2, 3)
    )
    yield bad_tree(
        "offsets that decrease", "cu_seqlens_q[2]", "= 1", "not be below", cu_seqlens_q=ints(0, 2, 1)
    )
    yield bad_tree(
        "offsets that end early", "cu_seqlens_q[2]", "= 2", "number of tokens, 3", cu_seqlens_q=ints(0, 2, 2)
    )
    yield bad_tree(
        "max_seqlen_q too small", "max_seqlen_q", "= 1", "at least the 2 nodes of request 0", max_seqlen_q=1
    )
    yield bad_tree(
        "offsets on another device",
        "cu_seqlens_q",
        "meta",
        "cpu",
        cu_seqlens_q=torch.ones(3, dtype=INT32, device="meta"),
    )
    call = functools.partial(RAW.explain_sample, 1, -2)
    yield BadInput("explain_sample", "negative vocab", call, "vocab = ", "-2", "negative")
