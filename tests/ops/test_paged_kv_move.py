"""copy_kv_blocks and compact_kv move rows and scales as they were before the call, in every layout."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import lamina
from tests.reference import paged_kv as reference
from tests.support.backends import Backend, cuda_backends
from tests.support.cases import dtype_name, generator
from tests.support.compare import assert_equal
from tests.support.kv_cases import CACHE_DTYPES, LAYOUTS, Caches, caches, filled, run, scales_of

CACHES = pytest.mark.parametrize(
    ("dtype", "scales"),
    [(dtype, scales) for dtype in CACHE_DTYPES for scales in scales_of(dtype)],
    ids=lambda value: dtype_name(value) if isinstance(value, torch.dtype) else value,
)
# Both ops move bytes, with one code for all instruction sets.
BACKENDS = pytest.mark.parametrize(
    "backend", [pytest.param(Backend("generic"), id="cpu"), *cuda_backends("paged_kv")]
)
LAYOUT = pytest.mark.parametrize("layout", LAYOUTS)


def as_bytes(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format).view(torch.uint8)


def assert_moved(case: Caches, want: Caches, between: list[Tensor], label: object = "") -> None:
    for got, right in zip(case.tensors, want.tensors, strict=True):
        assert_equal(as_bytes(got), as_bytes(right), label)
    for now, then in zip(case.bytes_between(), between, strict=True):
        assert torch.equal(now, then), f"{label}: memory between the rows has changed"


@BACKENDS
@CACHES
@LAYOUT
@pytest.mark.parametrize(("page", "heads"), [(1, 1), (4, 3), (1, 2), (8, 1)])
def test_copy(page: int, heads: int, layout: str, dtype: torch.dtype, scales: str, backend: Backend) -> None:
    case = filled(caches(layout, 9, page, heads, (24, 40), dtype, scales), "copy")
    for mapping in ([], [(3, 7)], [(8, 0), (2, 5), (8, 1), (2, 6)]):
        want, between = case.clone(), case.bytes_between()
        reference.copy_kv_blocks(want.tensors, mapping)
        wide = torch.tensor([(*pair, -7) for pair in mapping], dtype=torch.int64).reshape(-1, 3)
        pairs = wide[:, :2]
        run(backend, "copy_kv_blocks", k_cache=case.k, v_cache=case.v, block_mapping=pairs, **case.scales)
        assert_moved(case, want, between, mapping)


@BACKENDS
@pytest.mark.parametrize("layout", ["nhd", "padded"])
def test_copy_of_pages_of_several_blocks(layout: str, backend: Backend) -> None:
    """A block of a GPU copies 16 KiB at a time: three parts of a contiguous page, and of a page of rows."""
    case = filled(caches(layout, 3, 20, 3, (200, 72), torch.float32), "large pages")
    want, between = case.clone(), case.bytes_between()
    reference.copy_kv_blocks(want.tensors, [(2, 0)])
    mapping = torch.tensor([(2, 0)])
    run(backend, "copy_kv_blocks", k_cache=case.k, v_cache=case.v, block_mapping=mapping)
    assert_moved(case, want, between)


def run_compact(
    backend: Backend,
    case: Caches,
    table: list[list[int]],
    lengths: list[int],
    nodes: list[int],
    accepted: list[list[int]],
    label: object = "",
) -> None:
    """The lists of accepted nodes get different garbage behind their -1, and the table behind its pages."""
    want, between = case.clone(), case.bytes_between()
    reference.compact_kv(want.tensors, table, lengths, nodes, accepted)
    width, most = max(map(len, table)) + 1, max(map(len, accepted)) + 3
    blocks = torch.full((len(table), width), 2**31 - 1, dtype=torch.int32)
    kept = torch.full((len(table), most), 1000, dtype=torch.int32)
    for r, (row, path) in enumerate(zip(table, accepted, strict=True)):
        blocks[r, : len(row)] = torch.tensor(row)
        kept[r, : len(path)], kept[r, len(path)] = torch.tensor(path), -1
    run(
        backend, "compact_kv", k_cache=case.k, v_cache=case.v, block_table=blocks,
        seq_lens=torch.tensor(lengths).int(), tree_len=torch.tensor(nodes).int(),
        accepted=kept[:, : most - 1], **case.scales,
    )  # fmt: skip
    assert_moved(case, want, between, label)


@BACKENDS
@CACHES
@LAYOUT
def test_compact(layout: str, dtype: torch.dtype, scales: str, backend: Backend) -> None:
    case = filled(caches(layout, 12, 4, 2, (16, 24), dtype, scales), "compact")
    table = [[5, 0, 9], [7], [2, 11], [4, 1]]
    run_compact(backend, case, table, [11, 3, 6, 8], [6, 0, 6, 5], [[0, 2, 5], [], [], [1, 4]])


@BACKENDS
def test_compact_of_any_path(backend: Backend) -> None:
    """Paths in any order: what moves may overlap in any way, also in a cycle."""
    g = generator("paths")
    paths = [[1, 2, 3, 4], [4, 3, 2, 1, 0], [1, 0], [2, 0, 1], [3, 3, 3], [0, 1, 2], [4]]
    paths += [
        torch.randperm(9, generator=g)[: int(n)].tolist() for n in torch.randint(1, 10, (40,), generator=g)
    ]
    for dtype, page in ((torch.float16, 1), (torch.int8, 4)):
        for path in paths:
            case = filled(caches("hnd", 16, page, 2, (8, 16), dtype, scales_of(dtype)[-1]), "paths")
            count = -(-13 // page)
            table = torch.randperm(16, generator=g)[:count].tolist()
            run_compact(backend, case, [table], [13], [9], [path], f"{dtype} {path}")


@BACKENDS
def test_only_the_pages_of_the_tree_are_looked_at(backend: Backend) -> None:
    case = filled(caches("nhd", 4, 4, 1, (8, 8), torch.float32), "prefix")
    table = torch.tensor([[-1, 2**31 - 1, 3]], dtype=torch.int32)
    row = case.k[3, 2].clone()
    one = torch.tensor([3], dtype=torch.int32)
    run(
        backend, "compact_kv", k_cache=case.k, v_cache=case.v, block_table=table,
        seq_lens=torch.tensor([11]).int(), tree_len=one,
        accepted=torch.tensor([[2, -1]], dtype=torch.int32),
    )  # fmt: skip
    assert_equal(case.k[3, 0], row)


def test_a_refused_call_changes_nothing() -> None:
    case = filled(caches("nhd", 6, 4, 1, (8, 8), torch.int8, "token"), "refused")
    before = [tensor.clone() for tensor in case.tensors]
    for mapping in ([(0, 1), (2, 6)], [(0, 1), (1, 2)], [(0, 1), (2, 1)], [(0, 1), (3, 3)]):
        with pytest.raises(ValueError, match=r"block_mapping\[1, "):
            lamina.copy_kv_blocks(case.k, case.v, torch.tensor(mapping), **case.scales)
    table = torch.tensor([[0, 1], [2, 3]], dtype=torch.int32)
    lengths, trees = torch.tensor([8, 8]).int(), torch.tensor([5, 5]).int()
    accepted = torch.tensor([[1, 2, -1], [3, 5, -1]], dtype=torch.int32)
    with pytest.raises(ValueError, match=r"accepted\[1, 1\] = 5"):
        lamina.compact_kv(case.k, case.v, table, lengths, trees, accepted, **case.scales)
    for got, want in zip(case.tensors, before, strict=True):
        assert_equal(got, want)


def test_fuzz_of_indices() -> None:
    """Garbage in any of the tables is an error that names it, or the formula's result."""
    g = generator("fuzz moves")
    names = r"block_table|seq_lens|tree_len|accepted"
    moved = 0
    for _ in range(1000):
        case = filled(caches("nhd", 4, 2, 1, (8, 8), torch.float16), "fuzz")
        table = torch.randint(-1, 5, (1, 3), generator=g).int()
        length, nodes = (int(i) for i in torch.randint(-1, 8, (2,), generator=g))
        accepted = torch.randint(-1, 5, (1, 3), generator=g).int()
        accepted[accepted == 4] = -2
        path = accepted[0].tolist()
        path = path[: path.index(-1)] if -1 in path else path
        is_good = 0 <= nodes <= length <= 6 and len(path) <= nodes and all(0 <= n < nodes for n in path)
        reached = table[0, (length - nodes) // 2 : -(-length // 2)].tolist() if is_good and nodes else []
        arguments = (
            case.k,
            case.v,
            table,
            torch.tensor([length]).int(),
            torch.tensor([nodes]).int(),
            accepted,
        )
        if not is_good or any(not 0 <= block < 4 for block in reached):
            with pytest.raises(ValueError, match=names):
                lamina.compact_kv(*arguments)
            continue
        if len(set(reached)) < len(reached):
            continue  # a request that has a page twice is nobody's
        want = case.clone()
        reference.compact_kv(want.tensors, table.tolist(), [length], [nodes], [path])
        lamina.compact_kv(*arguments)
        assert_equal(as_bytes(case.k), as_bytes(want.k))
        moved += bool(path)
    assert moved > 5
