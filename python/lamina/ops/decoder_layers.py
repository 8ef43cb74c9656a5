"""Decoder layers of Llama in one call."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lamina._checks import call
from lamina.ops.registration import Arguments, fake

OP = "decoder_layers"


class ProductKind(IntEnum):
    """The product of a linear layer: which op, and how its activations are quantised."""

    W8A8 = 0
    W8A8_ASYMMETRIC = 1
    W4A8 = 2
    W4A16 = 3
    SPARSE24_W8A8 = 4
    SPARSE24_W8A8_ASYMMETRIC = 5
    SPARSE24_W4A8 = 6
    SPARSE24_W4A16 = 7


class PackedProduct(NamedTuple):
    """The product of a linear layer with its packed weight, for decoder_layers.

    numbers  ProductKind, group, and the sum of 1 for zero points, 2 for a bias and 4 for a perm
    tensors  w, for int8 w_sums, w_scale, and then what there is of zero points, bias and perm
    """

    numbers: list[int]
    tensors: list[Tensor]

    @classmethod
    def of(
        cls,
        kind: ProductKind,
        weight: Sequence[Tensor],
        *,
        group: int = 0,
        zero_point: Tensor | None = None,
        bias: Tensor | None = None,
        perm: Tensor | None = None,
    ) -> PackedProduct:
        """`weight` holds w, for int8 w_sums, and w_scale; `group` is that of int4 weights."""
        given = {1: zero_point, 2: bias, 4: perm}
        bits = sum(bit for bit, tensor in given.items() if tensor is not None)
        tensors = [*weight, *(tensor for tensor in given.values() if tensor is not None)]
        return cls([int(kind), group, bits], tensors)


class DecoderLayer(NamedTuple):
    """A layer for decoder_layers.

    norms     [features] each, of the dtype of x: the weights of the RMS norms before attention and MLP
    eps       of the two norms
    products  of q, k and v together; of the output of attention; of gate and up together; of down
    """

    norms: tuple[Tensor, Tensor]
    eps: tuple[float, float]
    products: tuple[PackedProduct, PackedProduct, PackedProduct, PackedProduct]


def decoder_layers(x: Tensor, layers: Sequence[DecoderLayer], **cache: Any) -> Tensor:
    """Decoder layers of Llama: y = x + o(attention(qkv(norm(x)))), then y + down(silu(gate) * up) of norm(y).

    x        [tokens, features]  f32 | f16 | bf16
    layers   one DecoderLayer or more
    cache    the other arguments of torch.ops.lamina.decoder_layers, by name. Lists with a tensor for each
             layer: k_caches and v_caches, and k_scales and v_scales, which are empty for a float cache.
             As in append_paged_kv: slot_mapping, cos, sin, positions. As in paged_attention: block_table,
             seq_lens, cu_seqlens_q, max_seqlen_q, scale, causal, window_left, window_right, softcap,
             tree_mask, tree_len, tree_depth. heads: the heads of queries
    returns  [tokens, features] of the dtype of x. The keys and values of all layers are in the caches
    Error    The bits, of the result and in the caches, are those of rms_norm or rms_norm_int8, the products,
             append_paged_kv, paged_attention, quantize_int8, silu_mul or silu_mul_int8 one after another
    NaN, Inf as in these ops
    Raises   ValueError under the name of the op that refuses an argument, or for lists that do not belong
             together. A layer that fails leaves the keys of the layers before it in the caches
    Devices  those of the ops. It saves the time that Python takes between the ops; on CUDA a graph does, too
    Source   csrc/torch/decoder_layers.cc
    """
    out: Tensor = call(torch.ops.lamina.decoder_layers, x, *arguments(layers), **cache)
    return out


def arguments(
    layers: Sequence[DecoderLayer],
) -> tuple[list[Tensor], list[float], list[Tensor], list[int]]:
    """norms, eps, weights and products of the op."""
    norms: list[Tensor] = []
    eps: list[float] = []
    weights: list[Tensor] = []
    products: list[int] = []
    for layer in layers:
        norms += layer.norms
        eps += layer.eps
        for numbers, tensors in layer.products:
            products += numbers
            weights += tensors
    return norms, eps, weights, products


@fake(OP)
def _fake_decoder_layers(given: Arguments) -> Tensor:
    result: Tensor = torch.empty_like(given.x, memory_format=torch.contiguous_format)
    return result
