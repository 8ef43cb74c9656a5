"""Random indices from an engine, right and wrong: an error, or the right answer; never a stray read.

Operands lie before unreadable pages. tests/cpp/test_paged_attention.cc tries many more with sanitizers.
"""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.attention_cases import BATCHES, TREES, AttentionCase, AttentionInputs
from tests.support.attention_check import attend, check_attention
from tests.support.backends import available_cpu

INDICES = ("block_table", "seq_lens", "cu_seqlens_q", "tree_len", "tree_mask", "tree_depth")
VALUES = st.sampled_from([-(2**31), -1, 0, 1, 2, 3, 5, 8, 40, 2**31 - 1])
CASES = st.builds(
    AttentionCase,
    batch=st.sampled_from([name for name in BATCHES if not name.startswith("long")]),
    cache=st.sampled_from(["f32", "e4m3", "int8_token"]),
    heads=st.just((1, 2)),
    head_dim=st.just(8),
    page=st.sampled_from([1, 7, 16]),
    causal=st.booleans(),
    window=st.sampled_from([(-1, -1), (2, -1), (0, 3)]),
    tree=st.sampled_from(["", *TREES]),
    layout=st.sampled_from(["nhd", "hnd", "padded"]),
)
CHANGES = st.lists(st.tuples(st.sampled_from(INDICES), st.integers(0, 10**6), VALUES), max_size=4)


def spoiled(inputs: AttentionInputs, changes: list[tuple[str, int, int]]) -> AttentionInputs:
    """The inputs with some entries overwritten; each change is an argument, a place and a value."""
    for name, place, value in changes:
        old = getattr(inputs, name)
        if old is not None and old.numel():
            new = old.clone()
            new.view(-1)[place % new.numel()] = value
            inputs = inputs.replace(**{name: new})
    return inputs


def problem_of(inputs: AttentionInputs) -> str:
    """Why the call must be refused, or nothing."""
    offsets = inputs.cu_seqlens_q.tolist()
    if offsets[0] != 0 or offsets != sorted(offsets) or offsets[-1] != len(inputs.q):
        return "cu_seqlens_q"
    page_size = inputs.k_cache.shape[1]
    for b, seq_len in enumerate(inputs.seq_lens.tolist()):
        q_len = offsets[b + 1] - offsets[b]
        nodes = 0 if inputs.tree_len is None else int(inputs.tree_len[b])
        if q_len > inputs.max_seqlen_q:
            return "max_seqlen_q"
        if not 0 <= seq_len <= inputs.block_table.shape[1] * page_size:
            return "seq_lens"
        words = 0 if inputs.tree_mask is None else inputs.tree_mask.shape[1]
        if not 0 <= nodes <= min(q_len, seq_len, 32 * words):
            return "tree_len"
        end = offsets[b + 1]
        if nodes and inputs.tree_depth is not None and inputs.tree_depth[end - nodes : end].min() < 0:
            return "tree_depth"
    return ""


def stray_pages(inputs: AttentionInputs) -> bool:
    """Whether a length reaches a page that is not in the cache; an error, unless no token sees this page."""
    pages, page_size = inputs.k_cache.shape[:2]
    reached = [
        inputs.block_table[b, : -(-seq_len // page_size)]
        for b, seq_len in enumerate(inputs.seq_lens.tolist())
    ]
    return any(((row < 0) | (row >= pages)).any() for row in reached)


@given(CASES, CHANGES, st.integers(0, 2))
def test_an_error_or_the_right_answer(
    case: AttentionCase, changes: list[tuple[str, int, int]], number: int
) -> None:
    backends = available_cpu("paged_attention")
    backend = backends[number % len(backends)]
    inputs = spoiled(case.inputs(), changes)
    if problem := problem_of(inputs):
        with pytest.raises((ValueError, RuntimeError), match=f"lamina::paged_attention: .*{problem}"):
            attend(backend, inputs)
    elif stray_pages(inputs):
        try:
            attend(backend, inputs)
        except (ValueError, RuntimeError) as error:
            assert "block_table[" in str(error)
        else:
            # Pages that no token sees may be anywhere.
            pages = inputs.block_table.clamp(0, len(inputs.k_cache) - 1)
            check_attention(backend, inputs, inputs.replace(block_table=pages).expected(), case)
    else:
        check_attention(backend, inputs, inputs.expected(), case)


@pytest.mark.parametrize("name", INDICES)
def test_the_spoiled_index_is_found(name: str) -> None:
    """The oracle above notices a bad value in each argument, except in masks, whose bits are all valid."""
    inputs = dataclasses.replace(AttentionCase("verify", head_dim=8), tree="chain").inputs()
    bad = spoiled(
        inputs, [(name, place, -1) for place in (0, 3)] if name != "tree_depth" else [(name, 8, -1)]
    )
    assert bool(problem_of(bad) or stray_pages(bad)) == (name != "tree_mask")


def test_tokens_that_share_pages() -> None:
    """Two requests with a common prefix: the same pages stand in both rows of the table."""
    case = AttentionCase(((2, 20), (3, 20)), heads=(1, 2), head_dim=8, page=4)
    inputs = case.inputs()
    table = inputs.block_table.clone()
    table[1, :3] = table[0, :3]
    shared = inputs.replace(block_table=table)
    for backend in available_cpu("paged_attention"):
        check_attention(backend, shared, shared.expected())
