"""The weights of models: the sizes of their configurations, and the linear layers that follow from them."""

from __future__ import annotations

from typing import NamedTuple


class Model(NamedTuple):
    """The sizes in a model's config.json."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int

    def weights(self) -> dict[str, tuple[int, int]]:
        """(n, k) of each linear layer of a decoder layer. Layers with the same input are one product."""
        queries = self.heads * self.head_dim
        return {
            "qkv": (queries + 2 * self.kv_heads * self.head_dim, self.hidden),
            "o": (self.hidden, queries),
            "gate_up": (2 * self.intermediate, self.hidden),
            "down": (self.hidden, self.intermediate),
        }

    def head(self) -> tuple[int, int]:
        """(n, k) of the layer that makes the logits."""
        return self.vocabulary, self.hidden


MODELS = {
    "llama3-8b": Model(32, 4096, 14336, 32, 8, 128, 128256),
    "llama3-70b": Model(80, 8192, 28672, 64, 8, 128, 128256),
    "qwen3-8b": Model(36, 4096, 12288, 32, 8, 128, 151936),
    "smollm2": Model(30, 576, 1536, 9, 3, 64, 49152),  # SmolLM2-135M
}
