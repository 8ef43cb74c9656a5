"""2:4 sparsity of weights: which two of four consecutive input features each output feature keeps."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lamina.quant.checks import checked_group, checked_scale_dtype
from lamina.quant.gptq_rounding import Int4Options, Int4Rounding
from lamina.quant.grid import Grid, GridOptions
from lamina.quant.int4 import QuantizedInt4, as_quantized, quantize_weight_int4
from lamina.quant.int8 import quantize_weight_int8
from lamina.quant.sparse24_pass import FloatRounding, Int8Rounding, checked_task


class PrunedWeight(NamedTuple):
    """A 2:4 weight: of four consecutive input features at most two are kept."""

    weight: Tensor  # [n, k] dtype of the float weight, +0.0 where it is pruned
    mask: Tensor  # [n, k] bool, the kept places


class PrunedInt8(NamedTuple):
    """A 2:4 weight in int8: w ~ q * scale[:, None]."""

    q: Tensor  # [n, k] int8 in [-127, 127], 0 where it is pruned
    scale: Tensor  # [n] f32 > 0
    mask: Tensor  # [n, k] bool, the kept places


class PrunedInt4(NamedTuple):
    """A 2:4 weight in int4; a pruned code is the zero point of its group, 8 where there are none."""

    quantized: QuantizedInt4
    mask: Tensor  # [n, k] bool, the kept places


def prune_sparse24(
    w: Tensor,
    hessian: Tensor | None = None,
    *,
    method: str | None = None,
    mask: Tensor | None = None,
    damp: float = 0.01,
    block: int = 64,
) -> PrunedWeight:
    """Prunes a float weight to 2:4: of four consecutive input features at most two are kept.

    w        [n, k]  f32 | f16 | bf16, finite, any device, k a multiple of 4
    hessian  [k, k]  f32 | f64: lamina.quant.hessian of the layer's inputs, as for gptq
    method   "magnitude": keeps the two largest |w|; needs no hessian. "wanda" (arXiv:2306.11695): keeps the
             two largest |w| * norm of the feature's inputs. "sparsegpt" (arXiv:2301.00774): goes along k;
             of each four keeps the two that the outputs would miss most, with the weights of that moment,
             and changes later weights so that they compensate. None: "sparsegpt" with a hessian, else
             "magnitude"
    mask     [n, k] bool, at most two of four: keeps these places, and chooses none. With "sparsegpt" later
             kept weights compensate
    damp     "sparsegpt": > 0, this times the mean of the diagonal without its zeros is added to it, so that
             `hessian` may have any rank. A hessian that is not positive semidefinite is an error
    block    "sparsegpt": columns whose updates of later columns are applied together, for speed, rounded up
             to a multiple of 4. The result is the same except for the rounding of sums
    returns  PrunedWeight. Exactly two of four are in the mask, kept zeros among them, unless the given mask
             has fewer. Equal costs keep the lower places, so that a group of zeros keeps its first two.
             -0.0 counts as 0.0; pruned weights are +0.0. A column whose diagonal is 0, for an input that was
             always 0, costs nothing: "wanda" and "sparsegpt" drop it first
    Raises   ValueError naming argument, value and allowed values; for a NaN or Inf its position
    Memory   "sparsegpt": 5 n k bytes besides w, and 40 k^2 of factors
    """
    task = checked_task("prune_sparse24", w, hessian, method, mask, damp, block)
    if task.factor is None:
        return PrunedWeight(*task.masked())
    made = task.compensate(FloatRounding)
    return PrunedWeight(made.values.to(w.dtype), made.mask)


def prune_sparse24_int8(
    w: Tensor,
    hessian: Tensor | None = None,
    *,
    method: str | None = None,
    mask: Tensor | None = None,
    damp: float = 0.01,
    block: int = 64,
) -> PrunedInt8:
    """Prunes a float weight to 2:4 and rounds it to int8 with one scale per output channel, in one pass.

    w, hessian, method, mask, damp, block   as in prune_sparse24
    returns  PrunedInt8. "magnitude" and "wanda" round the kept weights to nearest, as quantize_weight_int8.
             With "sparsegpt" later weights compensate the errors of rounding too. Its scale is max|w| / 127
             of the weights that it would keep before it changes any; weights that grow beyond are clamped
    Raises   ValueError as prune_sparse24
    """
    task = checked_task("prune_sparse24_int8", w, hessian, method, mask, damp, block)
    if task.factor is None:
        weight, mask = task.masked()
        return PrunedInt8(*quantize_weight_int8(weight), mask)
    made = task.compensate(Int8Rounding)
    scale = torch.cat([rounding.scale for rounding in made.roundings])
    return PrunedInt8((made.values / scale[:, None]).round().to(torch.int8), scale, made.mask)


def prune_sparse24_int4(
    w: Tensor,
    hessian: Tensor | None = None,
    group: int = 128,
    *,
    symmetric: bool = True,
    method: str | None = None,
    mask: Tensor | None = None,
    damp: float = 0.01,
    block: int = 64,
    scale_dtype: torch.dtype | None = None,
    search: bool = True,
) -> PrunedInt4:
    """Prunes a float weight to 2:4 and rounds it to int4, in one pass.

    w, hessian, method, mask, damp, block   as in prune_sparse24
    group, symmetric, scale_dtype, search   as in quantize_weight_int4; group counts pruned features too
    returns  PrunedInt4. "magnitude" and "wanda" round as quantize_weight_int4. With "sparsegpt" later weights
             compensate the errors of rounding too, as in gptq; the grid of a group is fitted when its first
             column is reached, to the weights that would be kept at that moment
    Raises   ValueError as prune_sparse24 and quantize_weight_int4
    """
    op = "prune_sparse24_int4"
    task = checked_task(op, w, hessian, method, mask, damp, block)
    dtype = checked_scale_dtype(op, scale_dtype, w)
    k = w.shape[1]
    if task.factor is None:
        weight, mask = task.masked()
        quantized = quantize_weight_int4(weight, group, symmetric=symmetric, scale_dtype=dtype, search=search)
        return PrunedInt4(quantized, mask)
    group = checked_group(op, group, k)
    groups = (torch.arange(k, device=w.device) // group).tolist()
    grid = GridOptions(op, group, dtype, None if symmetric else torch.uint8, search)
    options = Int4Options(grid, groups, group)
    made = task.compensate(lambda part: Int4Rounding(part, options))
    zero = torch.cat([rounding.zero for rounding in made.roundings])
    codes = torch.cat([rounding.codes.T.to(torch.uint8) for rounding in made.roundings])
    origin = zero.to(torch.uint8).repeat_interleave(group, 1)[:, :k]
    scale = torch.cat([rounding.scale for rounding in made.roundings])
    q = torch.where(made.mask, codes, origin)
    return PrunedInt4(as_quantized(Grid(scale, zero, q), grid), made.mask)
