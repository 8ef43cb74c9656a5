"""reshape_and_cache and reshape_and_cache_flash with the arguments of vllm._custom_ops."""

from __future__ import annotations

import torch
from torch import Tensor

from lamina.ops import append_paged_kv

# vLLM stores float8 in tensors of uint8, and names the format beside them.
CACHE_DTYPES = {
    "auto": None,
    "fp8": torch.float8_e4m3fn,
    "fp8_e4m3": torch.float8_e4m3fn,
    "int8": torch.int8,
}


def reshape_and_cache_flash(
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    kv_cache_dtype: str,
    k_scale: float | Tensor,
    v_scale: float | Tensor,
) -> None:
    """Stores the keys and values of new tokens in a paged cache.

    key, value      [tokens, kv_heads, head_dim]; may be longer than slot_mapping, as in padded batches
    key_cache, value_cache  [pages, page, kv_heads, head_dim] with any strides but the last, written. uint8 is
                    float8_e4m3fn
    slot_mapping    [tokens] int64: slot = page index * page + offset; -1 is skipped
    kv_cache_dtype  auto: the dtype of the caches. fp8, fp8_e4m3: float8_e4m3fn. int8
    k_scale, v_scale  the scale of a cache of 1 byte an element: stored is x / scale. Ignored for other caches
    Raises          ValueError for another kv_cache_dtype; what lamina.append_paged_kv raises
    """
    if kv_cache_dtype not in CACHE_DTYPES:
        raise ValueError(
            f"lamina: reshape_and_cache_flash: kv_cache_dtype = {kv_cache_dtype!r}; "
            f"allowed: {', '.join(CACHE_DTYPES)}"
        )
    dtype = CACHE_DTYPES[kv_cache_dtype]
    if dtype is not None and key_cache.dtype == torch.uint8:
        key_cache, value_cache = key_cache.view(dtype), value_cache.view(dtype)
    if dtype is not None and key_cache.dtype != dtype:
        raise ValueError(
            f"lamina: reshape_and_cache_flash: kv_cache_dtype = {kv_cache_dtype!r}, "
            f"but key_cache is {key_cache.dtype}"
        )
    has_scale = key_cache.itemsize == 1

    def scale(given: float | Tensor) -> Tensor | None:
        return torch.as_tensor(given, dtype=torch.float32, device=key.device) if has_scale else None

    tokens = slot_mapping.shape[0]
    append_paged_kv(
        key[:tokens], value[:tokens], key_cache, value_cache, slot_mapping, k_scale=scale(k_scale),
        v_scale=scale(v_scale),
    )  # fmt: skip


def reshape_and_cache(
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    kv_cache_dtype: str,
    k_scale: float | Tensor,
    v_scale: float | Tensor,
) -> None:
    """reshape_and_cache_flash. The caches must have its layout, which lamina.paged_attention reads.

    Raises   ValueError for the older layout of key_cache, [pages, kv_heads, head_dim / x, page, x]
    """
    if key_cache.dim() != 4 or value_cache.dim() != 4:
        raise ValueError(
            "lamina: reshape_and_cache: key_cache and value_cache must be 4-D [pages, page, kv_heads, "
            f"head_dim], got {list(key_cache.shape)} and {list(value_cache.shape)}; the layout that splits "
            "head_dim is not supported"
        )
    reshape_and_cache_flash(
        key, value, key_cache, value_cache, slot_mapping, kv_cache_dtype, k_scale, v_scale
    )
