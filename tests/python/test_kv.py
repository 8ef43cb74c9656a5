"""lamina.kv.PagedCache against a dict of lists through any sequence of calls, and with the ops."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from torch import Tensor

import lamina
from lamina.kv import OutOfPages, PagedCache, advise_huge_pages
from tests.support.cases import generator
from tests.support.compare import assert_equal

LAYERS, PAGES, PAGE = 2, 7, 3


class Model(RuleBasedStateMachine):
    """Each sequence is a list of numbers; the cache holds each as a row of equal elements."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = PagedCache(LAYERS, PAGES, PAGE, 1, 8, dtype=torch.float32, layout="HND")
        self.model: dict[int, list[float]] = {}
        self.written = 0

    def state(self) -> str:
        return str([self.cache.free_pages, *(self.cache.batch([s], 0) for s in self.model)])

    def some(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted(self.model)))

    def write(self, slots: Tensor, numbers: list[float]) -> None:
        rows = torch.tensor(numbers)[:, None, None].expand(-1, 1, 8).contiguous()
        for layer in range(LAYERS):
            self.cache.write(layer, rows + layer, -rows, slots)

    @rule()
    def new(self) -> None:
        seq = self.cache.new()
        assert seq not in self.model
        self.model[seq] = []

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def append(self, data: st.DataObject) -> None:
        seqs = data.draw(st.lists(st.sampled_from(sorted(self.model)), min_size=1, max_size=3, unique=True))
        counts = [data.draw(st.integers(0, 5)) for _ in seqs]
        before = self.state()
        try:
            slots = self.cache.append(seqs, counts)
        except OutOfPages as error:
            assert self.state() == before
            assert error.missing > 0 and f"{error.missing} are missing" in str(error)
            return
        numbers = [float(self.written + i) for i in range(sum(counts))]
        self.written += len(numbers)
        assert len(slots) == len(numbers) == len(set(slots.tolist()))
        self.write(slots, numbers)
        for seq, count in zip(seqs, counts, strict=True):
            self.model[seq] += numbers[:count]
            numbers = numbers[count:]

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        parent = self.some(data)
        free = self.cache.free_pages
        self.model[self.cache.fork(parent)] = list(self.model[parent])
        assert self.cache.free_pages == free

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        seq = self.some(data)
        length = data.draw(st.integers(0, len(self.model[seq])))
        self.cache.truncate(seq, length)
        del self.model[seq][length:]

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        seq = self.some(data)
        self.cache.free(seq)
        del self.model[seq]

    @precondition(lambda self: any(self.model.values()))
    @rule(data=st.data())
    def accept(self, data: st.DataObject) -> None:
        """Trees of one or two sequences, which may share their nodes with others."""
        candidates = sorted(s for s in self.model if self.model[s])
        seqs = data.draw(st.lists(st.sampled_from(candidates), min_size=1, max_size=2, unique=True))
        nodes = [data.draw(st.integers(0, len(self.model[seq]))) for seq in seqs]
        paths = [
            data.draw(st.lists(st.integers(0, n - 1), max_size=n, unique=True)) if n else [] for n in nodes
        ]
        accepted = torch.zeros(len(seqs), max(map(len, paths)) + 2, dtype=torch.int32)
        for row, path in zip(accepted, paths, strict=True):
            row[: len(path) + 1] = torch.tensor([*path, -1])
        before = self.state()
        try:
            self.cache.accept(seqs, nodes, accepted)
        except OutOfPages as error:
            assert self.state() == before
            assert error.missing > 0
            return
        for seq, n, path in zip(seqs, nodes, paths, strict=True):
            prefix = len(self.model[seq]) - n
            self.model[seq] = self.model[seq][:prefix] + [self.model[seq][prefix + node] for node in path]

    @invariant()
    def holds_the_same_tokens(self) -> None:
        seqs = sorted(self.model)
        assert sorted(self.cache.sequences) == seqs
        lengths = [len(self.model[seq]) for seq in seqs]
        assert [self.cache.length(seq) for seq in seqs] == lengths
        tables = self.cache.batch(seqs, lengths)
        numbers = torch.tensor([number for seq in seqs for number in self.model[seq]])
        for layer in range(LAYERS):
            k, v = lamina.gather_paged_kv(
                self.cache.k[layer], self.cache.v[layer], tables.block_table, tables.cu_seqlens_q,
                len(numbers),
            )  # fmt: skip
            assert torch.equal(k[:, 0, 0] - layer, numbers) and torch.equal(-v[:, 0, 7], numbers)

    @invariant()
    def every_page_is_free_or_held(self) -> None:
        held = set(self.cache.batch(sorted(self.model), 0).block_table.flatten().tolist()) - {-1}
        assert self.cache.free_pages == PAGES - len(held)


Model.TestCase.settings = settings(max_examples=80, stateful_step_count=30)
TestModel = Model.TestCase


def test_missing_pages_are_counted_with_those_to_copy() -> None:
    cache = PagedCache(1, 4, 4, 1, 8)
    parent = cache.new()
    cache.append([parent], 6)
    children = [cache.fork(parent), cache.fork(parent)]
    # Two of the three copy the page that they share, and one of them takes one more page.
    with pytest.raises(OutOfPages, match="need 3 pages, and 2 are free: 1 are missing") as caught:
        cache.append([parent, *children], [1, 1, 3])
    assert caught.value.missing == 1
    assert cache.length(parent) == 6 and cache.free_pages == 2
    cache.append([parent, *children], [1, 1, 1])
    assert cache.free_pages == 0
    last = cache.batch([parent, *children], 1).block_table[:, 1].tolist()
    assert len(set(last)) == 3


def test_accepted_nodes_leave_a_fork_as_it_was() -> None:
    """Two sequences share the page of a tree, and each accepts other nodes."""
    cache = PagedCache(2, 5, 4, 1, 8, dtype=torch.int8)
    parent = cache.new()
    rows = torch.arange(1.0, 7.0)[:, None, None].expand(6, 1, 8).contiguous()
    slots = cache.append([parent], 6)
    for layer in range(2):
        cache.write(layer, rows, -rows, slots)
    kept, child = cache.fork(parent), cache.fork(parent)
    with pytest.raises(OutOfPages, match="need 4 pages, and 3 are free: 1 are missing"):
        cache.accept([parent, child], 4, torch.tensor([[3, 1, 0], [2, 3, 0]], dtype=torch.int32))
    cache.truncate(child, 5)
    cache.accept([parent], 4, torch.tensor([[3, -1]], dtype=torch.int32))
    cache.accept([child], 1, torch.tensor([[-1, 0]], dtype=torch.int32))
    tables = cache.batch([parent, kept, child], [3, 6, 4])
    for layer in range(2):
        k, v = lamina.gather_paged_kv(
            cache.k[layer],
            cache.v[layer],
            tables.block_table,
            tables.cu_seqlens_q,
            13,
            **cache._scales(layer),
        )
        assert k[:, 0, 0].round().tolist() == [1, 2, 6, 1, 2, 3, 4, 5, 6, 1, 2, 3, 4]
        assert_equal(v, -k)
    assert cache.free_pages == 2


@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e4m3fn, torch.int8])
def test_scales_follow_their_pages(dtype: torch.dtype, layout: str) -> None:
    """Through a fork and a copy on write, whether scales are per token or given."""
    g = generator("scales")
    k, v = torch.randn(5, 2, 16, generator=g), torch.randn(5, 2, 8, generator=g) * 9
    one = torch.tensor([0.25])
    for scales in ({}, {"k_scale": one, "v_scale": one}) if dtype != torch.float16 else ({},):
        cache = PagedCache(3, 4, 4, 2, 16, v_head_dim=8, dtype=dtype, layout=layout, **scales)
        parent = cache.new()
        slots = cache.append([parent], 5)
        for layer in range(3):
            cache.write(layer, k * (layer + 1), v, slots)
        child = cache.fork(parent)
        slots = cache.append([child], 1)
        for layer in range(3):
            cache.write(layer, k[:1], v[:1], slots)
        tables = cache.batch([parent, child], [5, 6])
        assert tables.block_table[0, 1] != tables.block_table[1, 1]
        for layer in range(3):
            rows = lamina.gather_paged_kv(
                cache.k[layer], cache.v[layer], tables.block_table, tables.cu_seqlens_q, 11,
                **cache._scales(layer),
            )  # fmt: skip
            for got, want in zip(rows, (k * (layer + 1), v), strict=True):
                assert_equal(got[:5], got[5:10])
                assert (got[:5].float() - want).abs().max() < 0.07 * want.abs().max()


def test_attend_is_paged_attention_on_the_cache() -> None:
    g = generator("attend")
    cache = PagedCache(2, 9, 4, 2, 16, dtype=torch.float32)
    seqs, counts = [cache.new(), cache.new()], [3, 6]
    k, v, q = (torch.randn(9, h, 16, generator=g) for h in (2, 2, 4))
    slots = cache.append(seqs, counts)
    cache.write(1, k, v, slots)
    out = cache.attend(1, q, cache.batch(seqs, counts), causal=True)
    for part in (slice(0, 3), slice(3, 9)):
        want = torch.nn.functional.scaled_dot_product_attention(
            *(x[part].double().transpose(0, 1)[None] for x in (q, k, v)), is_causal=True, enable_gqa=True
        )
        assert (out[part] - want[0].transpose(0, 1)).abs().max() < 1e-5


def refused(call: Callable[[PagedCache], Any], match: str) -> Any:
    return pytest.param(call, match, id=match)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        refused(lambda c: c.append([0, 0], 1), r"sequences must differ, got \[0, 0\]"),
        refused(lambda c: c.append([0], [1, 2]), r"n must be .* each of 1 sequences, got \[1, 2\]"),
        refused(lambda c: c.append([0], -1), r"at least 0, .* got \[-1\]"),
        refused(lambda c: c.append([5], 1), "sequence 5 does not exist"),
        refused(lambda c: c.truncate(0, 3), "length = 3 must be .* sequence 0, 2"),
        refused(lambda c: c.batch([0], 3), "n = 3 is more than the length of sequence 0, 2"),
        refused(lambda c: c.accept([0], 3, torch.zeros(1, 1).int()), "n = 3 is more than the length"),
        refused(lambda c: c.accept([0], 1, torch.zeros(2, 1).int()), r"accepted must be .*, got \[2, 1\]"),
        refused(lambda c: c.free(1), "sequence 1 does not exist"),
        refused(lambda c: PagedCache(0, 1, 1, 1, 8), "layers = 0 must be at least 1"),
        refused(lambda c: PagedCache(1, 1, 1, 1, 8, layout="NDH"), "layout 'NDH' must be one of"),
        refused(lambda c: PagedCache(1, 1, 1, 1, 8, k_scale=torch.ones(1)), "a cache of torch.bfloat16"),
    ],
)
def test_refused(call: Callable[[PagedCache], Any], match: str) -> None:
    cache = PagedCache(1, 3, 4, 1, 8)
    cache.append([cache.new()], 2)
    with pytest.raises(ValueError, match=match):
        call(cache)
    assert cache.free_pages == 2 and cache.length(0) == 2


def test_huge_pages_are_asked_for() -> None:
    """The kernel lists the flag of each mapping: hg for MADV_HUGEPAGE."""
    smaps = Path("/proc/self/smaps")
    if not smaps.exists():
        pytest.skip("no /proc/self/smaps")

    def asked() -> int:
        return sum(
            "hg" in line.split() for line in smaps.read_text().splitlines() if line.startswith("VmFlags")
        )

    before = asked()
    cache = PagedCache(1, 512, 16, 8, 128)
    assert asked() > before
    with pytest.raises(ValueError, match="memory is on meta; it must be on the CPU"):
        advise_huge_pages(cache.k[0].to("meta"))
