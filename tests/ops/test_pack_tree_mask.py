"""pack_tree_mask against a walk upwards from every node, and as paged_attention takes it."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch

import lamina
from tests.reference.sample import pack_tree_mask
from tests.support.backends import Backend, backends, cuda_backends
from tests.support.compare import assert_equal
from tests.support.sample_cases import INT32

BACKENDS = pytest.mark.parametrize("backend", backends("sample"))


def check(backend: Backend, trees: list[list[int]], most: int) -> None:
    parents = torch.tensor([p for tree in trees for p in tree], dtype=INT32)
    offsets = torch.tensor([0, *np.cumsum([len(t) for t in trees])], dtype=INT32)
    mask, length, depth = backend.run("pack_tree_mask", parents, offsets, most)
    want = [pack_tree_mask(tree, -(-most // 32)) for tree in trees]
    rows = np.concatenate([np.zeros((0, -(-most // 32)), np.int32), *(m for m, _ in want)])
    assert_equal(mask, torch.from_numpy(rows), trees)
    assert length.tolist() == [len(t) for t in trees] and length.dtype == INT32
    assert_equal(depth, torch.tensor([d for _, depths in want for d in depths], dtype=INT32), trees)


@BACKENDS
def test_every_small_tree(backend: Backend) -> None:
    """All forests of up to 5 nodes, in one batch; the last request also in words that it does not need."""
    trees = [list(t) for n in range(6) for t in itertools.product(*(range(-1, i) for i in range(n)))]
    check(backend, trees, 5)
    check(backend, trees[-1:], 70)


@BACKENDS
def test_large_trees(backend: Backend) -> None:
    r = random.Random(1)
    trees = [[r.randrange(-1, i) for i in range(n)] for n in (33, 1, 0, 64, 31, 100)]
    check(backend, [*trees, list(range(-1, 64)), [-1] + [0] * 40], 100)
    check(backend, [], 3)


@pytest.mark.parametrize("backend", cuda_backends("sample"))
def test_bad_trees_on_cuda_are_empty_and_recorded(backend: Backend) -> None:
    """The trees beside them are right; the first error is kept until it is taken."""
    good = torch.tensor([-1, 0, 0, 1, -1, -1, 0], dtype=INT32)
    offsets = torch.tensor([0, 4, 5, 7], dtype=INT32)
    want = backend.run("pack_tree_mask", good, offsets, 4)
    for place, value in ((1, 1), (2, -2), (3, 3), (0, 0), (1, 2**31 - 1)):
        bad = good.clone()
        bad[place] = value
        mask, length, depth = backend.run("pack_tree_mask", bad, offsets, 4)
        assert length.tolist() == [0, 1, 2]
        assert not mask[:4].any() and not depth[:4].any()
        assert_equal(mask[4:], want[0][4:])
        assert_equal(depth[4:], want[2][4:])
        text = f"pack_tree_mask: parents[{place}] = {value} must be -1 or a node before it in its request"
        assert backend.take_error() == text
    for wrong, row, value, lengths in (([0, 4, 5, 8], 3, 8, [4, 1, 0]), ([-1, 4, 5, 7], 1, 4, [0, 1, 2])):
        length = backend.run("pack_tree_mask", good, torch.tensor(wrong, dtype=INT32), 4)[1]
        assert length.tolist() == lengths
        assert backend.take_error().startswith(
            f"pack_tree_mask: cu_seqlens_q[{row}] = {value} must be offsets"
        )


def test_the_mask_is_the_chain_that_causal_attention_sees() -> None:
    g, cu = torch.Generator().manual_seed(1), torch.tensor([0, 5], dtype=INT32)
    q, k, v = (torch.randn(5, 2, 16, generator=g) for _ in range(3))
    pages = torch.tensor([[0]], dtype=INT32), torch.tensor([5], dtype=INT32), cu
    chain = lamina.pack_tree_mask(torch.arange(-1, 4, dtype=INT32), cu, 5)
    with_mask = lamina.paged_attention(q, k[None], v[None], *pages, max_seqlen_q=5, **chain._asdict())
    assert_equal(with_mask, lamina.paged_attention(q, k[None], v[None], *pages, max_seqlen_q=5))
