"""Typed functions for torch.ops.lamina.*; importing them registers the ops' fake kernels and gradients."""

from __future__ import annotations

from lamina.ops.check_errors import check_errors
from lamina.ops.compress_sparse24 import Sparse24, compress_sparse24, is_sparse24
from lamina.ops.decoder_layers import DecoderLayer, PackedProduct, ProductKind, decoder_layers
from lamina.ops.gemm_int4 import gemm_int4
from lamina.ops.gemm_int4_int8 import gemm_int4_int8
from lamina.ops.gemm_int8 import gemm_int8, gemm_int8_quantized
from lamina.ops.matmul_sparse24 import (
    matmul_sparse24,
    matmul_sparse24_int4,
    matmul_sparse24_int4_int8,
    matmul_sparse24_int8,
)
from lamina.ops.merge_attention_states import merge_attention_states
from lamina.ops.pack_int4 import PackedInt4, pack_int4
from lamina.ops.pack_int8 import PackedInt8, pack_int8
from lamina.ops.pack_sparse24 import PackedSparse24, pack_sparse24
from lamina.ops.paged_attention import paged_attention
from lamina.ops.paged_kv import append_paged_kv, compact_kv, copy_kv_blocks, gather_paged_kv
from lamina.ops.quantize_int8 import QuantizedInt8, quantize_int8
from lamina.ops.registration import register_fakes
from lamina.ops.rms_norm import rms_norm, rms_norm_int8
from lamina.ops.sample import (
    SampledTokens,
    SampleFlag,
    TreeMask,
    VerifiedDraft,
    pack_tree_mask,
    sample_tokens,
    verify_draft,
)
from lamina.ops.silu_mul import silu_mul, silu_mul_int8

__all__ = [
    "DecoderLayer",
    "PackedInt4",
    "PackedInt8",
    "PackedProduct",
    "PackedSparse24",
    "ProductKind",
    "QuantizedInt8",
    "SampleFlag",
    "SampledTokens",
    "Sparse24",
    "TreeMask",
    "VerifiedDraft",
    "append_paged_kv",
    "check_errors",
    "compact_kv",
    "compress_sparse24",
    "copy_kv_blocks",
    "decoder_layers",
    "gather_paged_kv",
    "gemm_int4",
    "gemm_int4_int8",
    "gemm_int8",
    "gemm_int8_quantized",
    "is_sparse24",
    "matmul_sparse24",
    "matmul_sparse24_int4",
    "matmul_sparse24_int4_int8",
    "matmul_sparse24_int8",
    "merge_attention_states",
    "pack_int4",
    "pack_int8",
    "pack_sparse24",
    "pack_tree_mask",
    "paged_attention",
    "quantize_int8",
    "rms_norm",
    "rms_norm_int8",
    "sample_tokens",
    "silu_mul",
    "silu_mul_int8",
    "verify_draft",
]

register_fakes("lamina")
