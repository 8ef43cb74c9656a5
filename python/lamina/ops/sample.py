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
    PARAMETER    1: the temperature is below 0 or not finite, top_p is outside (0, 1], or min_p is outside
                 [0, 1]
    NOT_FINITE   2: a logit is NaN or +Inf
    NO_TOKEN     3: every logit is -Inf, or the vocabulary is empty
    DRAFT_PROBS  4: a row of draft_probs that was read has a NaN, a value below 0 or a value above 1 + 2^-7
    OFFSETS      5: the two cu_seqlens_q of the request decrease, point outside the rows of logits, or give
                 the request more than max_seqlen_q rows
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

    tokens        [requests, max_seqlen_q]: the accepted drafts of a request, then the bonus token, then -1.
                  Only -1 where the flag is OFFSETS or NO_ROW
    num_accepted  [requests]: the number of accepted drafts, 0 to max_seqlen_q - 1
    bonus         [requests]: the token after the accepted drafts, tokens[r, num_accepted[r]]: at least 0 and
                  below vocab. It is the root of the next step
    accepted      [requests, max_seqlen_q]: the rows to keep in the cache, counted from the first row of the
                  request: 0 for the root, then the accepted drafts, then -1. compact_kv takes this tensor;
                  its tree_len is then the number of rows of each request
    flags         [requests]: 0, or the SampleFlag that says why the bonus token of a request was not
                  sampled. The bonus token is then 0, and the drafts that were accepted before it are valid
    """

    tokens: Tensor
    num_accepted: Tensor
    bonus: Tensor
    accepted: Tensor
    flags: Tensor


class TreeMask(NamedTuple):
    """Result of pack_tree_mask, int32: arguments of paged_attention with the same names.

    tree_mask   [tokens, ceil(max_seqlen_q / 32)]: bit j % 32 of word j // 32 is set if node j of the request
                is the node itself or one of its ancestors
    tree_len    [requests]: the number of nodes of each request
    tree_depth  [tokens]: the number of ancestors of each node, 0 for a root
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
    temperature  [m] or 1 element  f32, finite and at least 0. 0: takes the largest logit, and the lowest id
                 among equal logits. None: 1
    top_k        [m] or 1 element  int32: keeps the tokens whose logit is at least the k-th largest one. A
                 value below 1, or None, keeps all tokens
    top_p        [m] or 1 element  f32 above 0 and at most 1: of the tokens that top_k keeps, keeps the most
                 probable ones until their probabilities sum to top_p or more. The probabilities of all
                 tokens that top_k keeps sum to 1. None: 1
    min_p        [m] or 1 element  f32 from 0 to 1: of the tokens that top_p keeps, drops those with a
                 probability below min_p times the largest probability. None: 0
    seed         [m] or 1 element  int64, any value
    offset       [m] or 1 element  int64, any value: the position of the token that is drawn, or another
                 number that is different for every draw with the same seed
    returns      SampledTokens. Tokens with equal logits are kept or dropped together. A row depends on its
                 logits, parameters, seed and offset alone, not on the batch, threads or device
    Total        No value in a tensor raises an error: a row that cannot be sampled gets token 0 and a flag
    Error        With u = 2^-24 and z = (largest logit - logit) / temperature: the weight of a token is
                 within (3 z + 3) u, relative, and 2^-41, absolute, of exp(-z), and 0 where z > 109.6.
                 Thresholds and sums are exact for these weights; top_p is rounded down to a multiple of
                 2^-32. A token is drawn with a probability within 2^-64 of its weight over the sum of the
                 kept weights. The tests use this expression
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
    """Accepts the drafts of chains and trees so that all tokens have the distribution of sample_tokens.

    Request r has the rows cu_seqlens_q[r] to cu_seqlens_q[r + 1] - 1 of logits, draft_tokens, parents and
    draft_probs, one row for each token that went through the model in this step. Row 0 of a request is the
    root, its last known token; the other rows are drafts. Row i of the logits predicts the token after row i.
    A child of row i is a draft for the token after row i. In a chain it is row i + 1.

    logits        [tokens, vocab]  f32 | f16 | bf16, any row stride, vocab at most 2^22
    draft_tokens  [tokens]  int32 | int64: the token of each row; the values of roots are not read. A draft
                  outside the vocabulary is never accepted
    cu_seqlens_q  [requests + 1]  int32, as in paged_attention
    max_seqlen_q  int: the largest number of rows of a request, or more
    parents       [tokens]  int32: the row after which a draft follows, counted from the first row of its
                  request; the values of roots are not read. A draft whose parent is not a row before it is
                  never accepted. None: every request is a chain
    draft_probs   [tokens, vocab]  f32, any row stride: row i is the distribution q from which the children
                  of row i were drawn, without replacement and in the order of their rows. Rows without
                  children and rows of requests with temperature 0 are not read. None, or a row of zeros:
                  the children were chosen in another way, for example by prompt lookup or as the k most
                  probable tokens
    temperature, top_k, top_p, min_p  [requests] or 1 element, as in sample_tokens
    seed          [requests] or 1 element  int64, as in sample_tokens
    offset        [requests] or 1 element  int64: the offset of sample_tokens for the token after the root.
                  The token after a draft of depth d has offset + d; a child of the root has depth 1
    returns       VerifiedDraft
    Exact         The tokens have the distribution that sample_tokens has in a loop. With draft_probs: p is
                  the distribution of sample_tokens after a row. The op tries the children of the row in
                  order and accepts child x with probability min(1, p(x) / q(x)). If it rejects x, p becomes
                  max(p - q, 0), q loses x, and both are normalised. Without draft_probs, and at temperature
                  0, the tokens are the same that sample_tokens draws with these seeds and offsets. Drafts
                  may be drawn by sample_tokens with the seed and the offsets of this call
    Total         No value in a tensor raises an error: where a request cannot be verified to its end, it
                  gets a flag, and no other request changes
    Error         p is as in sample_tokens; q is rounded to multiples of 2^-40. A draft is accepted with a
                  probability within 2^-62 of the one that these numbers give. The r-th rejection among the
                  children of a row rounds the weights p down to multiples of at most 2^(r - 40), where the
                  largest logit of the row has the weight 1
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

    parents       [tokens]  int32: the parent of each node, counted from the first node of its request; -1
                  for a root. A parent comes before its children
    cu_seqlens_q  [requests + 1]  int32, as in paged_attention: all tokens of a request are nodes
    max_seqlen_q  int: the largest number of nodes of a request, or more
    returns       TreeMask
    Error         none: integers
    Raises        ValueError that names the argument, its value and the allowed values; TypeError for an
                  argument of a wrong Python type (docs/errors.md lists both). On a CPU also ValueError for
                  offsets that are out of range and for a parent that is not before its node, which covers
                  every cycle
    On CUDA       the host does not look at the contents of tensors. A request with a bad parent gets
                  tree_len = 0, depths of 0 and a mask of zeros. A request with bad offsets gets
                  tree_len = 0; masks and depths of tokens that no request has are not written.
                  check_errors() raises the first error
    Devices       CPU, CUDA sm_80+. Capturable in a CUDA graph
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
