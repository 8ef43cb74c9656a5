"""Attention backends of vLLM on paged_attention and append_paged_kv.

Block tables, slots and lengths are vLLM's, and the ops read them as they are. The cache of a layer is what
vLLM allocates, [blocks, kv_heads, block, content] in any order of memory: content holds a key and then a
value. With a scale for each token and head (int8_per_token_head, fp8_per_token_head) content is key, scale,
value, scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionCGSupport,
    AttentionImpl,
    AttentionMetadataBuilder,
    AttentionType,
    MultipleOf,
)

from lamina.integrations._attention import refuse, unit_stride, varlen_keys
from lamina.integrations.vllm.cache import CACHE_DTYPES, SCALE_BYTES, LayerCache
from lamina.ops import paged_attention

FUNCTION = "attention of vLLM (LAMINA_VLLM_ATTENTION=stock gives vLLM's own)"
MAX_HEAD = 256
HEAD_STEP = 8


@dataclass
class Metadata:
    """The batch of a step, the same for all layers; vLLM replaces slot_mapping for cross attention."""

    num_actual_tokens: int  # without padding
    max_query_len: int
    query_start_loc: Tensor
    seq_lens: Tensor
    block_table: Tensor
    slot_mapping: Tensor
    causal: bool


class MetadataBuilder(AttentionMetadataBuilder):  # type: ignore[misc]
    """Copies nothing: a CUDA graph that is replayed reads the tensors that vLLM updates."""

    # max_query_len chooses the kernel on CUDA, so all batches of a graph need the same.
    _cudagraph_support: ClassVar[AttentionCGSupport] = AttentionCGSupport.UNIFORM_BATCH

    def __init__(
        self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)

    def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Metadata:
        batch = common_attn_metadata
        refuse(FUNCTION, **{"causal that differs between requests": isinstance(batch.causal, Tensor)})
        return Metadata(
            num_actual_tokens=batch.num_actual_tokens,
            max_query_len=batch.max_query_len,
            query_start_loc=batch.query_start_loc,
            seq_lens=batch.seq_lens,
            block_table=batch.block_table_tensor,
            slot_mapping=batch.slot_mapping,
            causal=bool(batch.causal),
        )


class _Backend(AttentionBackend):  # type: ignore[misc]
    forward_includes_kv_cache_update = False
    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.float16, torch.bfloat16, torch.float32]
    supported_kv_cache_dtypes: ClassVar[list[str]] = list(CACHE_DTYPES)

    @staticmethod
    def get_impl_cls() -> type[Attention]:
        return Attention

    @staticmethod
    def get_builder_cls() -> type[MetadataBuilder]:
        return MetadataBuilder

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[int | MultipleOf]:
        return [MultipleOf(1)]

    @classmethod
    def customize_spec(cls, spec: Any) -> Any:
        """The spec, with room for the scales of a cache that has one for each token and head."""
        if spec.state_content_bytes is not None or not spec.kv_quant_mode.is_per_token_head:
            return spec
        content = (spec.head_size + spec.head_size_v) * spec.dtype.itemsize + 2 * SCALE_BYTES
        return replace(spec, state_content_bytes=content)

    @classmethod
    def supports_head_size(cls, head_size: int) -> bool:
        return head_size % HEAD_STEP == 0 and 0 < head_size <= MAX_HEAD

    @classmethod
    def supports_attn_type(cls, attn_type: str) -> bool:
        return attn_type in tuple(AttentionType)

    @classmethod
    def supports_sink(cls) -> bool:
        return True

    @classmethod
    def supports_sliding_window(cls) -> bool:
        return True

    @classmethod
    def supports_non_causal(cls) -> bool:
        return True

    @classmethod
    def supports_compute_capability(cls, capability: Any) -> bool:
        return bool(capability.to_int() >= 80)


class CpuAttentionBackend(_Backend):
    """Takes the place of CPU_ATTN, the only backend that vLLM asks for on a CPU."""

    @staticmethod
    def get_name() -> str:
        return "CPU_ATTN"


class CustomAttentionBackend(_Backend):
    """For CUDA: attention_config={"backend": "CUSTOM"}."""

    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.float16, torch.bfloat16]

    @staticmethod
    def get_name() -> str:
        return "CUSTOM"


class Attention(AttentionImpl):  # type: ignore[misc]
    """The attention of one layer: causal or not, with windows, softcap, ALiBi and sinks.

    Raises   ValueError for an argument, with its value and the allowed values
    """

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int | None = None,
        alibi_slopes: Sequence[float] | None = None,
        sliding_window: int | None = None,
        kv_cache_dtype: str = "auto",
        logits_soft_cap: float | None = None,
        attn_type: str = AttentionType.DECODER,
        kv_sharing_target_layer_name: str | None = None,
        sinks: Tensor | None = None,
    ) -> None:
        if not _Backend.supports_head_size(head_size):
            raise ValueError(
                f"lamina: {FUNCTION}: head_size = {head_size}; allowed: multiples of {HEAD_STEP} up to "
                f"{MAX_HEAD}"
            )
        if kv_cache_dtype not in CACHE_DTYPES:
            raise ValueError(
                f"lamina: {FUNCTION}: kv_cache_dtype = {kv_cache_dtype!r}; allowed: {', '.join(CACHE_DTYPES)}"
            )
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads or num_heads
        self.head_size = head_size
        self.scale = float(scale)
        self.kv_cache_dtype = kv_cache_dtype
        self.kv_sharing_target_layer_name = kv_sharing_target_layer_name
        self.attn_type = attn_type
        self.has_cache = attn_type in (AttentionType.DECODER, AttentionType.ENCODER_DECODER)
        self.window = -1 if sliding_window is None else sliding_window - 1
        self.softcap = logits_soft_cap or 0.0
        self.alibi_slopes = None if alibi_slopes is None else torch.tensor(alibi_slopes, dtype=torch.float32)
        self.sinks = sinks

    def do_kv_cache_update(
        self, layer: Any, key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor
    ) -> None:
        """Stores the keys and values of the tokens that have a slot."""
        if self.has_cache:
            self._cache(layer, kv_cache).store(key, value, slot_mapping)

    def _cache(self, layer: Any, kv_cache: Tensor) -> LayerCache:
        return LayerCache.of(kv_cache, self.kv_cache_dtype, self.head_size, layer._k_scale, layer._v_scale)

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor | None,
        value: Tensor | None,
        kv_cache: Tensor,
        attn_metadata: Metadata | None,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        """Writes the results of the tokens to output [tokens, heads, v_head_dim], and returns it."""
        refuse(
            FUNCTION,
            output_scale=output_scale is not None,
            output_block_scale=output_block_scale is not None,
        )
        if attn_metadata is None:  # vLLM measures memory or compiles
            return output.zero_()
        batch, tokens = attn_metadata, attn_metadata.num_actual_tokens
        scales: dict[str, Any] = {}
        if self.has_cache:
            cache = self._cache(layer, kv_cache)
            keys = (cache.k, cache.v, batch.block_table, batch.seq_lens)
            scales = {"k_scale": cache.k_scale, "v_scale": cache.v_scale}
        else:
            assert key is not None and value is not None
            own = varlen_keys(
                FUNCTION, key[:tokens], value[:tokens], batch.query_start_loc, batch.max_query_len, None, None
            )
            keys = (own.k_cache, own.v_cache, own.block_table, own.seq_lens)
        causal = batch.causal and self.has_cache
        out = paged_attention(
            unit_stride(query[:tokens]),
            *keys,
            batch.query_start_loc,
            max_seqlen_q=batch.max_query_len,
            scale=self.scale,
            causal=causal,
            window=(self.window, -1 if causal else self.window),
            softcap=self.softcap,
            alibi_slopes=None if self.alibi_slopes is None else self.alibi_slopes.to(query.device),
            sinks=None if self.sinks is None else self.sinks.float(),
            **scales,
        )
        assert isinstance(out, Tensor)
        output[:tokens] = out
        return output
