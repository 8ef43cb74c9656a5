"""The cache of one layer as vLLM allocates it, seen as lamina's ops take it. Needs nothing of vLLM."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lamina.ops import append_paged_kv

SCALE_BYTES = torch.float32.itemsize
# The names of vLLM -> the dtype in which the ops read the bytes; None: the dtype of the tensor.
CACHE_DTYPES = {
    "auto": None,
    "float16": None,
    "bfloat16": None,
    "fp8": torch.float8_e4m3fn,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_per_token_head": torch.float8_e4m3fn,
    "int8_per_token_head": torch.int8,
}


def has_own_scales(kv_cache_dtype: str) -> bool:
    """Whether each token and head has a scale, which lies in the cache."""
    return kv_cache_dtype.endswith("_per_token_head")


@dataclass(frozen=True)
class LayerCache:
    """Views of a cache; they share its memory.

    k, v      [blocks, block, kv_heads, head_dim]
    k_scale, v_scale  f32: [blocks, block, kv_heads], one for all ([1]), or None for a float cache
    """

    k: Tensor
    v: Tensor
    k_scale: Tensor | None
    v_scale: Tensor | None

    @classmethod
    def of(
        cls, kv_cache: Tensor, kv_cache_dtype: str, head_size: int, k_scale: Tensor, v_scale: Tensor
    ) -> LayerCache:
        """The views.

        kv_cache        [blocks, kv_heads, block, content], content contiguous: key and value, or with own
                        scales key, scale, value, scale
        k_scale, v_scale  f32, one element: the scale of a float8 cache without own scales
        """
        dtype = CACHE_DTYPES[kv_cache_dtype]
        slots = kv_cache.transpose(1, 2)
        if dtype is None:
            return cls(slots[..., :head_size], slots[..., head_size:], None, None)
        if not has_own_scales(kv_cache_dtype):
            slots = slots.view(dtype)
            return cls(slots[..., :head_size], slots[..., head_size:], k_scale.reshape(1), v_scale.reshape(1))
        value = head_size + SCALE_BYTES
        return cls(
            slots[..., :head_size].view(dtype),
            slots[..., value:-SCALE_BYTES].view(dtype),
            slots[..., head_size:value].view(torch.float32).squeeze(-1),
            slots[..., -SCALE_BYTES:].view(torch.float32).squeeze(-1),
        )

    def store(self, key: Tensor, value: Tensor, slot_mapping: Tensor) -> None:
        """Writes the rows of key and value [tokens or more, kv_heads, head_dim] whose slot is not -1."""
        tokens = len(slot_mapping)
        append_paged_kv(
            key[:tokens],
            value[:tokens],
            self.k,
            self.v,
            slot_mapping,
            k_scale=self.k_scale,
            v_scale=self.v_scale,
        )
