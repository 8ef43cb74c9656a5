"""Problems of paged_attention: ragged batches in shuffled pages, where all that no token may see is NaN."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tests.reference import paged_attention as reference
from tests.support.backends import Backend, CudaKernel
from tests.support.cases import generator

F8 = torch.float8_e4m3fn
GARBAGE = (-1, 2**31 - 1, -(2**31), 10**6)  # of block tables, where no length reaches
SPARE_PAGES = 3

# Lists of (q_len, seq_len).
BATCHES = {
    "decode": ((1, 1), (1, 17), (1, 40)),
    "verify": ((4, 4), (5, 33)),
    "prefill": ((9, 9), (7, 24)),
    "mixed": ((1, 33), (6, 6), (0, 5), (3, 21)),
    "edges": ((0, 0), (1, 0), (5, 3), (0, 12), (2, 2)),
    "long_decode": ((1, 511), (1, 1100)),
    "long_verify": ((4, 514), (3, 1026)),
    "long_prefill": ((7, 1030), (0, 600), (6, 516)),
}
# The dtype of the cache, and the scales of keys and values: none, one "tensor" or one a "token" and head.
CACHES: dict[str, tuple[torch.dtype, str, str]] = {
    "f32": (torch.float32, "", ""),
    "f16": (torch.float16, "", ""),
    "bf16": (torch.bfloat16, "", ""),
    "e4m3": (F8, "", ""),
    "e4m3_tensor": (F8, "tensor", "tensor"),
    "e4m3_token": (F8, "token", "token"),
    "e4m3_k": (F8, "token", ""),
    "e4m3_v": (F8, "", "tensor"),
    "int8_tensor": (torch.int8, "tensor", "tensor"),
    "int8_token": (torch.int8, "token", "token"),
    "int8_mixed": (torch.int8, "tensor", "token"),
}
WIDE_TREE = 40  # nodes: more than one word of the mask holds
ROWS_OF_BYTES = (16, 64)  # of the tiles for caches of one byte an element on sm80; sm90a has all


@dataclass(frozen=True)
class AttentionInputs:
    """The arguments of torch.ops.lamina.paged_attention by their names, and what the op must return."""

    q: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    block_table: torch.Tensor
    seq_lens: torch.Tensor
    cu_seqlens_q: torch.Tensor
    max_seqlen_q: int
    scale: float | None = None
    causal: bool = True
    window_left: int = -1
    window_right: int = -1
    softcap: float = 0.0
    alibi_slopes: torch.Tensor | None = None
    sinks: torch.Tensor | None = None
    tree_mask: torch.Tensor | None = None
    tree_len: torch.Tensor | None = None
    tree_depth: torch.Tensor | None = None
    k_scale: torch.Tensor | None = None
    v_scale: torch.Tensor | None = None
    out_dtype: torch.dtype | None = None

    def replace(self, **changed: Any) -> AttentionInputs:
        return dataclasses.replace(self, **changed)

    def arguments(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def expected(self) -> reference.Attention:
        given = self.arguments()
        del given["max_seqlen_q"]
        return reference.paged_attention(**given)

    def span(self, request: int) -> slice:
        """The tokens of one request."""
        return slice(int(self.cu_seqlens_q[request]), int(self.cu_seqlens_q[request + 1]))

    def request(self, request: int, tokens: slice | None = None) -> AttentionInputs:
        """The problem of one request alone, or of some of its tokens that have no tree: the length ends with
        the last of these tokens."""
        whole = self.span(request)
        span = whole if tokens is None else slice(whole.start + tokens.start, whole.start + tokens.stop)
        later = whole.stop - span.stop

        def cut(t: torch.Tensor | None, rows: slice) -> torch.Tensor | None:
            return None if t is None else t[rows]

        own = slice(request, request + 1)
        slopes = self.alibi_slopes
        return self.replace(
            q=self.q[span],
            block_table=self.block_table[own],
            seq_lens=self.seq_lens[own] - later,
            cu_seqlens_q=torch.tensor([0, span.stop - span.start]).int(),
            max_seqlen_q=span.stop - span.start,
            alibi_slopes=slopes if slopes is None or slopes.dim() == 1 else slopes[own],
            tree_mask=cut(self.tree_mask, span),
            tree_len=cut(self.tree_len, own),
            tree_depth=cut(self.tree_depth, span),
        )

    def slot(self, request: int, slot: int) -> tuple[int, int]:
        """The page of a slot, and its row in the page."""
        page_size = self.k_cache.shape[1]
        return int(self.block_table[request, slot // page_size]), slot % page_size


@dataclass(frozen=True)
class AttentionCase:
    """One row of a table of options; inputs() makes the tensors."""

    batch: str | tuple[tuple[int, int], ...] = "mixed"
    q_dtype: torch.dtype = torch.float32
    cache: str = "f32"
    heads: tuple[int, int] = (2, 3)  # kv_heads, group
    head_dim: int = 64
    v_head_dim: int = 0  # 0: head_dim
    page: int = 7
    layout: str = "nhd"
    causal: bool = True
    window: tuple[int, int] = (-1, -1)
    softcap: float = 0.0
    alibi: str = ""  # "", "heads" or "requests"
    sinks: bool = False
    tree: str = ""  # a key of TREES
    out_dtype: torch.dtype | None = None

    def on(self, backend: Backend) -> AttentionCase:
        """The case itself or, for a CUDA kernel, one like it that the kernel can compute: in 16 bits, and
        with the head_dims for which tiles of many rows are built."""
        if not isinstance(backend, CudaKernel):
            return self
        q_dtype = self.q_dtype
        if q_dtype == torch.float32:
            q_dtype = (torch.bfloat16, torch.float16)[(self.page + self.head_dim // 8) % 2]
        is_quantized = CACHES[self.cache][0].itemsize == 1
        tile = int(re.findall(r"_r(\d+)", backend.isa)[0])
        has_all = backend.arch == 90 or tile == 16
        most = 256 if has_all else 192 if tile == 64 and not is_quantized else 128
        half = "f16" if q_dtype == torch.float16 else "bf16"
        return dataclasses.replace(
            self,
            q_dtype=q_dtype,
            cache=self.cache if is_quantized and (backend.arch == 90 or tile in ROWS_OF_BYTES) else half,
            head_dim=min(self.head_dim, most),
            v_head_dim=min(self.v_head_dim, most),
        )

    def inputs(self) -> AttentionInputs:
        g = generator(repr(self))
        lens = list(BATCHES[self.batch] if isinstance(self.batch, str) else self.batch)
        if self.tree == "wide":
            lens[-1] = (lens[-1][0] + WIDE_TREE, lens[-1][1] + WIDE_TREE)
        kv_heads, group = self.heads
        cu = torch.tensor([0] + [q_len for q_len, _ in lens]).cumsum(0).int()
        tokens = int(cu[-1])
        table, slots, pages = self._block_table(lens, g)
        k_cache, v_cache = self._caches(pages)
        dtype, *kinds = CACHES[self.cache]
        for cache in (k_cache, v_cache):
            fill_slots(cache, slots, lambda *shape: random_elements(dtype, g, *shape))
        scales = [self._scale(kind, pages, slots, g) for kind in kinds]
        mask, nodes, depth = self._tree(lens, g)
        slopes = None
        if self.alibi:
            slopes = (0.02 + 0.4 * torch.rand(len(lens), kv_heads * group + 3, generator=g))[:, 3:]
            slopes = slopes[0].clone() if self.alibi == "heads" else slopes
        return AttentionInputs(
            q=self._queries(tokens, g),
            k_cache=k_cache,
            v_cache=v_cache,
            block_table=table,
            seq_lens=torch.tensor([seq_len for _, seq_len in lens]).int(),
            cu_seqlens_q=cu,
            max_seqlen_q=max((q_len for q_len, _ in lens), default=0) + 2 * (self.page % 2),
            # The scale may be given, and is another than the default.
            scale=None if self.page % 2 else 0.7 * self.head_dim**-0.5,
            causal=self.causal,
            window_left=self.window[0],
            window_right=self.window[1],
            softcap=self.softcap,
            alibi_slopes=slopes,
            sinks=2 * torch.randn(kv_heads * group, generator=g) if self.sinks else None,
            tree_mask=mask,
            tree_len=nodes,
            tree_depth=depth,
            k_scale=scales[0],
            v_scale=scales[1],
            out_dtype=self.out_dtype,
        )

    def _queries(self, tokens: int, g: torch.Generator) -> torch.Tensor:
        """Queries whose scores spread; with a padded layout they are a slice of a tensor with all heads."""
        heads = self.heads[0] * self.heads[1]
        q = (1.5 * torch.randn(tokens, heads, self.head_dim, generator=g)).to(self.q_dtype)
        if self.layout != "padded":
            return q
        wide = torch.full((tokens, heads + 2, self.head_dim + 3), torch.nan, dtype=self.q_dtype)
        wide[:, 1:-1, : self.head_dim] = q
        return wide[:, 1:-1, : self.head_dim]

    def _block_table(
        self, lens: list[tuple[int, int]], g: torch.Generator
    ) -> tuple[torch.Tensor, list[tuple[int, int]], int]:
        """The table with a garbage tail, the (page, row) of all slots, and the number of pages."""
        blocks = [-(-seq_len // self.page) for _, seq_len in lens]
        pages = sum(blocks) + SPARE_PAGES
        shuffled = iter(torch.randperm(pages, generator=g).tolist())
        width = max(blocks, default=0) + 2
        table = torch.tensor(GARBAGE)[torch.randint(len(GARBAGE), (len(lens), width + 3), generator=g)].int()
        slots = []
        for b, (_, seq_len) in enumerate(lens):
            for block in range(blocks[b]):
                table[b, block] = page = next(shuffled)
                slots += [(page, row) for row in range(min(self.page, seq_len - block * self.page))]
        table = table[:, :width]
        return (table if self.layout == "padded" else table.contiguous()), slots, pages

    def _caches(self, pages: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values in the layout of the case, full of poison."""
        kv_heads, page, d = self.heads[0], self.page, self.head_dim
        dv = self.v_head_dim or d
        dtype = CACHES[self.cache][0]

        def poisoned(*shape: int) -> torch.Tensor:
            if dtype == torch.int8:
                return torch.full(shape, 127, dtype=dtype)
            return torch.full(shape, torch.nan).to(dtype)

        if self.layout == "hnd":
            return (
                poisoned(pages, kv_heads, page, d).transpose(1, 2),
                poisoned(pages, kv_heads, page, dv).transpose(1, 2),
            )
        if self.layout == "interleaved":
            both = poisoned(pages, 2, page, kv_heads, max(d, dv))
            return both[:, 0, :, :, :d], both[:, 1, :, :, :dv]
        if self.layout == "padded":
            k = poisoned(pages, page + 1, kv_heads + 1, d + 5)[:, 1:, :-1, 3 : d + 3]
            v = poisoned(pages + 1, page, kv_heads + 2, dv + 1)[1:, :, 2:, :dv]
            return k, v
        return poisoned(pages, page, kv_heads, d), poisoned(pages, page, kv_heads, dv)

    def _scale(
        self, kind: str, pages: int, slots: list[tuple[int, int]], g: torch.Generator
    ) -> torch.Tensor | None:
        """Scales that bring elements to about 1."""
        usual = 0.015 if CACHES[self.cache][0] == torch.int8 else 1.0
        if not kind:
            return None
        if kind == "tensor":
            one = torch.tensor([usual * 1.1])
            return one if self.page % 2 else one[0]
        shape = (self.page, self.heads[0])
        scale = torch.full((pages, *shape), torch.nan)
        if self.layout in ("hnd", "padded"):
            scale = torch.full((pages, shape[1], shape[0] + 1), torch.nan)[:, :, :-1].transpose(1, 2)
        fill_slots(scale, slots, lambda *shape: usual * (0.5 + torch.rand(*shape, generator=g)))
        return scale

    def _tree(
        self, lens: list[tuple[int, int]], g: torch.Generator
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """mask, len and depth, with garbage where no token is a node; the first request has no tree if there
        are more than two."""
        if not self.tree:
            return None, None, None
        nodes = [min(q_len, seq_len) for q_len, seq_len in lens]
        nodes = [max(0, n - (b % 2 if n > 2 else 0)) for b, n in enumerate(nodes)]
        if len(nodes) > 2:
            nodes[0] = 0
        words = -(-max(nodes) // 32) + (self.page > 7)
        tokens = sum(q_len for q_len, _ in lens)
        mask = torch.randint(-(2**31), 2**31, (tokens, words + 1), generator=g).int()[:, :words]
        depth = torch.randint(-(2**31), 2**31, (tokens,), generator=g).int()
        end = 0
        for (q_len, _), n in zip(lens, nodes, strict=True):
            end += q_len
            seen, depths = TREES[self.tree](n, g)
            write_tree(mask, end - n, seen)
            depth[end - n : end] = depths
        given = depth if self.tree in DEPTH_IS_GIVEN else None
        return mask, torch.tensor(nodes).int(), given


def fill_slots(
    t: torch.Tensor, slots: list[tuple[int, int]], values: Callable[..., torch.Tensor]
) -> torch.Tensor:
    """Writes values into the rows of t [pages, page, ...] that are slots of a request."""
    if slots:
        pages, rows = zip(*slots, strict=True)
        raw = t.view(torch.uint8) if t.dtype == F8 else t  # torch has no index_put of float8
        new = values(len(slots), *t.shape[2:])
        raw[list(pages), list(rows)] = new.view(torch.uint8) if t.dtype == F8 else new
    return t


def random_elements(dtype: torch.dtype, g: torch.Generator, *shape: int) -> torch.Tensor:
    if dtype == torch.int8:
        return torch.randint(-128, 128, shape, generator=g).to(dtype)
    return torch.randn(*shape, generator=g).to(dtype)


def write_tree(mask: torch.Tensor, first: int, seen: torch.Tensor) -> None:
    """Sets the bits of the nodes that the tokens from `first` on see [n, n]; other bits keep their values."""
    for i, row in enumerate(seen.tolist()):
        for n, is_seen in enumerate(row):
            word = int(mask[first + i, n // 32]) & 0xFFFFFFFF
            bit = 1 << n % 32
            word = word | bit if is_seen else word & ~bit
            mask[first + i, n // 32] = word - 2**32 if word >= 2**31 else word


Tree = tuple[torch.Tensor, torch.Tensor]  # which nodes each node sees, and depths


def chain(nodes: int, g: torch.Generator | None = None) -> Tree:
    return torch.ones(nodes, nodes).tril().bool(), torch.arange(nodes).int()


def random_tree(nodes: int, g: torch.Generator) -> Tree:
    """Each node follows an earlier one or the prefix, and sees its ancestors and itself."""
    seen, depth = torch.eye(nodes).bool(), torch.zeros(nodes).int()
    for i in range(1, nodes):
        parent = int(torch.randint(max(-1, i - 4), i, (1,), generator=g))
        if parent >= 0:
            seen[i] |= seen[parent]
            depth[i] = depth[parent] + 1
    return seen, depth


def random_bits(nodes: int, g: torch.Generator) -> Tree:
    """No tree at all: nodes see later nodes, not always themselves, and depths repeat. The first node sees no
    node."""
    seen = torch.rand(nodes, nodes, generator=g) < 0.5
    seen[:1] = False
    return seen, torch.randint(0, 6, (nodes,), generator=g).int()


TREES: dict[str, Callable[[int, torch.Generator], Tree]] = {
    "chain": chain,
    "random": random_tree,
    "wide": random_tree,
    "bits": random_bits,
}
DEPTH_IS_GIVEN = ("chain", "bits")
