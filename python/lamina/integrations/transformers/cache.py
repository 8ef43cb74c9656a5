"""A cache of transformers whose keys and values lie in pages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin

from lamina.kv import Batch, PagedCache
from lamina.ops import TreeMask


class PagedStates(Tensor):
    """The keys or the values [batch, kv_heads, tokens, head_dim] of a layer, which lie in pages.

    The attention "lamina" reads the pages. Every other operation gathers them into an ordinary tensor, of the
    dtype of the keys that were given, so other attentions work too, at the price of a copy.
    """

    cache: PagedKVCache
    layer: int
    is_key: bool

    @staticmethod
    def __new__(cls, cache: PagedKVCache, layer: int, given: Tensor, is_key: bool) -> PagedStates:
        """A tensor without memory of its own, for the layer to which the states `given` were added."""
        shape = (*given.shape[:2], cache.layers[layer].get_seq_length(), given.shape[3])
        states: PagedStates = Tensor._make_wrapper_subclass(
            cls, shape, dtype=given.dtype, device=given.device
        )
        states.cache, states.layer, states.is_key = cache, layer, is_key
        return states

    def read(self) -> Tensor:
        """The values, copied out of the pages and dequantised."""
        k, v = self.cache.pool.gather(self.layer, self.cache.tables, out_dtype=self.dtype)
        rows = k if self.is_key else v
        return rows.view(self.shape[0], self.shape[2], *rows.shape[1:]).transpose(1, 2)

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """func on the gathered values."""
        args, kwargs = tree_map(_values, (args, kwargs or {}))
        return func(*args, **kwargs)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"PagedStates({list(self.shape)}, dtype={self.dtype}, layer={self.layer})"


def _values(leaf: Any) -> Any:
    return leaf.read() if isinstance(leaf, PagedStates) else leaf


class _Layer(CacheLayerMixin):  # type: ignore[misc]
    """A layer as transformers sees it; the cache does the work."""

    is_sliding = False

    def __init__(self, cache: PagedKVCache, index: int) -> None:
        super().__init__()
        self.cache, self.index, self.length = cache, index, 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.cache.allocate(key_states, value_states)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.require_pages(key_states, value_states)
        return self.cache.write(self.index, key_states, value_states)

    def require_pages(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocates the pages if that has not been done."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return self.cache.max_cache_len


class PagedKVCache(Cache):  # type: ignore[misc]
    """A cache for model.generate(past_key_values=...) whose keys and values lie in pages.

    config          of the model; all layers have the same KV heads and head_dim
    max_cache_len   tokens of a sequence, prompt and answer together
    max_batch_size  sequences: prompts times beams
    page            slots of a page
    dtype           f32 | f16 | bf16 | float8_e4m3fn | int8; None means the dtype of the model. int8 and
                    float8_e4m3fn have a scale for each token and head

    A token is written once and never moved: beams share pages until they differ, and rejected tokens of
    assisted generation are dropped. Layers with a sliding window keep all tokens. With attn_implementation
    "lamina" attention reads the pages; others get a copy. Raises lamina.kv.OutOfPages where more tokens come
    than max_batch_size * max_cache_len, and then the cache is as before the call.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        max_cache_len: int,
        *,
        max_batch_size: int = 1,
        page: int = 16,
        dtype: torch.dtype | None = None,
    ) -> None:
        for name, size in {
            "max_cache_len": max_cache_len,
            "max_batch_size": max_batch_size,
            "page": page,
        }.items():
            if size < 1:
                raise ValueError(f"lamina: PagedKVCache: {name} = {size} must be at least 1")
        self.max_cache_len, self.page, self.dtype = max_cache_len, page, dtype
        self.pages = max_batch_size * -(-max_cache_len // page)
        self._pool: PagedCache | None = None
        self._seqs: list[int] = []
        self._slots = torch.empty(0, dtype=torch.int64)
        nothing = torch.empty(0, dtype=torch.int32)
        self.tables = Batch(nothing, nothing, nothing, 0)
        self.tree: TreeMask | None = None  # if the new tokens of each sequence are the nodes of a tree
        self._embeddings: tuple[Tensor, Tensor] | None = None
        self._rotary: dict[str, Tensor] = {}
        layers = config.get_text_config(decoder=True).num_hidden_layers
        super().__init__(layers=[_Layer(self, index) for index in range(layers)])

    @property
    def has_pages(self) -> bool:
        """Whether the pages are allocated."""
        return self._pool is not None

    @property
    def pool(self) -> PagedCache:
        """The pages. They are allocated when the first tokens come."""
        if self._pool is None:
            raise RuntimeError("lamina: PagedKVCache: no token has been written, so there are no pages yet")
        return self._pool

    def allocate(self, key: Tensor, value: Tensor) -> None:
        """Allocates the pages for keys and values like these, unless they are there."""
        if self._pool is None:
            self._pool = PagedCache(
                len(self.layers), self.pages, self.page, key.shape[1], key.shape[-1],
                v_head_dim=value.shape[-1], dtype=self.dtype or key.dtype, device=key.device,
            )  # fmt: skip

    def write(self, layer: int, key: Tensor, value: Tensor) -> tuple[PagedStates, PagedStates]:
        """Adds key and value [batch, kv_heads, new tokens, head_dim] to a layer; returns all its states."""
        k, v = (x.transpose(1, 2).flatten(0, 1) for x in (key, value))
        self._write_rows(layer, k, v, key.shape[0])
        return PagedStates(self, layer, key, True), PagedStates(self, layer, value, False)

    def write_rotated(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, embeddings: tuple[Tensor, Tensor]
    ) -> None:
        """Adds rows key and value [batch * new tokens, kv_heads, head_dim]; rotates keys and query in place.

        embeddings  cos and sin [1 or batch, new tokens, rotary_dim] of transformers: both halves of the last
                    dimension are equal
        """
        self.layers[layer].require_pages(key, value)
        batch = len(key) // embeddings[0].shape[1]
        rotary = self.rotary(embeddings, batch)
        self._write_rows(layer, key, value, batch, **rotary, q=query)

    def rotary(self, embeddings: tuple[Tensor, Tensor], batch: int) -> dict[str, Tensor]:
        """The arguments cos, sin and positions of append_paged_kv; all layers of a model share them."""
        if self._embeddings is not embeddings:
            self._embeddings = embeddings
            count, half = embeddings[0].shape[1], embeddings[0].shape[-1] // 2
            cos, sin = (x[..., :half].expand(batch, count, half).reshape(-1, half) for x in embeddings)
            self._rotary = {"cos": cos, "sin": sin, "positions": torch.arange(len(cos), device=cos.device)}
        return self._rotary

    def _write_rows(self, layer: int, key: Tensor, value: Tensor, batch: int, **rotary: Tensor) -> None:
        """Adds rows to a layer; `rotary` are arguments of append_paged_kv."""
        self.pool.write(layer, key, value, self.grow(layer, len(key) // batch, batch), **rotary)

    def grow(self, layer: int, count: int, batch: int) -> Tensor:
        """Makes room for `count` tokens of each row of the batch in a layer; returns their slot_mapping."""
        at = self.layers[layer]
        if not self._seqs:
            self._seqs = [self.pool.new() for _ in range(batch)]
        if batch != len(self._seqs):
            raise ValueError(
                f"lamina: PagedKVCache: a batch of {batch} was given, and the cache holds "
                f"{len(self._seqs)} sequences"
            )
        if at.length == self.pool.length(self._seqs[0]):  # the first layer makes room for all
            self._slots = self.pool.append(self._seqs, count)
            self.tables = self.pool.batch(self._seqs, count)
        at.length += count
        return self._slots

    def crop(self, tokens_to_remove: int) -> None:
        """Drops the last abs(tokens_to_remove) tokens; a positive number is refused, as by other caches."""
        if tokens_to_remove > 0:
            raise ValueError(
                f"lamina: PagedKVCache: tokens_to_remove = {tokens_to_remove} must be at most 0; "
                "-n drops n tokens"
            )
        length = self.get_seq_length() + tokens_to_remove
        for seq in self._seqs:
            self.pool.truncate(seq, length)
        for layer in self.layers:
            layer.length = length

    def reset(self) -> None:
        """Drops all sequences; the pages stay allocated."""
        self._take([])
        for layer in self.layers:
            layer.length = 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row b of the batch becomes row beam_idx[b]; no key is copied."""
        self._take(beam_idx.tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats each row of the batch; no key is copied."""
        self._take([row for row in range(len(self._seqs)) for _ in range(repeats)])

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps these rows of the batch."""
        rows = torch.arange(len(self._seqs), device=indices.device)[indices]
        self._take(rows.tolist())

    def _take(self, rows: Sequence[int]) -> None:
        """The batch becomes these rows of it."""
        before, self._seqs = self._seqs, [self.pool.fork(self._seqs[row]) for row in rows]
        for seq in before:
            self.pool.free(seq)
