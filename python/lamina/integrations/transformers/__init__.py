"""lamina in Hugging Face transformers (5.x): importing this module registers the attention "lamina".

import lamina.integrations.transformers
model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="lamina")
cache = lamina.integrations.transformers.PagedKVCache(model.config, max_cache_len=4096, dtype=torch.int8)
model.generate(**inputs, past_key_values=cache)
"""

from transformers import AttentionInterface, AttentionMaskInterface

from lamina.integrations.transformers.attention import Mask, attention, make_mask
from lamina.integrations.transformers.cache import PagedKVCache

__all__ = ["Mask", "PagedKVCache", "attention", "make_mask"]

AttentionInterface.register("lamina", attention)
AttentionMaskInterface.register("lamina", make_mask)
