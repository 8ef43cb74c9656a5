"""lamina: the kernel layer of LLM inference. Importing it registers torch.ops.lamina.*."""

from __future__ import annotations

from lamina import _library

_library.load()

from lamina import kv, nn, ops, quant  # noqa: E402  (the ops must be registered before their fakes)
from lamina.checkpoint import load_compressed, save_compressed  # noqa: E402
from lamina.compression import CompressionReport, compress  # noqa: E402
from lamina.ops import (  # noqa: E402
    PackedInt4,
    PackedInt8,
    QuantizedInt8,
    append_paged_kv,
    compact_kv,
    copy_kv_blocks,
    gather_paged_kv,
    gemm_int4,
    gemm_int4_int8,
    gemm_int8,
    gemm_int8_quantized,
    merge_attention_states,
    pack_int4,
    pack_int8,
    paged_attention,
    quantize_int8,
)

__version__: str = _library.build_info()["version"]

__all__ = [
    "CompressionReport",
    "PackedInt4",
    "PackedInt8",
    "QuantizedInt8",
    "append_paged_kv",
    "compact_kv",
    "compress",
    "copy_kv_blocks",
    "gather_paged_kv",
    "gemm_int4",
    "gemm_int4_int8",
    "gemm_int8",
    "gemm_int8_quantized",
    "kv",
    "load_compressed",
    "merge_attention_states",
    "nn",
    "ops",
    "pack_int4",
    "pack_int8",
    "paged_attention",
    "quant",
    "quantize_int8",
    "save_compressed",
]
