"""Plans of products on a GPU: kernels that can run, whole k chunks, every output and step of k once."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.probe.strategies import groups
from tests.support.backends import NO_PROBE, probe

if probe() is None:
    pytest.skip(NO_PROBE, allow_module_level=True)
cuda, Problem = probe().cuda, probe().Problem

OPS = probe().ops
MOST_PARTIAL_BYTES = 64 * 2**20
LARGEST = 2**31 - 65536  # m, n and k on CUDA
ALL_SMS = 2**31 - 1
NEW = itertools.count(1_000_003)  # sizes that no other test plans for


@dataclass(frozen=True)
class Call:
    """The arguments of the planner."""

    op: str
    m: int
    n: int
    k: int
    group: int
    capability: int = 90
    sms: int = 132
    max_sms: int = ALL_SMS
    a_alignment: int = 16
    only: str = ""
    smem_per_block: int = 0  # 0: what is typical of the compute capability
    l2_bytes: int = 0

    @property
    def problem(self) -> Any:
        return Problem(self.m, self.n, self.k, self.group)

    @property
    def device(self) -> Any:
        device = cuda.Device(self.capability, self.sms)
        device.smem_per_block = self.smem_per_block or device.smem_per_block
        device.l2_bytes = self.l2_bytes or device.l2_bytes
        return device

    def plan(self, planner: Any = cuda.plan) -> Any:
        return planner(self.op, self.problem, self.device, self.max_sms, self.a_alignment, self.only)


def calls(m: int, n: int, k: int) -> st.SearchStrategy[Call]:
    """Sizes from 1 to these; k from 0."""

    def of(op: str) -> st.SearchStrategy[Call]:
        return st.builds(
            Call,
            st.just(op),
            st.integers(1, m),
            st.integers(1, n),
            st.integers(0, k),
            groups(op),
            st.sampled_from((80, 86, 89, 90, 100, 120)),
            st.integers(1, 160),
            st.integers(1, 160) | st.just(ALL_SMS),
            st.sampled_from((1, 4, 16)),
        )

    return st.sampled_from(OPS).flatmap(of)


SIZES = calls(5000, 10000, 40000)


def steps_of(call: Call, kernel: Any) -> int:
    return max(1, -(-call.k // kernel.step_k))


@given(call=SIZES)
def test_the_kernel_can_run(call: Call) -> None:
    plan = call.plan()
    kernel, sms = plan.kernel, min(call.sms, call.max_sms)
    assert kernel is not None, "some kernel fits every device and every cap"
    assert kernel.name in {k.name for k in cuda.kernels(call.op, call.problem)}
    assert kernel.runs_on(call.capability) and kernel.resident_blocks(call.device) > 0
    assert kernel.cluster <= plan.sms == sms and kernel.a_alignment <= call.a_alignment
    assert plan.is_capped == (call.max_sms < call.sms)
    assert plan.max_blocks == (sms if plan.is_capped else ALL_SMS)
    assert plan.kernel_blocks == (sms if kernel.is_persistent else plan.max_blocks)


def fewest_splits(call: Call, kernel: Any) -> int:
    """So that no split is too deep for int32 sums."""
    rule = cuda.k_rule(call.op, call.problem)
    chunk_k = rule.chunk_k or kernel.step_k
    return -(-max(1, -(-call.k // chunk_k)) // max(1, rule.max_k // chunk_k))


@given(call=SIZES | calls(LARGEST, LARGEST, LARGEST))
def test_splits_are_whole_k_chunks_and_cover_k(call: Call) -> None:
    plan = call.plan()
    kernel, rule = plan.kernel, cuda.k_rule(call.op, call.problem)
    chunk_k, all_steps = rule.chunk_k or kernel.step_k, steps_of(call, plan.kernel)
    assert (plan.splits - 1) * plan.steps < all_steps <= plan.splits * plan.steps
    assert plan.splits == 1 or plan.steps * kernel.step_k % chunk_k == 0
    assert plan.steps * kernel.step_k <= max(rule.max_k, chunk_k)
    assert plan.splits <= max(cuda.max_splits(call.op, call.problem), fewest_splits(call, kernel))


@given(call=SIZES | calls(LARGEST, LARGEST, LARGEST))
def test_partial_sums_are_bounded(call: Call) -> None:
    plan, rule = call.plan(), cuda.k_rule(call.op, call.problem)
    chunk_k = rule.chunk_k or plan.kernel.step_k
    sums = -(-call.k // chunk_k) if rule.one_each else plan.splits
    assert plan.partials == (0 if plan.splits == 1 else sums)
    wanted = plan.partials * call.m * (-(-call.n // 8) * 8) * 4
    assert plan.partial_bytes(call.problem) == wanted
    assert wanted <= MOST_PARTIAL_BYTES or plan.splits == fewest_splits(call, plan.kernel)


@given(call=SIZES)
def test_no_forced_kernel_is_expected_to_be_faster(call: Call) -> None:
    """Kernels of another arch do not count: sums in floating point may not go there."""
    best = call.plan()
    for kernel in cuda.kernels(call.op, call.problem):
        forced = replace(call, only=kernel.name).plan()
        assert forced.kernel is None or forced.kernel.name == kernel.name
        assert forced.kernel is None or kernel.arch != best.kernel.arch or forced.cycles >= best.cycles


@given(call=calls(1200, 1200, 9000))
def test_every_output_and_every_step_is_in_exactly_one_tile(call: Call) -> None:
    """This is about persistent kernels, whose blocks take tile after tile."""
    persistent = [k for k in cuda.kernels(call.op, call.problem) if k.is_persistent]
    for kernel in persistent:
        plan = replace(call, capability=90, sms=132, max_sms=ALL_SMS, a_alignment=16, only=kernel.name).plan()
        shape, steps = (kernel.tile_m, kernel.tile_n, kernel.cluster), steps_of(call, kernel)
        units = cuda.schedule(*shape, call.m, call.n, steps, plan.splits, plan.steps)
        grid_m, grid_n = plan.grid(call.problem)
        assert len(units) * kernel.cluster == grid_m * grid_n * plan.splits
        owners = np.zeros((plan.splits, grid_m, grid_n), np.int64)
        depth = np.zeros((grid_m, grid_n), np.int64)
        for m0, n0, first, count, split in itertools.chain.from_iterable(units):
            assert m0 % kernel.tile_m == n0 % kernel.tile_n == 0 and m0 < call.m
            assert first == split * plan.steps and 0 < count <= plan.steps
            owners[split, m0 // kernel.tile_m, n0 // kernel.tile_n] += 1
            depth[m0 // kernel.tile_m, n0 // kernel.tile_n] += count
        assert (owners == 1).all() and (depth == steps).all()
        # The blocks of a cluster share tokens and k, and are neighbours along n.
        for unit in units:
            assert len({(m0, first, count, split) for m0, _, first, count, split in unit}) == 1
            assert [n0 for _, n0, *_ in unit] == [
                unit[0][1] + rank * kernel.tile_n for rank in range(kernel.cluster)
            ]


@given(capability=st.integers(1, 79), size=st.integers(LARGEST + 1, 2**62))
def test_old_devices_and_huge_sizes_are_refused(capability: int, size: int) -> None:
    with pytest.raises(ValueError, match=r"the kernels need 8\.0 or newer"):
        cuda.check("gemm_int8", Problem(1, 1, 1), cuda.Device(capability, 40))
    for sizes in ((size, 1, 1), (1, size, 1), (1, 1, size)):
        with pytest.raises(ValueError, match=f"on CUDA each may be at most {LARGEST}"):
            cuda.check("gemm_int8", Problem(*sizes), cuda.Device(90, 132))


def fields(call: Call, plan: Any) -> list[Any]:
    name = plan.kernel.name if plan.kernel else None
    split = (plan.splits, plan.steps, plan.partials, plan.partial_bytes(call.problem))
    return [name, *split, plan.sms, plan.is_capped, plan.cycles]


def known(call: Call) -> int:
    """Plans made by asking for one, which is checked."""
    before = probe().plans_made()
    assert fields(call, call.plan(cuda.known_plan)) == fields(call, call.plan())
    return int(probe().plans_made() - before)


CHANGES: dict[str, dict[str, Any]] = {
    "m": {"m": 4096},
    "k": {"k": 576},
    "capability": {"capability": 80},
    "sms": {"sms": 20},
    "max_sms": {"max_sms": 7},
    "a_alignment": {"a_alignment": 4},
    "only": {"only": "no kernel"},
    "smem_per_block": {"smem_per_block": 99 * 1024},
    "l2_bytes": {"l2_bytes": 2**20},
}


@pytest.mark.parametrize("what", ["op", "n", "group", "kernel", *CHANGES])
@pytest.mark.parametrize("op", OPS)
def test_known_plans_are_those_that_would_be_made(op: str, what: str) -> None:
    """All that a plan depends on is in the key under which a thread remembers the plan."""
    base = Call(op, 16, next(NEW), 4096, 128)
    for kernel in cuda.kernels(op, base.problem) if what == "kernel" else [None]:
        others = {
            "op": {"op": OPS[OPS.index(op) - 1]},
            "n": {"n": next(NEW)},
            "group": {"group": 0 if op == OPS[0] else 32},
            "kernel": {"only": kernel.name if kernel else ""},
        }
        base = replace(base, n=next(NEW))
        changed = replace(base, **{**CHANGES, **others}[what])
        assert [known(call) for call in (base, changed, base, changed)] == [1, 1, 0, 0]


def test_unknown_kernels_share_a_plan() -> None:
    """A name that no kernel has, whatever it is, leaves nothing to choose from."""
    nobody = Call("gemm_int8", 16, next(NEW), 4096, 0, only="nobody")
    assert nobody.plan().kernel is None
    assert [known(nobody), known(replace(nobody, only="somebody"))] == [1, 0]
