"""The checks of lamina doctor for the ops that choose tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from lamina import ops
from lamina.doctor.outcome import DeviceCheck, Outcome

DRAWS = 20_000


def _same(label: str, got: Tensor, want: list[int]) -> Outcome:
    return Outcome(label, 0.0 if got.flatten().tolist() == want else math.inf)


def _frequencies(label: str, tokens: Tensor, p: Tensor) -> Outcome:
    """A frequency may be seven standard deviations from its probability."""
    found = tokens.cpu().long().bincount(minlength=len(p)).double() / len(tokens)
    if found.shape != p.shape or bool((found[p == 0] > 0).any()):
        return Outcome(label, math.inf)
    return Outcome(label, float((found - p).abs().max()) / (7 * math.sqrt(0.25 / len(tokens))))


def _rows(row: Tensor, device: torch.device) -> Tensor:
    return row.to(device).expand(DRAWS, len(row))


def _check_sample_tokens(device: torch.device) -> Iterator[Outcome]:
    """Frequencies of tokens with and without the parameters, greedy rows, and a row that is NaN."""
    p = torch.tensor([0.1, 0.3, 0.0, 0.2, 0.4])
    given = {"seed": torch.tensor([5], device=device), "offset": torch.arange(DRAWS, device=device)}
    logits = _rows(p.log(), device)
    yield _frequencies("temperature", ops.sample_tokens(logits, **given).tokens, p.double())
    top_k, top_p = torch.tensor([3], dtype=torch.int32, device=device), torch.tensor([0.75], device=device)
    kept = torch.tensor([0.0, 3 / 7, 0.0, 0.0, 4 / 7]).double()
    yield _frequencies(
        "top_k, top_p", ops.sample_tokens(logits, top_k=top_k, top_p=top_p, **given).tokens, kept
    )
    rows = torch.tensor([[1.0, 5, 5, 0], [math.nan, 1, 2, 3], [0, -9, 0, 1]], device=device)
    zeros = torch.zeros(1, device=device)
    greedy = ops.sample_tokens(rows, zeros, seed=given["seed"], offset=given["seed"])
    yield _same("greedy", greedy.tokens, [1, 0, 3])
    yield _same("flags", greedy.flags, [0, int(ops.SampleFlag.NOT_FINITE), 0])


def _check_verify_draft(device: torch.device) -> Iterator[Outcome]:
    """A greedy tree, and the frequencies of the first token of chains with draft_probs."""
    logits = torch.eye(8, device=device)[[3, 1, 5, 1]]
    parents = torch.tensor([-1, 0, 0, 2], dtype=torch.int32, device=device)
    drafts = torch.tensor([0, 2, 3, 5], device=device)
    offsets = torch.tensor([0, 4], dtype=torch.int32, device=device)
    one = torch.ones(1, dtype=torch.int64, device=device)
    found = ops.verify_draft(
        logits,
        drafts,
        offsets,
        4,
        parents=parents,
        temperature=torch.zeros(1, device=device),
        seed=one,
        offset=one,
    )
    yield _same("greedy tree", found.tokens, [3, 5, 1, -1])
    yield _same("nodes", found.accepted, [0, 2, 3, -1])
    p, q = torch.tensor([0.5, 0.2, 0.3]), torch.tensor([0.2, 0.7, 0.1])
    at = torch.arange(DRAWS, device=device)
    drawn = ops.sample_tokens(_rows(q.log(), device), seed=one, offset=at).tokens
    chains = ops.verify_draft(
        _rows(p.log(), device).repeat(2, 1), drawn.repeat_interleave(2),
        torch.arange(0, 2 * DRAWS + 1, 2, dtype=torch.int32, device=device), 2,
        draft_probs=_rows(q, device).repeat(2, 1), seed=one, offset=at,
    )  # fmt: skip
    yield _frequencies("against draft_probs", chains.tokens[:, 0], p.double())


def _check_pack_tree_mask(device: torch.device) -> Iterator[Outcome]:
    """Two trees."""
    parents = torch.tensor([-1, 0, 0, 2, -1, 0], dtype=torch.int32, device=device)
    found = ops.pack_tree_mask(parents, torch.tensor([0, 4, 6], dtype=torch.int32, device=device), 4)
    yield _same("mask", found.tree_mask, [1, 3, 5, 13, 1, 3])
    yield _same("length and depth", torch.cat(found[1:]), [4, 2, 0, 1, 1, 2, 0, 1])


CHECKS: dict[str, DeviceCheck] = {
    "sample_tokens": _check_sample_tokens,
    "verify_draft": _check_verify_draft,
    "pack_tree_mask": _check_pack_tree_mask,
}
