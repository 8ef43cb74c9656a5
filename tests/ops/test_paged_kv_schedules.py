"""The ops on paged caches on CUDA under many schedules of the emulator, and their limits."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.reference import paged_kv as reference
from tests.support.backends import EmulatedKernel, emulator_parameters
from tests.support.cases import dtype_name, generator
from tests.support.compare import assert_equal
from tests.support.kv_cases import CACHE_DTYPES, angles, caches, filled, rows, run, scales_of
from tests.support.on_emulator import sites_without_conflicts

EMULATED = pytest.mark.parametrize("emulated", emulator_parameters("paged_kv"))
SEEDS = range(6)


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def rotated(seed: int, emulated: EmulatedKernel, dtype: torch.dtype) -> list[Tensor]:
    """Append with rope of more rows than a block has lanes for."""
    g = generator(f"schedules {seed}")
    scales = scales_of(dtype)[-1]
    case, q = caches("padded", 6, 4, 3, (48, 24), dtype, scales), rows(20, 17, 48, torch.float16, "q")
    k, v = rows(20, 3, 48, torch.bfloat16), rows(20, 3, 24, torch.float32)
    slots, positions = torch.randperm(24, generator=g)[:20], torch.randint(0, 9, (20,), generator=g)
    rope, interleaved = angles(9, 22, torch.float32), bool(seed % 2)
    want, want_q = case.clone(), q.clone()
    reference.append_paged_kv(
        k, v, want.k, want.v, slots.tolist(), want.k_scale, want.v_scale, rope, positions.tolist(),
        interleaved, want_q,
    )  # fmt: skip
    run(
        emulated, "append_paged_kv", k=k, v=v, k_cache=case.k, v_cache=case.v, slot_mapping=slots,
        **case.scales, cos=rope[0], sin=rope[1], positions=positions, interleaved=interleaved, q=q,
    )  # fmt: skip
    assert_equal(q, want_q)
    for got, right in zip(case.tensors, want.tensors, strict=True):
        assert_equal(got.float().contiguous(), right.float())
    return case.tensors


@EMULATED
@pytest.mark.parametrize("dtype", CACHE_DTYPES, ids=dtype_name)
def test_append_under_every_schedule(dtype: torch.dtype, emulated: EmulatedKernel) -> None:
    for seed in SEEDS:
        rotated(seed, dataclasses.replace(emulated, seed=seed), dtype)


@EMULATED
def test_blocks_that_share_the_rows_of_a_token(emulated: EmulatedKernel) -> None:
    """Wide rows of many heads: a block takes several passes, and several blocks share a token."""
    for sms in (1, 4):
        case = caches("nhd", 6, 4, 17, (256, 8), torch.bfloat16)
        k, v = rows(20, 17, 256, torch.bfloat16), rows(20, 17, 8, torch.float32)
        want, slots = case.clone(), torch.randperm(24, generator=generator("share"))[:20]
        (cos, sin), positions = angles(9, 100, torch.bfloat16), slots % 9
        reference.append_paged_kv(
            k, v, want.k, want.v, slots.tolist(), angles=(cos, sin), positions=positions.tolist()
        )
        on = emulated.on_sms(sms)
        run(
            on, "append_paged_kv", k=k, v=v, k_cache=case.k, v_cache=case.v, slot_mapping=slots, cos=cos,
            sin=sin, positions=positions,
        )  # fmt: skip
        assert_equal(case.k, want.k)
        assert_equal(case.v, want.v)
        table, places = torch.arange(6).int()[None], list(reference.slots([list(range(6))], [20], 4))
        got = run(
            on, "gather_paged_kv", k_cache=case.k, v_cache=case.v, block_table=table,
            cu_seqlens_k=int32(0, 20), tokens=20, out_dtype=torch.float32,
        )  # fmt: skip
        for rows_, right in zip(got, reference.gather_paged_kv(want.k, want.v, places), strict=True):
            assert_equal(rows_, right)


@EMULATED
def test_compact_under_every_schedule(emulated: EmulatedKernel) -> None:
    """Cycles, copies of one row and wide rows that several blocks share."""
    g = generator("compact schedules")
    for seed in SEEDS:
        for dtype, dims, nodes in ((torch.float32, (256, 8), 200), (torch.int8, (24, 8), 40)):
            path = torch.randperm(nodes, generator=g)[: nodes - 3].int()
            path[-4:] = path[0]
            case = filled(caches("hnd", 14, 16, 1, dims, dtype, scales_of(dtype)[-1]), "cycle")
            want, table = case.clone(), torch.randperm(14, generator=g).int()[None]
            reference.compact_kv(want.tensors, table.tolist(), [nodes + 5], [nodes], [path.tolist()])
            run(
                dataclasses.replace(emulated, seed=seed), "compact_kv", k_cache=case.k, v_cache=case.v,
                block_table=table, seq_lens=int32(nodes + 5), tree_len=int32(nodes), accepted=path[None],
                **case.scales,
            )  # fmt: skip
            for got, right in zip(case.tensors, want.tensors, strict=True):
                assert_equal(got.float().contiguous(), right.float(), f"seed {seed}")


@EMULATED
def test_rows_in_shared_memory_have_no_bank_conflicts(emulated: EmulatedKernel) -> None:
    """Where a block has one token with few pairs; other angles have conflicts where they are stored."""
    k = rows(6, 16, 48, torch.bfloat16)
    cos, sin = angles(6, 10, torch.float32)

    def append(ops: Any) -> None:
        case, places = caches("nhd", 2, 4, 16, (48, 48), torch.int8, "token"), torch.arange(6)
        ops.append_paged_kv(k, k, case.k, case.v, places, **case.scales, cos=cos, sin=sin, positions=places)

    assert len(sites_without_conflicts(emulated, append)) >= 4


@EMULATED
def test_more_accepted_nodes_than_shared_memory_holds(emulated: EmulatedKernel) -> None:
    case = caches("nhd", 1, 4, 1, (8, 8), torch.float32)

    def compact(most: int) -> None:
        run(
            emulated, "compact_kv", k_cache=case.k, v_cache=case.v, block_table=int32(0)[None],
            seq_lens=int32(4), tree_len=int32(0), accepted=torch.full((1, most), -1, dtype=torch.int32),
        )  # fmt: skip

    compact(3000)
    with pytest.raises(ValueError, match="max_accepted = 3001 columns; on CUDA at most 3000"):
        compact(3001)
