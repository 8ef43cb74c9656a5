"""The exact result of a case in float64, and the error bounds of what implementations compute.

Every row of a request with few tokens is checked. A request with more has MOST_TOKENS of its tokens checked,
the first and the last among them: a prefill of 4096 tokens would take minutes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bench.attention.inputs import Inputs
from bench.cases import Accuracy
from lamina.testing.reference import TINY, U_OUT, U

MOST_TOKENS = 16
CHUNK = 512  # keys that share a maximum in lamina
FLUSHED = 2.0**-124  # lamina's weights below this part of the largest are 0
WEIGHT_ROUNDING = {"tensor_f16": 2.0**-11, "tensor_bf16": 2.0**-8}  # of CUDA kernels

# How lamina multiplies, on a GPU with tensor cores; "floats" is any peer that sums in f32.
Arithmetic = Literal["f32", "bf16", "int8", "tensor_f16", "tensor_bf16", "floats"]


@dataclass(frozen=True)
class Exact:
    """Rows [checked, heads, head_dim] of all requests, and the terms of their bounds."""

    tokens: Tensor  # [checked], of the batch
    out: Tensor
    weighted: Tensor  # sum_j w_j |v_j|
    values: Tensor  # sum_j |v_j|
    score: Tensor  # [checked, heads, 1]: the largest error of a score in f32, in units of u
    largest: Tensor  # the largest |score|
    keys: Tensor  # [checked, 1, 1]: how many are seen
    chunks: Tensor
    int8_score: Tensor  # the largest error of a score by queries of 16 bits
    int8_values: Tensor  # the error of the sums by weights of 16 bits

    def accuracy(self, out: Tensor, arithmetic: Arithmetic, out_dtype: torch.dtype) -> Accuracy:
        """The worst error of out [tokens, heads, head_dim] among the checked tokens."""
        error = (out[self.tokens].double() - self.out).abs()
        return Accuracy(float(error.max()), float((error / self.bound(arithmetic, out_dtype)).max()))

    def bound(self, arithmetic: Arithmetic, out_dtype: torch.dtype) -> Tensor:
        """As in the docstring of lamina.paged_attention. For peers one sum is over all keys, and scores and
        weights are rounded to the dtype of the operands."""
        score = U * self.score
        rounded = U * (self.keys.clamp(max=CHUNK) + 4 * self.chunks + 40)
        extra = torch.zeros_like(self.out)
        if arithmetic == "bf16":
            rounded = rounded + 2.0**-9
        elif arithmetic == "int8":
            score = score + self.int8_score
            extra = self.int8_values
        elif arithmetic in WEIGHT_ROUNDING:
            rounded = U * (self.keys + 64) + 2 * WEIGHT_ROUNDING[arithmetic]
            extra = 2.0**-28 * self.values if arithmetic == "tensor_f16" else extra
        elif arithmetic == "floats":
            unit = max(U_OUT[out_dtype], U)
            score = score + 4 * unit * self.largest
            rounded = U * (self.keys + 4 * self.chunks + 40) + 32 * U + 2 * unit
        bound: Tensor = (2 * score).exp() * self.weighted * (2 * score + rounded) + extra
        return bound + FLUSHED * self.values + U_OUT[out_dtype] * self.out.abs() + TINY[out_dtype]


def _checked(q_len: int) -> Tensor:
    if q_len <= MOST_TOKENS:
        return torch.arange(q_len)
    return torch.linspace(0, q_len - 1, MOST_TOKENS).round().long()


def make_exact(inputs: Inputs) -> Exact:
    case, parts = inputs.case, []
    scale = float(torch.tensor(case.head_dim**-0.5, dtype=torch.float32))
    for start, request, keys, values in zip(
        inputs.starts(), inputs.requests, inputs.keys, inputs.values, strict=False
    ):
        checked = _checked(request.q_len).to(inputs.q.device)
        seen = inputs.mask(request)[checked].unsqueeze(1)  # [checked, 1, seq_len]
        count = seen.sum(2, keepdim=True).double()
        heads = []
        k, v = keys.to(torch.float64), values.to(torch.float64)
        for h in range(case.kv_heads):
            q = inputs.q[start + checked, h * case.group : (h + 1) * case.group].double()
            products = (q.abs() @ k[h].abs().T).masked_fill(~seen, 0)
            s = (scale * (q @ k[h].T)).masked_fill(~seen, -torch.inf)
            weight = s.softmax(2)
            sizes = s.abs().masked_fill(~seen, 0)
            # int8: |scale * k_scale| * max |q| / 64000 * sum |codes|, and likewise of values and weights
            key_sums = k[h].abs().sum(1).masked_fill(~seen, 0)
            factor = torch.ones_like(v[h][:, 0]) if values.scale is None else values.scale[:, h]
            codes = values.data[:, h].double().abs()
            heads.append(
                (
                    weight @ v[h],
                    weight @ v[h].abs(),
                    (seen.double() @ v[h].abs()).expand(-1, case.group, -1),
                    ((case.head_dim + 4) * scale * products + 6 * sizes).amax(2, keepdim=True),
                    sizes.amax(2, keepdim=True),
                    scale * q.abs().amax(2, keepdim=True) / 64000 * key_sums.amax(2, keepdim=True),
                    (weight * factor.double()).amax(2, keepdim=True) / 128000 * (seen.double() @ codes),
                )
            )
        joined = [torch.cat(each, 1) for each in zip(*heads, strict=True)]
        parts.append((start + checked, *joined, count))
    tokens, out, weighted, sums, score, largest, int8_score, int8_values, count = (
        torch.cat(each) for each in zip(*parts, strict=True)
    )
    chunks = (count / CHUNK).ceil()
    return Exact(tokens, out, weighted, sums, score, largest, count, chunks, int8_score, int8_values)
