"""lamina in Hugging Face transformers (5.x). Importing this module registers the attention "lamina", and the
quantisation method "lamina", so that from_pretrained reads what save_pretrained and save_compressed write.

import lamina.integrations.transformers
model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="lamina")
cache = lamina.integrations.transformers.PagedKVCache(model.config, max_cache_len=4096, dtype=torch.int8)
model.generate(**inputs, past_key_values=cache)
"""

from transformers import AttentionInterface, AttentionMaskInterface

from lamina.integrations.transformers.attention import Mask, attention, make_mask
from lamina.integrations.transformers.cache import PagedKVCache
from lamina.integrations.transformers.continuous import (
    NAME,
    batched_attention,
    make_batched_mask,
    use_continuous_batching,
)
from lamina.integrations.transformers.foreign import give_back, take_over
from lamina.integrations.transformers.fused import AccelerateReport, accelerate
from lamina.integrations.transformers.gguf import from_gguf
from lamina.integrations.transformers.paged_model import PagedModel, int4_copy
from lamina.integrations.transformers.quantizer import LaminaConfig, LaminaHfQuantizer
from lamina.integrations.transformers.smoothing import smooth
from lamina.integrations.transformers.speculative import speculative

__all__ = [
    "AccelerateReport",
    "LaminaConfig",
    "LaminaHfQuantizer",
    "Mask",
    "PagedKVCache",
    "PagedModel",
    "accelerate",
    "attention",
    "from_gguf",
    "give_back",
    "int4_copy",
    "make_mask",
    "smooth",
    "speculative",
    "take_over",
    "use_continuous_batching",
]

AttentionInterface.register("lamina", attention)
AttentionMaskInterface.register("lamina", make_mask)
AttentionInterface.register(NAME, batched_attention)
AttentionMaskInterface.register(NAME, make_batched_mask)
