"""The ops that choose tokens: sampling from logits, verification of drafts, masks of draft trees."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from lamina._checks import (
    call,
    require_2d,
    require_int,
    require_one_device,
    require_optional_tensors,
    require_tensors,
)
from lamina.ops.registration import Arguments, fake


class SampleFlag(IntEnum):
    """Why sample_tokens or verify_draft has no token for a row or a request.

    NONE         0: the token was sampled
    PARAMETER    1: a temperature that is not finite or below 0, a top_p outside (0, 1] or a min_p outside
                 [0, 1]
    NOT_FINITE   2: a logit is NaN or +Inf
    NO_TOKEN     3: every logit is -Inf, or the vocabulary is empty
    DRAFT_PROBS  4: a row of draft_probs that was needed has a NaN, a value below 0 or one above 1 + 2^-7
    OFFSETS      5: the cu_seqlens_q of the request decrease, leave the logits or pass max_seqlen_q
    NO_ROW       6: the request has no row
    """

    NONE = 0
    PARAMETER = 1
    NOT_FINITE = 2
    NO_TOKEN = 3
    DRAFT_PROBS = 4
    OFFSETS = 5
    NO_ROW = 6


class SampledTokens(NamedTuple):
    """Result of sample_tokens.

    tokens  [m]  int32, at least 0 and below vocab; 0 where `flags` is not 0
    flags   [m]  int32: 0, or the SampleFlag that says why a row was not sampled
    """

    tokens: Tensor
    flags: Tensor


class VerifiedDraft(NamedTuple):
    """Result of verify_draft, int32.

    tokens        [requests, max_seqlen_q]: the accepted drafts of a request, the bonus token, then -1
    num_accepted  [requests]: the accepted drafts, 0 to max_seqlen_q - 1
    bonus         [requests]: the token after the accepted drafts, tokens[r, num_accepted[r]]: at least 0 and
                  below vocab. The next step starts with it
    accepted      [requests, max_seqlen_q]: the rows of the request that stay, the root and its accepted
                  drafts, then -1. compact_kv takes it, with the rows of the request as its tree
    flags         [requests]: 0, or the SampleFlag that says why the bonus token of a request was not
                  sampled; it is then 0, and the drafts accepted before it are right
    """

    tokens: Tensor
    num_accepted: Tensor
    bonus: Tensor
    accepted: Tensor
    flags: Tensor


class TreeMask(NamedTuple):
    """Result of pack_tree_mask: the arguments of these names of paged_attention, int32.

    tree_mask   [tokens, ceil(max_seqlen_q / 32)]: bit j % 32 of word j // 32 is set if node j is the node
                itself or above it
    tree_len    [requests]: the nodes of each request
    tree_depth  [tokens]: the nodes above each node
    """

    tree_mask: Tensor
    tree_len: Tensor
    tree_depth: Tensor


def sample_tokens(
    logits: Tensor,
    temperature: Tensor | None = None,
    top_k: Tensor | None = None,
    top_p: Tensor | None = None,
    min_p: Tensor | None = None,
    *,
    seed: Tensor,
    offset: Tensor,
) -> SampledTokens:
    """Draws a token for each row of logits: temperature, top-k, top-p and min-p in one op, without a sort.

    logits       [m, vocab]  f32 | f16 | bf16, any row stride, m >= 0, vocab at most 2^22
    temperature  [m] or 1 element  f32, finite and at least 0. 0: the largest logit, of equals the lowest id.
                 None: 1
    top_k        [m] or 1 element  int32: keeps the tokens that are not below the k-th largest logit. Below 1,
                 or None: all
    top_p        [m] or 1 element  f32 above 0 and at most 1: of the tokens that top_k keeps, keeps the
                 largest until their probabilities, which sum to 1 before this step, reach top_p. None: 1
    min_p        [m] or 1 element  f32 from 0 to 1: drops the tokens with a probability below min_p times the
                 largest one. None: 0
    seed         [m] or 1 element  int64, any value
    offset       [m] or 1 element  int64, any value: the position of the token that is drawn, or another
                 number that differs in every draw with one seed
    returns      SampledTokens. Tokens with equal logits are kept or dropped together. A row depends on its
                 logits, parameters, seed and offset alone, not on the batch, threads or device
    Total        No content of a tensor is an error: a row that cannot be sampled gets token 0 and a flag
    Error        With u = 2^-24 and z = (largest logit - logit) / temperature: the weight of a token is
                 within (3 z + 3) u, relative, and 2^-41, absolute, of exp(-z), and 0 where z > 109.6.
                 Thresholds, sums and the draw are exact for these weights: a token is drawn with its kept
                 weight over the sum of kept weights, within 2^-64. The tests use this expression
    Raises       ValueError that names the argument, its value and the allowed values; TypeError for an
                 argument of a wrong Python type (docs/errors.md lists both)
    Devices      CPU (generic, avx2, avx512_vnni), CUDA sm_80+. All give the same tokens. Capturable in a
                 CUDA graph. There is no gradient
    Source       csrc/ops/sample/sample.h
    """
    _require("sample_tokens", logits, seed, offset, temperature, top_k, top_p, min_p)
    return SampledTokens(
        *call(
            torch.ops.lamina.sample_tokens, logits, temperature, top_k, top_p, min_p, seed=seed, offset=offset
        )
    )


def verify_draft(
    logits: Tensor,
    draft_tokens: Tensor,
    cu_seqlens_q: Tensor,
    max_seqlen_q: int,
    *,
    parents: Tensor | None = None,
    draft_probs: Tensor | None = None,
    temperature: Tensor | None = None,
    top_k: Tensor | None = None,
    top_p: Tensor | None = None,
    min_p: Tensor | None = None,
    seed: Tensor,
    offset: Tensor,
) -> VerifiedDraft:
    """Accepts drafts so that all tokens have the distribution of sample_tokens, for chains and trees.

    A request has the rows cu_seqlens_q[r] to cu_seqlens_q[r + 1] - 1 of the arguments, as its tokens went
    through the model: row 0 is its last known token, the root, and the others are drafts. Row i of the logits
    is the prediction of the model for the token after row i.

    logits        [tokens, vocab]  f32 | f16 | bf16, any row stride, vocab at most 2^22
    draft_tokens  [tokens]  int32 | int64: the drafts; that of the root is not read. A draft outside the
                  vocabulary is never accepted
    cu_seqlens_q  [requests + 1]  int32, as in paged_attention
    max_seqlen_q  the most rows of a request, or more
    parents       [tokens]  int32: the row of its request from which a draft goes on; that of the root is not
                  read. A draft whose parent is not a row before it is never accepted. None: chains
    draft_probs   [tokens, vocab]  f32, any row stride: row i is the distribution from which the drafts after
                  row i were drawn, the first child of i first, the others without replacement. Rows without
                  drafts are not read, nor are those of requests with temperature 0. Rows that are all 0, or
                  None: the drafts were chosen in any other way, as by prompt lookup or by top-k
    temperature, top_k, top_p, min_p  [requests] or 1 element, as in sample_tokens
    seed, offset  [requests] or 1 element  int64: offset is that of the token after the root; the token
                  after a draft of depth d has offset + d
    returns       VerifiedDraft
    Exact         A draft x of p and q is accepted with probability min(1, p(x) / q(x)), and otherwise p
                  becomes max(p - q, 0), normalised: the tokens have the distribution of sample_tokens, one
                  after the other. Without draft_probs they are the tokens themselves that sample_tokens
                  draws with the same seed and offsets, so also with temperature 0. Drafts may be drawn with
                  the seed and the offsets of this call
    Total         No content of a tensor is an error; a request that cannot be verified to its end gets a
                  flag, and no other request changes
    Error         p as in sample_tokens; q is rounded to multiples of 2^-40. A probability to accept is
                  within 2^-62 of that of these numbers, and each rejection rounds weights
                  down to multiples of 2^-40 of the largest weight of the row
    Raises        ValueError that names the argument, its value and the allowed values; TypeError for an
                  argument of a wrong Python type (docs/errors.md lists both)
    Devices       CPU (generic, avx2, avx512_vnni), CUDA sm_80+. All give the same results. Capturable in a
                  CUDA graph. There is no gradient. CUDA: max_seqlen_q is at most 2000 with draft_probs
    Source        csrc/ops/sample/sample.h
    """
    op = "verify_draft"
    _require(op, logits, seed, offset, temperature, top_k, top_p, min_p)
    require_tensors(op, draft_tokens=draft_tokens, cu_seqlens_q=cu_seqlens_q)
    require_int(op, "max_seqlen_q", max_seqlen_q)
    require_optional_tensors(op, parents=parents, draft_probs=draft_probs)
    found = call(
        torch.ops.lamina.verify_draft, logits, draft_tokens, cu_seqlens_q, max_seqlen_q, parents=parents,
        draft_probs=draft_probs, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed,
        offset=offset,
    )  # fmt: skip
    return VerifiedDraft(*found)


def pack_tree_mask(parents: Tensor, cu_seqlens_q: Tensor, max_seqlen_q: int) -> TreeMask:
    """Makes the tree_mask, tree_len and tree_depth of paged_attention from the parents of the nodes.

    parents       [tokens]  int32: for each node the node of its request that is above it, -1 for a root. A
                  parent comes before its children
    cu_seqlens_q  [requests + 1]  int32, as in paged_attention: all tokens of a request are nodes
    max_seqlen_q  the most nodes of a request, or more
    returns       TreeMask
    Error         none: integers
    Raises        ValueError that names the argument, its value and the allowed values, also for a parent
                  that is not before its node, so for every cycle, and for bad offsets; TypeError for an
                  argument of a wrong Python type (docs/errors.md lists both)
    Devices       CPU, CUDA sm_80+, where the host does not look at the contents of tensors: a request with
                  a bad parent or bad offsets gets tree_len = 0 and a mask of zeros, and check_errors()
                  raises the first error. Capturable in a CUDA graph
    Source        csrc/ops/sample/tree_mask.h
    """
    op = "pack_tree_mask"
    require_tensors(op, parents=parents, cu_seqlens_q=cu_seqlens_q)
    require_int(op, "max_seqlen_q", max_seqlen_q)
    return TreeMask(*call(torch.ops.lamina.pack_tree_mask, parents, cu_seqlens_q, max_seqlen_q))


def _require(op: str, logits: Tensor, seed: Tensor, offset: Tensor, *parameters: Tensor | None) -> None:
    require_tensors(op, logits=logits, seed=seed, offset=offset)
    names = ("temperature", "top_k", "top_p", "min_p")
    require_optional_tensors(op, **dict(zip(names, parameters, strict=True)))


@fake("sample_tokens")
def _fake_sample_tokens(given: Arguments) -> tuple[Tensor, Tensor]:
    require_2d("sample_tokens", "logits", given.logits, "[m, vocab]")
    require_one_device("sample_tokens", vars(given))
    m = given.logits.shape[0]
    return given.logits.new_empty(m, dtype=torch.int32), given.logits.new_empty(m, dtype=torch.int32)


@fake("verify_draft")
def _fake_verify_draft(given: Arguments) -> tuple[Tensor, ...]:
    require_2d("verify_draft", "logits", given.logits, "[m, vocab]")
    require_one_device("verify_draft", vars(given))
    requests, most = given.cu_seqlens_q.shape[0] - 1, given.max_seqlen_q
    shapes = ((requests, most), (requests,), (requests,), (requests, most), (requests,))
    return tuple(given.logits.new_empty(shape, dtype=torch.int32) for shape in shapes)


@fake("pack_tree_mask")
def _fake_pack_tree_mask(given: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    require_one_device("pack_tree_mask", vars(given))
    tokens, requests = given.parents.shape[0], given.cu_seqlens_q.shape[0] - 1
    words = (given.max_seqlen_q + 31) // 32
    new = given.parents.new_empty
    return new((tokens, words)), new((requests,)), new((tokens,))
