"""A causal language model of transformers over a PagedCache, for lamina.speculate."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from lamina.compression import SCHEMES, compress
from lamina.integrations.transformers.cache import PagedKVCache
from lamina.integrations.transformers.fused import accelerate
from lamina.kv import PagedCache
from lamina.nn.packed_linear import PackedLinear
from lamina.speculate.rows import Rows


class PagedModel:
    """A causal language model whose keys and values lie in a lamina.kv.PagedCache.

    model   a PreTrainedModel with a head and the attention "lamina". All layers have the same KV heads and
            head_dim
    tokens  that the cache has room for, those of all sequences together
    page    slots of a page
    dtype   f32 | f16 | bf16 | float8_e4m3fn | int8; None means the dtype of the model
    cache   the pages, which the caller fills with sequences

    logits() calls the model once for rows of many sequences, of any lengths, without padding. Where
    all linear layers, the norms and the head are lamina's, a row of logits has the same bits in every batch.
    Raises ValueError for another attention.
    """

    def __init__(
        self, model: PreTrainedModel, tokens: int, *, page: int = 16, dtype: torch.dtype | None = None
    ) -> None:
        config = model.config.get_text_config(decoder=True)
        if config._attn_implementation != "lamina":
            raise ValueError(
                f"lamina: PagedModel: the attention of model is {config._attn_implementation!r}; it must be "
                '"lamina": call accelerate(model) or model.set_attn_implementation("lamina")'
            )
        if tokens < 1:
            raise ValueError(f"lamina: PagedModel: tokens = {tokens}; must be at least 1")
        self.model = model
        heads = config.num_attention_heads
        self.cache = PagedCache(
            config.num_hidden_layers, -(-tokens // page), page, getattr(config, "num_key_value_heads", heads),
            getattr(config, "head_dim", None) or config.hidden_size // heads, dtype=dtype or model.dtype,
            device=model.device,
        )  # fmt: skip
        self._states = _RowsCache(config, self.cache)

    def logits(self, rows: Rows) -> Tensor:
        """The logits [rows or kept, vocab], after the keys and values were written to the cache."""
        self._states.begin(rows)
        keep = 0 if rows.keep is None else rows.keep
        with torch.inference_mode():
            out = self.model(
                input_ids=rows.tokens[None], position_ids=rows.positions[None],
                past_key_values=self._states, use_cache=True, logits_to_keep=keep,
            )  # fmt: skip
        logits: Tensor = out.logits[0]
        return logits


class _RowsCache(PagedKVCache):
    """The cache as the model sees it: one row of a batch, whose tokens go to the slots of a call."""

    def __init__(self, config: PreTrainedConfig, pool: PagedCache) -> None:
        super().__init__(config, pool.pages * pool.page, page=pool.page)
        self._pool = pool

    def begin(self, rows: Rows) -> None:
        """Sets the places of a call."""
        self._slots, self.tables, self.tree = rows.slots, rows.batch, rows.tree

    def grow(self, layer: int, count: int, batch: int) -> Tensor:
        return self._slots


def int4_copy(model: PreTrainedModel, scheme: str = "w4a8", *, group: int = 32) -> PreTrainedModel:
    """A copy of a float model with int4 weights, accelerated: a draft of the model for itself.

    scheme   of all linear layers but the head, which becomes w8a8
    returns  a model for PagedModel. It shares the embedding of `model`
    Raises   ValueError for a scheme without int4 weights, and for a model that is packed already
    """
    allowed = [name for name in SCHEMES if name.startswith("w4")]
    if scheme not in allowed:
        raise ValueError(f"lamina: int4_copy: scheme = {scheme!r}; must be one of {', '.join(allowed)}")
    packed = next((name for name, layer in model.named_modules() if isinstance(layer, PackedLinear)), None)
    if packed is not None:
        raise ValueError(f"lamina: int4_copy: layer {packed!r} of model is packed; all must be float")
    embedding = model.get_input_embeddings().weight
    made: PreTrainedModel = copy.deepcopy(model, {id(embedding): embedding})
    compress(made, scheme, group=group, head="w8a8", progress=False)
    accelerate(made)
    return made
