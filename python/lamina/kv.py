"""A paged KV cache for programs without an engine: pages, sequences that share them, and their tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lamina import ops

QUANTIZED = (torch.int8, torch.float8_e4m3fn)
LAYOUTS = ("NHD", "HND")


def advise_huge_pages(memory: Tensor) -> None:
    """Asks Linux for huge pages for a CPU tensor: attention then misses fewer address translations.

    memory  just allocated, as by torch.empty, and not written yet; at least some MiB

    Has no effect on other systems, or where transparent huge pages are off. Raises ValueError for a tensor on
    another device.
    """
    if memory.device.type != "cpu":
        raise ValueError(f"lamina.kv.advise_huge_pages: memory is on {memory.device}; it must be on the CPU")
    storage = memory.untyped_storage()
    torch.ops.lamina.advise_huge_pages(storage.data_ptr(), storage.nbytes())


class OutOfPages(RuntimeError):
    """Too few pages are free. The cache is as it was before the call.

    missing  how many more free pages the call needs
    """

    def __init__(self, needed: int, free: int) -> None:
        self.missing = needed - free
        super().__init__(
            f"lamina.kv: the tokens need {needed} pages, and {free} are free: {self.missing} are missing"
        )


class Batch(NamedTuple):
    """The tables of a batch, by the names that paged_attention gives them.

    block_table   [requests, max_blocks]  int32, -1 past the pages of a sequence
    seq_lens      [requests]  int32, with the new tokens
    cu_seqlens_q  [requests + 1]  int32
    max_seqlen_q  the most new tokens of a sequence
    """

    block_table: Tensor
    seq_lens: Tensor
    cu_seqlens_q: Tensor
    max_seqlen_q: int


class PagedCache:
    """Keys and values of many layers in pages, and the sequences that the pages hold.

    layers       number of layers; every layer has the same pages
    pages        number of pages
    page         slots of a page
    kv_heads     KV heads of a layer
    head_dim     elements of a key: a multiple of 8 from 8 to 256
    v_head_dim   elements of a value; None means head_dim
    dtype        f32 | f16 | bf16 | float8_e4m3fn | int8
    layout       "NHD": a page holds [page, kv_heads, head_dim]. "HND": [kv_heads, page, head_dim]
    k_scale      f32 with 1 element, for int8 and float8_e4m3fn: the scale of all keys. None: a scale for each
                 token and head, which write() computes
    v_scale      likewise for the values
    device       where the cache lies. On CUDA accept() waits for the device, because it reads `accepted`

    k, v and, if quantised, k_scale and v_scale are lists with a tensor for each layer, as append_paged_kv
    takes them. On a CPU, k and v ask for huge pages. A sequence is an int. Sequences made by fork() share
    pages; a page is copied when one of them writes to it.
    """

    def __init__(
        self,
        layers: int,
        pages: int,
        page: int,
        kv_heads: int,
        head_dim: int,
        *,
        v_head_dim: int | None = None,
        dtype: torch.dtype = torch.bfloat16,
        layout: str = "NHD",
        k_scale: Tensor | None = None,
        v_scale: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        for name, size in {"layers": layers, "pages": pages, "page": page, "kv_heads": kv_heads}.items():
            if size < 1:
                raise ValueError(f"lamina.kv.PagedCache: {name} = {size} must be at least 1")
        if layout not in LAYOUTS:
            raise ValueError(f"lamina.kv.PagedCache: layout {layout!r} must be one of {LAYOUTS}")
        if dtype not in QUANTIZED and not (k_scale is None and v_scale is None):
            raise ValueError(f"lamina.kv.PagedCache: scales were given; a cache of {dtype} has none")
        self.pages, self.page, self.device = pages, page, torch.device(device)

        def slots(*row: int, of: torch.dtype) -> Tensor:
            if layout == "NHD":
                return torch.empty(pages, page, kv_heads, *row, dtype=of, device=device)
            return torch.empty(pages, kv_heads, page, *row, dtype=of, device=device).transpose(1, 2)

        def scales(given: Tensor | None) -> list[Tensor] | None:
            if dtype not in QUANTIZED:
                return None
            return [slots(of=torch.float32) if given is None else given for _ in range(layers)]

        self.k = [slots(head_dim, of=dtype) for _ in range(layers)]
        self.v = [slots(v_head_dim or head_dim, of=dtype) for _ in range(layers)]
        if self.device.type == "cpu":
            for cache in self.k + self.v:
                advise_huge_pages(cache)
        self.k_scale, self.v_scale = scales(k_scale), scales(v_scale)
        self._free = list(range(pages))[::-1]
        self._shared: Counter[int] = Counter()  # how many sequences hold a page
        self._blocks: dict[int, list[int]] = {}
        self._lengths: dict[int, int] = {}
        self._next = 0

    @property
    def free_pages(self) -> int:
        """The number of pages that no sequence holds."""
        return len(self._free)

    @property
    def sequences(self) -> list[int]:
        """All sequences, the oldest first."""
        return list(self._blocks)

    @property
    def lists(self) -> tuple[list[Tensor], list[Tensor], list[Tensor] | None, list[Tensor] | None]:
        """k, v, k_scale and v_scale."""
        return self.k, self.v, self.k_scale, self.v_scale

    def length(self, seq: int) -> int:
        """The number of tokens of a sequence."""
        self._require([seq])
        return self._lengths[seq]

    def new(self) -> int:
        """A new sequence without tokens."""
        seq, self._next = self._next, self._next + 1
        self._blocks[seq], self._lengths[seq] = [], 0
        return seq

    def fork(self, seq: int) -> int:
        """A new sequence with the tokens of `seq`, in the same pages."""
        self._require([seq])
        child = self.new()
        self._blocks[child], self._lengths[child] = list(self._blocks[seq]), self._lengths[seq]
        self._shared.update(self._blocks[child])
        return child

    def free(self, seq: int) -> None:
        """Ends a sequence. Pages that no other sequence holds become free."""
        self.truncate(seq, 0)
        del self._blocks[seq], self._lengths[seq]

    def truncate(self, seq: int, length: int) -> None:
        """Drops the tokens from `length` on, such as rejected draft tokens."""
        self._require([seq])
        if not 0 <= length <= self._lengths[seq]:
            raise ValueError(
                f"lamina.kv.PagedCache: length = {length} must be at least 0 and at most the length of "
                f"sequence {seq}, {self._lengths[seq]}"
            )
        kept = -(-length // self.page)
        for block in self._blocks[seq][kept:]:
            self._release(block)
        del self._blocks[seq][kept:]
        self._lengths[seq] = length

    def append(self, seqs: Sequence[int], n: int | Sequence[int]) -> Tensor:
        """Makes room for n new tokens of each sequence and returns their slot_mapping, int64 [tokens].

        n is one number or one for each sequence. Raises OutOfPages, and then nothing has changed. A shared
        page to which tokens are added is copied in all layers.
        """
        counts = self._counts(seqs, n)
        self._require(seqs)
        # A last page with room for new tokens.
        copied = self._shared_pages(
            (s, len(self._blocks[s]) - 1)
            for s, c in zip(seqs, counts, strict=True)
            if c > 0 and self._lengths[s] % self.page > 0
        )
        grown = sum(
            -(-(self._lengths[s] + c) // self.page) - len(self._blocks[s])
            for s, c in zip(seqs, counts, strict=True)
        )
        if grown + len(copied) > len(self._free):
            raise OutOfPages(grown + len(copied), len(self._free))
        self._copy(copied)
        slots: list[int] = []
        for seq, count in zip(seqs, counts, strict=True):
            begin = self._lengths[seq]
            self._lengths[seq] += count
            blocks = self._blocks[seq]
            while len(blocks) * self.page < self._lengths[seq]:
                blocks.append(self._take())
            slots += [blocks[s // self.page] * self.page + s % self.page for s in range(begin, begin + count)]
        return torch.tensor(slots, dtype=torch.int64, device=self.device)

    def batch(self, seqs: Sequence[int], n: int | Sequence[int] = 1) -> Batch:
        """The tables for attention of the last n tokens of each sequence."""
        counts = self._counts(seqs, n)
        self._require_tokens(seqs, counts)
        width = max((len(self._blocks[seq]) for seq in seqs), default=0)
        table = [self._blocks[seq] + [-1] * (width - len(self._blocks[seq])) for seq in seqs]
        offsets = [sum(counts[:i]) for i in range(len(counts) + 1)]
        return Batch(
            self._int32(table).reshape(len(table), width),
            self._int32([self._lengths[seq] for seq in seqs]),
            self._int32(offsets),
            max(counts, default=0),
        )

    def write(self, layer: int, k: Tensor, v: Tensor, slot_mapping: Tensor, **options: Any) -> None:
        """append_paged_kv to the pages of one layer; its options are those for rope."""
        ops.append_paged_kv(
            k, v, self.k[layer], self.v[layer], slot_mapping, **self._scales(layer), **options
        )

    def attend(self, layer: int, q: Tensor, batch: Batch, **options: Any) -> Any:
        """paged_attention of q [tokens, heads, head_dim] on one layer; its options are those of the op."""
        return ops.paged_attention(
            q, self.k[layer], self.v[layer], batch.block_table, batch.seq_lens, batch.cu_seqlens_q,
            max_seqlen_q=batch.max_seqlen_q, **self._scales(layer), **options,
        )  # fmt: skip

    def gather(self, layer: int, batch: Batch, out_dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """All keys and values of one layer for a batch, by gather_paged_kv: [tokens, kv_heads, head_dim]."""
        offsets = torch.nn.functional.pad(batch.seq_lens.cumsum(0, dtype=torch.int32), (1, 0))
        return ops.gather_paged_kv(
            self.k[layer], self.v[layer], batch.block_table, offsets, int(offsets[-1]), out_dtype=out_dtype,
            **self._scales(layer),
        )  # fmt: skip

    def accept(self, seqs: Sequence[int], tree_len: int | Sequence[int], accepted: Tensor) -> None:
        """Keeps the accepted nodes of draft trees, and drops the other nodes.

        Raises OutOfPages, and then nothing has changed. A shared page that holds accepted nodes is copied in
        all layers.

        tree_len  the last tokens of each sequence that are the nodes of its tree
        accepted  [sequences, max_accepted]  int32, as in compact_kv
        """
        counts = self._counts(seqs, tree_len)
        self._require_tokens(seqs, counts)
        if accepted.dim() != 2 or len(accepted) != len(counts):
            raise ValueError(
                f"lamina.kv.PagedCache: accepted must be 2-D [{len(counts)} sequences, max_accepted], got "
                f"{list(accepted.shape)}"
            )
        kept = (accepted != -1).int().cumprod(1).sum(1).tolist()
        written = []
        for seq, count, nodes in zip(seqs, counts, kept, strict=True):
            begin = self._lengths[seq] - count
            end = begin + min(nodes, count)
            written += [(seq, b) for b in range(begin // self.page, -(-end // self.page)) if nodes > 0]
        copied = self._shared_pages(written)
        if len(copied) > len(self._free):
            raise OutOfPages(len(copied), len(self._free))
        self._copy(copied)
        tables = self.batch(seqs, counts)
        trees = self._int32(counts)
        for layer, (k, v) in enumerate(zip(self.k, self.v, strict=True)):
            ops.compact_kv(k, v, tables.block_table, tables.seq_lens, trees, accepted, **self._scales(layer))
        for seq, count, nodes in zip(seqs, counts, kept, strict=True):
            self.truncate(seq, self._lengths[seq] - count + nodes)

    def _scales(self, layer: int) -> dict[str, Any]:
        if self.k_scale is None or self.v_scale is None:
            return {}
        return {"k_scale": self.k_scale[layer], "v_scale": self.v_scale[layer]}

    def _copy(self, pages: list[tuple[int, int]]) -> None:
        """Gives a sequence its own copy of a page, for each (sequence, block)."""
        mapping = []
        for seq, block in pages:
            source, target = self._blocks[seq][block], self._take()
            mapping.append((source, target))
            self._blocks[seq][block] = target
            self._release(source)
        if mapping:
            pairs = torch.tensor(mapping, dtype=torch.int64, device=self.device)
            for layer, (k, v) in enumerate(zip(self.k, self.v, strict=True)):
                ops.copy_kv_blocks(k, v, pairs, **self._scales(layer))

    def _shared_pages(self, pages: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """Those (sequence, block) whose page is shared even when all before them have their own copies."""
        copies, found = Counter[int](), list[tuple[int, int]]()
        for seq, block in pages:
            page = self._blocks[seq][block]
            if self._shared[page] - copies[page] > 1:
                copies[page] += 1
                found.append((seq, block))
        return found

    def _take(self) -> int:
        block = self._free.pop()
        self._shared[block] = 1
        return block

    def _release(self, block: int) -> None:
        self._shared[block] -= 1
        if self._shared[block] == 0:
            self._free.append(block)

    def _require(self, seqs: Iterable[int]) -> None:
        for seq in seqs:
            if seq not in self._blocks:
                raise ValueError(f"lamina.kv.PagedCache: sequence {seq} does not exist")

    def _require_tokens(self, seqs: Sequence[int], counts: Sequence[int]) -> None:
        self._require(seqs)
        for seq, count in zip(seqs, counts, strict=True):
            if count > self._lengths[seq]:
                raise ValueError(
                    f"lamina.kv.PagedCache: n = {count} is more than the length of sequence {seq}, "
                    f"{self._lengths[seq]}"
                )

    def _counts(self, seqs: Sequence[int], n: int | Sequence[int]) -> list[int]:
        if len(set(seqs)) != len(seqs):
            raise ValueError(f"lamina.kv.PagedCache: sequences must differ, got {list(seqs)}")
        counts = [n] * len(seqs) if isinstance(n, int) else list(n)
        if len(counts) != len(seqs) or any(count < 0 for count in counts):
            raise ValueError(
                f"lamina.kv.PagedCache: n must be at least 0, one number or one for each of {len(seqs)} "
                f"sequences, got {counts}"
            )
        return counts

    def _int32(self, values: list[Any]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=self.device)
