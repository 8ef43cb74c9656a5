"""Functions with the signatures of other libraries, computed by lamina's ops, and plugins for them.

flash_attn     flash_attn_with_kvcache and flash_attn_varlen_func of Dao-AILab's flash-attn
sgl_kernel     int8_scaled_mm, int8_scaled_mm_with_quant and merge_state_v2 of SGLang
sparse24       2:4 weights of torch and compressed-tensors, imported as lamina.Sparse24
torch_varlen   varlen_attn of torch.nn.attention.varlen
transformers   attention, a paged cache and a quantisation method of transformers
vllm           the plugin of vLLM: linear layers and attention of the whole engine
vllm_ops       reshape_and_cache and reshape_and_cache_flash of vLLM

Where a convention differs, the difference is mapped here: the shape of the logarithms, their value for rows
that see no key, and lengths that do not count the new tokens. docs/integrations.md lists them.
"""

from __future__ import annotations
