"""Attention over a set of keys, merged from attention over parts of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lamina._checks import (
    call,
    require_dtype,
    require_one_device,
    require_optional_tensors,
    require_tensor_list,
)
from lamina.ops.registration import Arguments, fake


def merge_attention_states(
    outs: Sequence[Tensor],
    lses: Sequence[Tensor],
    *,
    sinks: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Merges attention over disjoint sets of keys into attention over all of them.

    outs       P >= 1 tensors [tokens, heads, head_dim]  f32 | f16 | bf16, of one shape and dtype, unit stride
               in head_dim; on CUDA P <= 64. f32 parts keep the accuracy of a result in one piece
    lses       P tensors [heads, tokens]  f32, any strides: natural log of the sum of exp(score), without sink
    sinks      [heads]  f32, below Inf: logits that count in the denominator alone, once for all parts
    out_dtype  f32 | f16 | bf16. None means the dtype of outs
    returns    out [tokens, heads, head_dim] of out_dtype, contiguous, and lse [heads, tokens] f32, without
               the sink. With m = max_p lse_p, M = max(m, sink), e_p = exp(lse_p - M) and
               d = sum_p e_p + exp(sink - M): out = sum_p (e_p / d) * out_p and
               lse = m + log(sum_p exp(lse_p - m)), sums in order of parts
    Empty      A part with lse = -Inf, as of a token that sees none of its keys, changes no bit and is not
               read. Where all parts are empty, out = 0 and lse = -Inf
    NaN, Inf   propagate from parts whose weight is not 0. An lse that is NaN or +Inf gives NaN
    Error      For each element, with u = 2^-24, W_p the exact weights, D_p = |lse_p - M| (0 if W_p = 0) and
               D = sum_p W_p D_p + W_sink |sink - M|:
               |out - exact| <= u sum_p W_p |out_p| (D_p + D + 2 P + 8) + U |exact| + 2^-148 sum_p |out_p|
               + s, where U is the unit roundoff of out_dtype (f32: 0) and s its smallest subnormal;
               |lse - exact| <= u (D' + P + 4 + 2 log P + |exact|), where D' is D without the sink
    Raises     ValueError that names the argument, its value and the allowed values; TypeError for an argument
               of a wrong Python type (docs/errors.md lists both)
    Devices    CPU (generic, avx2, avx512_vnni), CUDA sm_80+. Row-invariant; all give the same bits, except
               payloads of NaNs. Capturable in a CUDA graph
    Source     csrc/ops/merge_attention_states/merge_attention_states.h
    """
    op = "merge_attention_states"
    require_tensor_list(op, "outs", outs)
    require_tensor_list(op, "lses", lses)
    if not outs:  # torch would not know where to run the op
        raise ValueError(f"lamina::{op}: outs must have at least 1 tensor, got 0")
    require_optional_tensors(op, sinks=sinks)
    if out_dtype is not None:
        require_dtype(op, "out_dtype", out_dtype)
    out, lse = call(
        torch.ops.lamina.merge_attention_states, list(outs), list(lses), sinks=sinks, out_dtype=out_dtype
    )
    return out, lse


@fake("merge_attention_states")
def _fake_merge_attention_states(given: Arguments) -> tuple[Tensor, Tensor]:
    named = {f"outs[{i}]": out for i, out in enumerate(given.outs)}
    named |= {f"lses[{i}]": lse for i, lse in enumerate(given.lses)}
    require_one_device("merge_attention_states", {**named, "sinks": given.sinks})
    first = given.outs[0]
    tokens, heads, head_dim = first.shape
    return (
        first.new_empty((tokens, heads, head_dim), dtype=given.out_dtype or first.dtype),
        first.new_empty((heads, tokens), dtype=torch.float32),
    )
