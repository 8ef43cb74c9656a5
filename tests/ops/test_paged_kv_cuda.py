"""The ops on paged caches on CUDA: indices that the host cannot check, schedules, odd strides, limits."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

import lamina
from tests.reference import paged_kv as reference
from tests.support.backends import EmulatedKernel, cuda_backends, emulator_parameters
from tests.support.cases import FLOAT_DTYPES, dtype_name, generator
from tests.support.compare import assert_equal
from tests.support.kv_cases import (
    Caches,
    caches,
    filled,
    run_with_errors,
)

CUDA = pytest.mark.parametrize("backend", cuda_backends("paged_kv"))
EMULATED = pytest.mark.parametrize("emulated", emulator_parameters("paged_kv"))
SEEDS = range(6)
FAR = 2**31 - 1


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def append(backend: Any, case: Caches, slots: list[int], **options: Any) -> None:
    """Appends rows 1, 2, ... of all heads."""
    heads, dims = case.k.shape[2], (case.k.shape[3], case.v.shape[3])
    k, v = (torch.arange(1.0, len(slots) + 1)[:, None, None].expand(-1, heads, d).contiguous() for d in dims)
    run_with_errors(
        backend, "append_paged_kv", k=k, v=v, k_cache=case.k, v_cache=case.v,
        slot_mapping=torch.tensor(slots), **case.scales, **options,
    )  # fmt: skip


@CUDA
@pytest.mark.parametrize("slot", [8, -2, FAR, -(2**31), 2**62, -(2**63)])
def test_a_bad_slot_is_skipped_and_recorded(slot: int, backend: Any) -> None:
    case = caches("nhd", 2, 4, 2, (8, 16), torch.float32)
    between = case.bytes_between()
    append(backend, case, [5, slot, 0])
    text = "append_paged_kv: slot_mapping[1] = {} must be -1, or at least 0 and below pages * page"
    assert backend.take_error() == text.format(slot)
    want = caches("nhd", 2, 4, 2, (8, 16), torch.float32)
    for tensor in (want.k, want.v):
        tensor[1, 1], tensor[0, 0] = 1, 3
    assert_equal(case.k, want.k)
    assert_equal(case.v, want.v)
    for now, then in zip(case.bytes_between(), between, strict=True):
        assert torch.equal(now, then)


@CUDA
def test_the_first_error_is_kept_until_it_is_read(backend: Any) -> None:
    case = caches("nhd", 2, 4, 1, (8, 8), torch.float32)
    append(backend, case, [0, 90, 1])
    append(backend, case, [91])
    assert "slot_mapping[1] = 90 " in backend.take_error()
    assert backend.take_error() == ""
    append(backend, case, [2])
    assert backend.take_error() == ""
    append(backend, case, [3, 4, 5, 92])
    assert "slot_mapping[3] = 92 " in backend.take_error()


@CUDA
@pytest.mark.parametrize("wide", [torch.int32, torch.int64])
def test_a_token_of_a_bad_position_is_neither_stored_nor_rotated(wide: torch.dtype, backend: Any) -> None:
    for bad in (4, -1, FAR):
        case, q = caches("nhd", 1, 4, 1, (8, 8), torch.float32), torch.ones(3, 2, 8)
        rope = {"cos": torch.zeros(4, 4), "sin": torch.ones(4, 4)}
        append(backend, case, [0, 1, -1], **rope, positions=torch.tensor([0, bad, 3], dtype=wide), q=q)
        allowed = "must be at least 0 and below the rows of cos"
        assert backend.take_error() == f"append_paged_kv: positions[1] = {bad} {allowed}"
        turned = torch.tensor([-1.0] * 4 + [1.0] * 4)
        assert_equal(q, torch.stack([turned, torch.ones(8), turned])[:, None].expand(-1, 2, -1).contiguous())
        assert case.k[0, 1:].isnan().all() and case.v[0, 1:].isnan().all()
        assert_equal(case.k[0, 0, 0], turned)


@CUDA
def test_the_position_of_a_token_that_is_not_stored_may_be_garbage(backend: Any) -> None:
    case = caches("nhd", 1, 4, 1, (8, 8), torch.float32)
    append(
        backend, case, [-1, 0], cos=torch.ones(1, 4), sin=torch.zeros(1, 4), positions=torch.tensor([99, 0])
    )
    assert backend.take_error() == ""
    assert (case.k[0, 0] == 2).all()


@CUDA
@pytest.mark.parametrize("bad", [0.0, -1.0, torch.nan, torch.inf, 1e-39])
def test_nothing_is_stored_with_a_bad_scale(bad: float, backend: Any) -> None:
    for name in ("k_scale", "v_scale"):
        case = caches("nhd", 1, 4, 1, (8, 8), torch.int8, "tensor")
        case = dataclasses.replace(case, **{name: torch.tensor(bad)})
        append(backend, case, [0, 3])
        text = backend.take_error()
        assert text.startswith(f"append_paged_kv: {name}[0] = ")
        assert text.endswith(" must be finite and at least 2^-126")
        assert (case.k == -1).all() and (case.v == -1).all()


def test_the_value_of_a_bad_scale_is_in_the_message() -> None:
    for emulated in (p.values[0] for p in emulator_parameters("paged_kv") if not p.marks):
        case = caches("nhd", 1, 4, 1, (8, 8), torch.int8, "tensor")
        append(emulated, dataclasses.replace(case, k_scale=torch.tensor([-1.5])), [0])
        assert "k_scale[0] = -1.5 " in emulated.take_error()


def gather(backend: Any, case: Caches, table: Tensor, offsets: Tensor, tokens: int) -> tuple[Tensor, ...]:
    return run_with_errors(
        backend, "gather_paged_kv", k_cache=case.k, v_cache=case.v, block_table=table, cu_seqlens_k=offsets,
        tokens=tokens, **case.scales,
    )  # fmt: skip


@CUDA
@pytest.mark.parametrize("scales", ["none", "token"])
def test_tokens_of_a_bad_page_read_as_zeros(scales: str, backend: Any) -> None:
    dtype = torch.float32 if scales == "none" else torch.int8
    case = filled(caches("nhd", 3, 4, 2, (8, 16), dtype, scales), "bad page")
    for page in (3, -1, FAR, -(2**31)):
        table = torch.stack([int32(1, page), int32(2, FAR)])
        got = gather(backend, case, table, int32(0, 6, 8), 8)
        allowed = "must be at least 0 and below the pages of the cache"
        assert backend.take_error() == f"gather_paged_kv: block_table[0, 1] = {page} {allowed}"
        want = gather(backend, case, torch.stack([int32(1, 0), int32(2, 0)]), int32(0, 6, 8), 8)
        assert backend.take_error() == ""
        for tensor, right in zip(got, want, strict=True):
            right[4:6] = 0
            assert_equal(tensor, right)


@CUDA
@pytest.mark.parametrize(
    ("offsets", "entry", "zeros"),
    [
        ((1, 3, 5), "[0] = 1", [0]),  # token 0 is of no request
        ((0, 3, 4), "[2] = 4", [4]),
        ((0, 3, 2), "[2] = 2", [3, 4]),
        ((0, 5, 3), "[2] = 3", None),
        ((-7, 0, 5), "[0] = -7", None),
        ((0, -(2**31), 5), "[", None),  # the entry itself, or the length that it gives
        ((0, FAR, 5), "[2] = 5", None),
        ((0, 0, FAR), f"[2] = {FAR}", None),
    ],
)
def test_bad_offsets_are_recorded(
    offsets: tuple[int, ...], entry: str, zeros: list[int] | None, backend: Any
) -> None:
    """Every token is a row of the cache or zeros, whatever the offsets are."""
    case = filled(caches("nhd", 3, 4, 1, (8, 8), torch.float32), "bad offsets")
    got, _ = gather(backend, case, int32(1, 0, 2, 0).reshape(2, 2), int32(*offsets), 5)
    text = backend.take_error()
    assert text.startswith(f"gather_paged_kv: cu_seqlens_k{entry}"), text
    assert " must be offsets that begin with 0, never decrease and end with the number of tokens" in text
    kept = case.k.reshape(12, 8)
    for token, row in enumerate(got[:, 0]):
        is_zero = not row.any()
        assert is_zero or (row == kept).all(1).any(), token
        assert zeros is None or is_zero == (token in zeros), token


@CUDA
def test_more_tokens_than_the_table_has_room_for(backend: Any) -> None:
    case = filled(caches("nhd", 3, 4, 1, (8, 8), torch.float32), "long")
    got, _ = gather(backend, case, int32(1, 2).reshape(2, 1), int32(0, 6, 7), 7)
    assert backend.take_error().startswith("gather_paged_kv: cu_seqlens_k[1] = 6 must be ")
    assert_equal(got[:4], case.k[1])
    assert not got[4:6].any()
    assert_equal(got[6], case.k[2, 0])


@CUDA
def test_gather_of_no_request(backend: Any) -> None:
    case = filled(caches("nhd", 3, 4, 1, (8, 8), torch.float32), "nobody")
    got, _ = gather(backend, case, torch.zeros(0, 2, dtype=torch.int32), int32(0), 3)
    assert backend.take_error().startswith("gather_paged_kv: cu_seqlens_k[0] = 0 must be ")
    assert not got.any()


@CUDA
def test_pairs_of_a_bad_page_are_not_copied(backend: Any) -> None:
    for pair, place, value in (
        ((3, 1), "[1, 0]", 3),
        ((0, -1), "[1, 1]", -1),
        ((0, 2**40), "[1, 1]", 2**40),
        ((-(2**63), 0), "[1, 0]", -(2**63)),
    ):
        case = filled(caches("hnd", 3, 4, 2, (8, 8), torch.int8, "token"), "bad pair")
        want = case.clone()
        mapping = torch.tensor([(0, 2), pair])
        run_with_errors(
            backend, "copy_kv_blocks", k_cache=case.k, v_cache=case.v, block_mapping=mapping, **case.scales
        )
        allowed = "must be at least 0 and below the pages of the cache"
        assert backend.take_error() == f"copy_kv_blocks: block_mapping{place} = {value} {allowed}"
        reference.copy_kv_blocks(want.tensors, [(0, 2)])
        for got, right in zip(case.tensors, want.tensors, strict=True):
            assert_equal(got.contiguous(), right)


SECOND = [(1, 0, 1), (1, 1, 2)]  # request 1 accepts nodes 1 and 2
# By name: the lengths of two requests with 8 slots, their nodes, the nodes that request 0 accepts, the error,
# and (request, to, node) of each row that moves.
BAD_COMPACT: dict[str, tuple[Any, ...]] = {
    "node past the tree": ((8, 8), (5, 5), (1, 5), "accepted[0, 1] = 5", [(0, 0, 1), *SECOND]),
    "node -2": ((8, 8), (5, 5), (-2, 1), "accepted[0, 0] = -2", [(0, 1, 1), *SECOND]),
    "more nodes than the tree has": ((8, 8), (1, 5), (0, 0), "accepted[0, 1] = 0", SECOND),
    "tree longer than the request": ((3, 8), (5, 5), (1, 2), "tree_len[0] = 5", SECOND),
    "negative tree": ((8, 8), (-1, 5), (1, 2), "tree_len[0] = -1", SECOND),
    "negative length": ((-8, 8), (5, 5), (1, 2), "seq_lens[0] = -8", SECOND),
    "no room in the table": ((9, 8), (5, 5), (1, 2), "seq_lens[0] = 9", SECOND),
    "longest": ((FAR, 8), (FAR, 5), (1, 2), f"seq_lens[0] = {FAR}", SECOND),
}


@CUDA
@pytest.mark.parametrize("what", BAD_COMPACT)
def test_rows_of_bad_nodes_stay(what: str, backend: Any) -> None:
    lengths, nodes, accepted, text, moves = BAD_COMPACT[what]
    case = filled(caches("nhd", 4, 4, 2, (8, 16), torch.float16), "bad nodes")
    want = case.clone()
    table = int32(0, 1, 2, 3).reshape(2, 2)
    run_with_errors(
        backend, "compact_kv", k_cache=case.k, v_cache=case.v, block_table=table, seq_lens=int32(*lengths),
        tree_len=int32(*nodes), accepted=torch.tensor([accepted, (1, 2)], dtype=torch.int32),
    )  # fmt: skip
    assert backend.take_error().startswith(f"compact_kv: {text} must be ")
    for tensor in want.tensors:
        flat, before = tensor.view(16, *tensor.shape[2:]), tensor.clone().view(16, *tensor.shape[2:])
        for request, to, node in moves:
            begin = 8 * request + lengths[request] - nodes[request]
            flat[begin + to] = before[begin + node]
    for got, right in zip(case.tensors, want.tensors, strict=True):
        assert_equal(got, right)


@CUDA
def test_rows_of_bad_pages_stay(backend: Any) -> None:
    case = filled(caches("nhd", 4, 4, 1, (8, 8), torch.float16), "bad pages")
    want = case.clone()
    for page in (4, -1, FAR):
        run_with_errors(
            backend, "compact_kv", k_cache=case.k, v_cache=case.v, block_table=int32(0, page)[None],
            seq_lens=int32(8), tree_len=int32(7), accepted=int32(1, 5, 2)[None],
        )  # fmt: skip
        allowed = "must be at least 0 and below the pages of the cache"
        assert backend.take_error() == f"compact_kv: block_table[0, 1] = {page} {allowed}"
        for tensor in want.tensors:
            tensor[0, 1] = tensor[0, 2].clone()
        for got, right in zip(case.tensors, want.tensors, strict=True):
            assert_equal(got, right)


@EMULATED
def test_garbage_in_any_table_stays_in_the_cache(emulated: EmulatedKernel) -> None:
    """Caches end where no page is mapped, so an access past the end would end the process."""
    g = generator("fuzz on cuda")
    edges = torch.tensor([-(2**31), -17, -2, -1, 0, 1, 3, 7, 8, 11, 12, 13, 2**20, FAR])

    def garbage(*shape: int) -> Tensor:
        """Numbers that differ, because a slot or a page that is written twice is a race."""
        return edges[torch.randperm(len(edges), generator=g)[: torch.Size(shape).numel()]].reshape(shape)

    errors = 0
    for _ in range(60):
        case = filled(caches("padded", 3, 4, 1, (8, 8), torch.float16), "fuzz")
        between = case.bytes_between()
        append(emulated, case, garbage(3).tolist())
        gather(emulated, case, garbage(2, 2).int(), garbage(3).int(), 7)
        run_with_errors(
            emulated, "copy_kv_blocks", k_cache=case.k, v_cache=case.v,
            block_mapping=torch.cat([garbage(1, 1), torch.tensor([[2]])], 1),
        )  # fmt: skip
        run_with_errors(
            emulated, "compact_kv", k_cache=case.k, v_cache=case.v, block_table=garbage(1, 3).int(),
            seq_lens=garbage(1).int(), tree_len=garbage(1).int(), accepted=garbage(1, 3).int(),
        )  # fmt: skip
        errors += bool(emulated.take_error())
        for now, then in zip(case.bytes_between(), between, strict=True):
            assert torch.equal(now, then)
    assert errors > 30


@pytest.mark.gpu
@pytest.mark.usefixtures("working_gpu")
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=dtype_name)
def test_replay_of_a_graph_reads_the_tables_anew(dtype: torch.dtype) -> None:
    case = filled(caches("nhd", 4, 4, 2, (16, 8), dtype), "graph")
    k_cache, v_cache = case.k.cuda(), case.v.cuda()
    k, v = torch.ones(3, 2, 16, device="cuda", dtype=dtype), torch.ones(3, 2, 8, device="cuda", dtype=dtype)
    slots, mapping = torch.tensor([0, 1, 99]).cuda(), torch.tensor([[0, 2]]).cuda()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        lamina.append_paged_kv(k, v, k_cache, v_cache, slots)
        lamina.copy_kv_blocks(k_cache, v_cache, mapping)
    slots.copy_(torch.tensor([4, 5, 6]))
    mapping.copy_(torch.tensor([[1, 3]]))
    graph.replay()
    lamina.check_errors()
    case.k[1, :3], case.v[1, :3] = 1, 1
    case.k[3], case.v[3] = case.k[1], case.v[1]
    assert_equal(k_cache.cpu(), case.k)
    assert_equal(v_cache.cpu(), case.v)
    slots[0] = -5
    graph.replay()
    with pytest.raises(RuntimeError, match=r"lamina::append_paged_kv: slot_mapping\[0\] = -5 must be"):
        lamina.check_errors()
    lamina.check_errors()
