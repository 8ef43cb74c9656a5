"""Functions with the names and arguments of SGLang's sgl_kernel, by lamina's ops; sglang is not needed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from lamina.ops import PackedInt8, gemm_int8, merge_attention_states, pack_int8, quantize_int8

_packed = WeakTensorKeyDictionary()  # a weight -> its version when it was packed, and the PackedInt8


def int8_scaled_mm(
    mat_a: Tensor,
    mat_b: Tensor,
    scales_a: Tensor,
    scales_b: Tensor,
    out_dtype: torch.dtype,
    bias: Tensor | None = None,
) -> Tensor:
    """mat_a @ mat_b * scales_a * scales_b + bias: W8A8.

    mat_a     [m, k]  int8, any row stride
    mat_b     [k, n]  int8, a tensor that lives as long as its layer: the first call packs the weight, later
              calls find it packed, and a write to the tensor packs it again (not in inference mode)
    scales_a  f32 [m] or [m, 1], a scale a token
    scales_b  f32 [n] or [n, 1], a scale an output channel
    bias      [n]  f32 | f16 | bf16
    returns   [m, n]  out_dtype, f16 | bf16 | f32
    Raises    what lamina.gemm_int8 and lamina.pack_int8 raise
    """
    a_scale, w_scale = scales_a.reshape(-1, 1), scales_b.flatten()
    return gemm_int8(mat_a, _pack(mat_b, True), a_scale, w_scale, bias=bias, out_dtype=out_dtype)


def int8_scaled_mm_with_quant(
    mat1: Tensor,
    mat2: Tensor,
    scales2: Tensor,
    bias: Tensor | None,
    out_dtype: torch.dtype,
    is_vnni: bool,
) -> Tensor:
    """int8_scaled_mm of mat1, which the call quantises per token, symmetric.

    mat1     [m, k]  f32 | f16 | bf16, any row stride
    mat2     [n, k]  int8, as mat_b of int8_scaled_mm
    scales2  f32 [n] or [n, 1]
    is_vnni  False: the weight is as the checkpoint has it
    returns  [m, n]  out_dtype, f16 | bf16 | f32
    Raises   ValueError if is_vnni; what lamina.gemm_int8 and lamina.pack_int8 raise
    """
    if is_vnni:
        raise ValueError(
            "lamina: int8_scaled_mm_with_quant: is_vnni = True; allowed: False, with the weight [n, k] that "
            "convert_weight_packed has not changed"
        )
    a = quantize_int8(mat1)
    return gemm_int8(a.q, _pack(mat2, False), a.scale, scales2.flatten(), bias=bias, out_dtype=out_dtype)


def merge_state_v2(
    v_a: Tensor,
    s_a: Tensor,
    v_b: Tensor,
    s_b: Tensor,
    v_merged: Tensor | None = None,
    s_merged: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention over all keys, from attention over two disjoint sets of them.

    v_a, v_b  [tokens, heads, head_dim]  f32 | f16 | bf16, of one dtype
    s_a, s_b  [tokens, heads]  natural logarithms of the sums of exp(score); -Inf where no key is seen
    v_merged, s_merged  written and returned; None: new tensors
    Raises    what lamina.merge_attention_states raises
    """
    out, lse = merge_attention_states([v_a, v_b], [s_a.float().T, s_b.float().T])
    return (
        out if v_merged is None else v_merged.copy_(out),
        lse.T if s_merged is None else s_merged.copy_(lse.T),
    )


def _pack(weight: Tensor, is_transposed: bool) -> PackedInt8:
    version = 0 if weight.is_inference() else weight._version  # inference mode counts no writes
    held: tuple[int, PackedInt8] | None = _packed.get(weight)  # type: ignore[no-untyped-call]
    if held is None or held[0] != version:
        held = version, pack_int8(weight.T.contiguous() if is_transposed else weight)
        _packed[weight] = held
    return held[1]
