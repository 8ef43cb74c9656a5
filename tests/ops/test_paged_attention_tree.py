"""Trees of paged_attention: a node has the bits of its path, whatever other nodes there are."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.support.attention_cases import (
    CACHES,
    AttentionCase,
    AttentionInputs,
    chain,
    random_tree,
    write_tree,
)
from tests.support.attention_check import assert_same, attention_backends
from tests.support.attention_check import attend_invariantly as attend
from tests.support.attention_check import check_invariantly as check_attention
from tests.support.backends import Backend, CudaKernel
from tests.support.cases import generator
from tests.support.compare import assert_equal

BACKENDS = pytest.mark.parametrize("backend", attention_backends(16, 64))
CASE = AttentionCase(((9, 516), (4, 4), (3, 30)), heads=(1, 3), head_dim=16, page=16)
POSITIONS = {"window": (505, 2), "alibi": "requests", "sinks": True}


def q_dtype(cache: str) -> torch.dtype:
    """bf16 for a cache of bf16, which some instruction sets multiply without f32."""
    return torch.bfloat16 if cache == "bf16" else torch.float32


def with_tree(inputs: AttentionInputs, seen: torch.Tensor, depth: torch.Tensor | None) -> AttentionInputs:
    """The inputs with one tree of all tokens of request 0."""
    nodes, tokens = len(seen), len(inputs.q)
    mask = torch.full((tokens, -(-nodes // 32)), -1).int()
    write_tree(mask, 0, seen)
    lens = torch.zeros(len(inputs.seq_lens)).int()
    lens[0] = nodes
    depths = None if depth is None else torch.full((tokens,), 99).int()
    if depths is not None and depth is not None:
        depths[:nodes] = depth
    return inputs.replace(tree_mask=mask, tree_len=lens, tree_depth=depths)


@BACKENDS
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("depth_is_given", [False, True])
def test_a_chain_is_the_causal_rule(depth_is_given: bool, cache: str, backend: Backend) -> None:
    inputs = (
        dataclasses.replace(CASE, cache=cache, q_dtype=q_dtype(cache), out_dtype=torch.float32, **POSITIONS)
        .on(backend)
        .inputs()
    )
    want = attend(backend, inputs)
    seen, depth = chain(9)
    for causal in (True, False):
        tree = with_tree(inputs, seen, depth if depth_is_given else None).replace(causal=causal)
        alone = tree.request(0)
        assert_same(backend, alone, want, inputs.span(0), f"causal {causal}")


def path_alone(inputs: AttentionInputs, node: int, path: list[int]) -> AttentionInputs:
    """One token after the prefix and its path, whose keys and values have moved to the slots after the
    prefix."""
    prefix = int(inputs.seq_lens[0]) - int(inputs.tree_len[0])
    names = ("k_cache", "v_cache", "k_scale", "v_scale")
    moved = {}
    for name in names:
        t = getattr(inputs, name)
        if t is not None and t.numel() > 1:
            moved[name] = t.clone()
            for rank, ancestor in enumerate(path):
                moved[name][inputs.slot(0, prefix + rank)] = t[inputs.slot(0, prefix + ancestor)]
    return inputs.request(0).replace(
        **moved,
        q=inputs.q[node : node + 1],
        seq_lens=torch.tensor([prefix + len(path)]).int(),
        cu_seqlens_q=torch.tensor([0, 1]).int(),
        tree_mask=None,
        tree_len=None,
        tree_depth=None,
    )


@BACKENDS
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("prefix", [0, 506, 511])
def test_a_node_has_the_bits_of_its_path(prefix: int, cache: str, backend: Backend) -> None:
    """Prefixes of 506 and 511 make paths cross column 512, where a chunk ends. For CUDA kernels they are 58
    and 1018: paths cross the end of a block of 64 columns, and that of a split of 1024. A prefix sees half
    of the combinations of options and given depths."""
    nodes = 36
    choices = (({}, prefix == 506), (POSITIONS, prefix != 506))
    if isinstance(backend, CudaKernel):
        prefix = {0: 0, 506: 58, 511: 1018}[prefix]
    for options, depth_is_given in choices:
        case = AttentionCase(
            ((nodes, prefix + nodes),), q_dtype(cache), cache, heads=(1, 3), head_dim=16,
            out_dtype=torch.float32, **options,
        )  # fmt: skip
        inputs = case.on(backend).inputs()
        seen, depth = random_tree(nodes, generator(f"path {prefix}"))
        assert depth.max() >= 7
        tree = with_tree(inputs, seen, depth if depth_is_given else None)
        out, lse = attend(backend, tree)
        for node in depth.argsort(stable=True).tolist()[::-11]:  # from the deepest to one of the first
            path = seen[node].nonzero().flatten().tolist()
            want = attend(backend, path_alone(tree, node, path))
            assert_equal(out[node : node + 1], want[0], f"node {node}, {options}")
            assert_equal(lse[:, node : node + 1], want[1], f"node {node}, {options}")


@BACKENDS
def test_columns_follow_depth_and_then_slots(backend: Backend) -> None:
    """Nodes in another order of slots have the same bits, and a node may come before its parent. Paths of
    more than three nodes cross column 512, where a chunk of a CPU ends and a block of 64 columns of a GPU."""
    nodes, prefix = 20, 509
    lens = ((nodes, prefix + nodes),)
    case = AttentionCase(lens, heads=(1, 2), head_dim=16, page=16, out_dtype=torch.float32)
    inputs = case.on(backend).inputs()
    seen, depth = random_tree(nodes, generator("order"))
    assert depth.max() >= 4
    want = attend(backend, with_tree(inputs, seen, depth))
    order = torch.randperm(nodes, generator=generator("order of slots"))
    moved = {}
    for name in ("k_cache", "v_cache"):
        t = getattr(inputs, name)
        moved[name] = t.clone()
        for new, old in enumerate(order.tolist()):
            moved[name][inputs.slot(0, prefix + new)] = t[inputs.slot(0, prefix + old)]
    shuffled = inputs.replace(q=inputs.q[order], **moved)
    for given in (None, depth[order]):
        tree = with_tree(shuffled, seen[order][:, order], given)
        assert_same(backend, tree, want, order.tolist())


@BACKENDS
def test_tokens_before_the_tree_follow_the_causal_rule(backend: Backend) -> None:
    case = AttentionCase(((9, 30),), heads=(1, 2), head_dim=16, page=16, window=(7, -1), alibi="heads")
    inputs = case.on(backend).inputs()
    want = attend(backend, inputs)
    for nodes in (0, 1, 4, 8):
        mask = torch.full((9, 1), -1).int()
        write_tree(mask, 9 - nodes, torch.eye(nodes).bool())
        tree = inputs.replace(tree_mask=mask, tree_len=torch.tensor([nodes]).int())
        out, lse = check_attention(backend, tree, tree.expected(), f"{nodes} nodes")
        before = slice(0, 9 - nodes)
        assert_equal(out[before], want[0][before])
        assert_equal(lse[:, before], want[1][:, before])


@BACKENDS
@pytest.mark.parametrize("nodes", [31, 32, 33, 64, 65, 130])
def test_every_number_of_mask_words(nodes: int, backend: Backend) -> None:
    """With words and bits behind the last node that mean nothing, in rows that lie apart."""
    inputs = AttentionCase(((nodes, nodes + 3),), heads=(1, 1), head_dim=8, page=16).on(backend).inputs()
    seen, _ = random_tree(nodes, generator(f"words {nodes}"))
    tree = with_tree(inputs, seen, None)
    assert tree.tree_mask is not None
    wide = torch.full((nodes, tree.tree_mask.shape[1] + 2), -1).int()
    wide[:, : tree.tree_mask.shape[1]] = tree.tree_mask
    check_attention(backend, tree.replace(tree_mask=wide[:, :-1]), tree.expected())


@BACKENDS
def test_extreme_depths_and_windows(backend: Backend) -> None:
    """Depths are int32 and windows int64: their sums and differences need more."""
    inputs = AttentionCase(((4, 7),), heads=(1, 2), head_dim=8, page=16).on(backend).inputs()
    depth = torch.tensor([2**31 - 1, 0, 2**31 - 2, 5]).int()
    for window in ((-1, -1), (2, -1), (2**63 - 1, 2**63 - 1), (2**31 - 7, 0)):
        tree = with_tree(inputs, torch.ones(4, 4).bool(), depth)
        given = tree.replace(window_left=window[0], window_right=window[1])
        check_attention(backend, given, given.expected(), window)
