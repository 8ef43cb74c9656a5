"""The reference of paged_attention against torch's attention in float64, and the comparators of its tests."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests.reference.paged_attention import Attention
from tests.support.attention_cases import AttentionCase, AttentionInputs
from tests.support.compare import assert_within

CASES = [
    AttentionCase(batch, causal=causal, window=window, alibi=alibi, sinks=sinks, cache=cache, tree=tree)
    for batch, causal, window, alibi, sinks, cache, tree in (
        ("mixed", True, (-1, -1), "", False, "f32", ""),
        ("prefill", True, (4, -1), "heads", False, "bf16", ""),
        ("prefill", False, (3, 1), "requests", True, "int8_token", ""),
        ("verify", True, (-1, -1), "", True, "e4m3_token", "random"),
        ("verify", False, (6, -1), "heads", False, "int8_mixed", "bits"),
        ("decode", True, (-1, 0), "", False, "e4m3_k", "wide"),
        ("edges", True, (-1, -1), "", True, "f16", ""),
    )
]


def dense(inputs: AttentionInputs, b: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values [heads, seq_len, head_dim] of one request in float64."""
    seq_len, page = int(inputs.seq_lens[b]), inputs.k_cache.shape[1]
    group = inputs.q.shape[1] // inputs.k_cache.shape[2]
    blocks = inputs.block_table[b, : -(-seq_len // page)].long()
    both = []
    for cache, scale in ((inputs.k_cache, inputs.k_scale), (inputs.v_cache, inputs.v_scale)):
        x = cache.double()[blocks]
        if scale is not None:
            x = x * (scale.double() if scale.numel() == 1 else scale.double()[blocks][..., None])
        both.append(x.flatten(0, 1)[:seq_len].repeat_interleave(group, 1).transpose(0, 1))
    return both[0], both[1]


def bias_of(inputs: AttentionInputs, b: int) -> torch.Tensor:
    """The bias [heads, q_len, seq_len]; -Inf where a token does not see a key. Vectorised, unlike the
    reference."""
    span = inputs.span(b)
    q_len, seq_len, heads = span.stop - span.start, int(inputs.seq_lens[b]), inputs.q.shape[1]
    own = torch.arange(q_len)[:, None] + seq_len - q_len
    keys = torch.arange(seq_len)[None].expand(q_len, seq_len).clone()
    seen = keys <= own if inputs.causal else torch.ones_like(keys, dtype=torch.bool)
    nodes = 0 if inputs.tree_len is None else int(inputs.tree_len[b])
    if nodes:
        assert inputs.tree_mask is not None
        words = inputs.tree_mask[span][-nodes:].long()
        bits = (words[:, :, None] >> torch.arange(32) & 1).flatten(1)[:, :nodes].bool()
        depth = (bits & ~torch.eye(nodes).bool()).sum(1)
        if inputs.tree_depth is not None:
            depth = inputs.tree_depth[span][-nodes:].long()
        seen[-nodes:] = torch.cat([torch.ones(nodes, seq_len - nodes).bool(), bits], 1)
        own[-nodes:] = seq_len - nodes + depth[:, None]
        keys[-nodes:, seq_len - nodes :] = seq_len - nodes + depth
    if inputs.window_left >= 0:
        seen &= keys >= own - inputs.window_left
    if inputs.window_right >= 0:
        seen &= keys <= own + inputs.window_right
    bias = torch.zeros(heads, q_len, seq_len, dtype=torch.float64)
    if inputs.alibi_slopes is not None:
        slopes = inputs.alibi_slopes if inputs.alibi_slopes.dim() == 1 else inputs.alibi_slopes[b]
        bias -= slopes.double()[:, None, None] * (own - keys).abs()
    return bias.masked_fill(~seen, -torch.inf)


def by_torch(inputs: AttentionInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """out and lse in float64; a sink is a key of score `sink` whose value is 0."""
    outs, lses = [], []
    scale = inputs.q.shape[2] ** -0.5 if inputs.scale is None else inputs.scale
    for b in range(len(inputs.seq_lens)):
        k, v = dense(inputs, b)
        q = inputs.q[inputs.span(b)].double().transpose(0, 1)
        bias = bias_of(inputs, b)
        lses.append((scale * q @ k.mT + bias).logsumexp(2))
        if inputs.sinks is not None:
            k, v = torch.nn.functional.pad(k, (0, 0, 0, 1)), torch.nn.functional.pad(v, (0, 0, 0, 1))
            sinks = inputs.sinks.double()[:, None, None].expand(-1, q.shape[1], 1)
            bias = torch.cat([bias, sinks], 2)
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, bias, scale=scale)
        outs.append(out.nan_to_num(0).transpose(0, 1))  # torch gives NaN where no key is seen
    return torch.cat(outs), torch.cat(lses, 1)


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_reference_agrees_with_torch(case: AttentionCase) -> None:
    inputs = case.inputs()
    expected = inputs.expected()
    for got, want in zip(expected, by_torch(inputs), strict=True):
        # The reference rounds the scale to f32, as the op does.
        np.testing.assert_allclose(got.exact, want.numpy(), rtol=1e-6, atol=1e-6)


def test_softcap_by_hand() -> None:
    """Two keys with scores 3 tanh(x / 3)."""
    inputs = AttentionCase(((1, 2),), heads=(1, 1), head_dim=8, page=16, softcap=3.0).inputs()
    k, v = dense(inputs, 0)
    x = 0.7 * 8**-0.5 * inputs.q[0, 0].double() @ k[0].T
    a, b = (3 * np.tanh(float(value) / 3) for value in x)
    first = 1 / (1 + np.exp(b - a))
    expected = inputs.expected()
    np.testing.assert_allclose(expected.out.exact[0, 0], first * v[0, 0] + (1 - first) * v[0, 1], rtol=1e-6)
    np.testing.assert_allclose(expected.lse.exact[0, 0], np.log(np.exp(a) + np.exp(b)), rtol=1e-6)


def shift_a_token(t: torch.Tensor) -> None:
    t[1:] = t[:-1].clone()


def swap_heads(t: torch.Tensor) -> None:
    t[:, [0, 1]] = t[:, [1, 0]]


def zero_the_last_head(t: torch.Tensor) -> None:
    t[:, -1] = 0


def scale_by_a_permille(t: torch.Tensor) -> None:
    t *= 1.001


def flip_the_last_sign(t: torch.Tensor) -> None:
    t[-1, -1, -1] *= -1


@pytest.mark.parametrize(
    "mutate", [shift_a_token, swap_heads, zero_the_last_head, scale_by_a_permille, flip_the_last_sign]
)
def test_the_bound_is_narrow(mutate: Callable[[torch.Tensor], None]) -> None:
    expected = AttentionCase("prefill").inputs().expected()
    right = torch.from_numpy(expected.out.exact).float()
    assert_within(right, expected.out, torch.float32)
    mutate(right)
    with pytest.raises(AssertionError, match="elements are wrong"):
        assert_within(right, expected.out, torch.float32)


@pytest.mark.parametrize(
    "changed",
    [{"causal": False}, {"window_left": 8}, {"softcap": 30.0}, {"scale": 0.1251}],
    ids=lambda changed: "-".join(changed),
)
def test_the_bound_notices_a_lost_option(changed: dict[str, float]) -> None:
    inputs = AttentionCase("prefill").inputs()
    for one, another in zip(inputs.expected(), inputs.replace(**changed).expected(), strict=True):
        with pytest.raises(AssertionError, match="elements are wrong"):
            assert_within(torch.from_numpy(another.exact).float(), one, torch.float32)


def test_answers_depend_on_no_poison() -> None:
    """NaN fills unused slots and pages, and garbage fills the tails of block tables and masks."""
    for case in CASES:
        expected: Attention = case.inputs().expected()
        assert not np.isnan(expected.out.exact).any()
        assert not np.isnan(expected.lse.exact).any()
