"""Plans of products on a CPU: every output in exactly one task, scratch that fits, no size overflows."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.probe.strategies import groups
from tests.support.backends import NO_PROBE, probe

if probe() is None:
    pytest.skip(NO_PROBE, allow_module_level=True)
cpu, Problem = probe().cpu, probe().Problem

OPS = probe().ops
ISAS = ("generic", "avx2", "avx512_vnni", "avx512_bf16", "amx_int8")
L2 = 2**20
# Sizes that no other test plans for, so that the first plan for one is not known.
NEW = itertools.count(1_000_003)


@dataclass(frozen=True)
class Call:
    """The arguments of the planner."""

    op: str
    m: int
    n: int
    k: int
    group: int
    isa: str = "generic"
    l2_bytes: int = L2
    threads: int = 2
    is_bf16: bool = False

    @property
    def problem(self) -> Any:
        return Problem(self.m, self.n, self.k, self.group, self.is_bf16)

    def plan(self, planner: Any = cpu.plan) -> Any:
        return planner(self.op, self.problem, self.isa, self.l2_bytes, self.threads)


def calls(sizes: st.SearchStrategy[tuple[int, int, int]]) -> st.SearchStrategy[Call]:
    def of(op: str) -> st.SearchStrategy[Call]:
        return st.builds(
            lambda size, group, *others: Call(op, *size, group, *others),
            sizes,
            groups(op),
            st.sampled_from(ISAS),
            st.integers(12, 24).map(lambda power: 2**power),
            st.integers(1, 64),
            st.booleans(),
        )

    return st.sampled_from(OPS).flatmap(of)


SMALL = st.tuples(st.integers(1, 300), st.integers(1, 400), st.integers(0, 70000))
ANY = (
    st.integers(-(2**63), 2**63 - 1)
    | st.integers(0, 63).map(lambda power: 2**power - 1)
    | st.integers(0, 100)
)


@given(call=calls(SMALL))
def test_every_output_is_in_exactly_one_task(call: Call) -> None:
    plan, owners = call.plan(), np.zeros((call.m, call.n), np.int64)
    assert 1 <= plan.workers <= min(plan.tasks, call.threads)
    for task in range(plan.tasks):
        m_begin, m_end, n_begin, n_end = plan.block(task, call.problem)
        assert n_begin % 16 == 0 and m_begin < m_end and n_begin < n_end
        owners[m_begin:m_end, n_begin:n_end] += 1
    assert (owners == 1).all()


@given(call=calls(SMALL))
def test_blocks_are_whole_tiles_and_panels_fit_caches(call: Call) -> None:
    plan = call.plan()
    kernel = plan.kernel
    panel_tiles = plan.block_m // kernel.tile_m
    assert plan.block_m % kernel.tile_m == plan.block_n % kernel.tile_n == 0 < panel_tiles
    panel_bytes = kernel.panel_bytes(call.problem)
    assert plan.scratch_bytes == panel_tiles * panel_bytes + kernel.scratch_bytes
    assert panel_bytes >= kernel.tile_m * call.k
    # Panels that expand weights may leave L2, unless a fast microkernel reads them.
    may_leave_l2 = kernel.expand_rows > 0 and kernel.macs_per_cycle <= 2 * kernel.tile_n
    assert panel_tiles == 1 or plan.scratch_bytes <= (
        2 * call.l2_bytes if may_leave_l2 else call.l2_bytes // 2
    )


def test_scratch_of_all_panels_counts_once() -> None:
    call = Call("matmul_sparse24_int4_int8", 4096, 64, 8192, 128, "avx512_vnni", threads=1)
    plan = call.plan()
    tiles = (L2 // 2 - plan.kernel.scratch_bytes) // plan.kernel.panel_bytes(call.problem)
    assert 1 < tiles == plan.block_m // plan.kernel.tile_m


@given(call=calls(st.tuples(ANY, ANY, ANY)))
@example(Call("gemm_int8", 2**40, 1, 1, 0, "amx_int8", L2, 64))
@example(Call("gemm_int8", 1, 2**40, 1000, 0, "amx_int8", L2, 64))
@example(Call("gemm_int8", 2**40, 2**20, 0, 0, "avx2", L2, 64))
@example(Call("gemm_int8", 2**31 + 1, 2**29, 64, 0, "amx_int8", L2, 64))
@example(Call("gemm_int8", 0, 2**63 - 1, 64, 0))
@example(Call("gemm_int8", 2**63 - 1, 1, 1, 0))
@example(Call("gemm_int8", 1, 1, -1, 0))
def test_a_problem_is_refused_or_planned_without_overflow(call: Call) -> None:
    try:
        probe().check(call.op, call.problem)
    except ValueError as error:
        assert str(error).startswith(f"{call.op}: ")
        assert min(call.m, call.n, call.k) < 0 or is_cut_in_a_group(call) or needs_too_much(call)
        return
    assert min(call.m, call.n, call.k) >= 0
    assert not is_cut_in_a_group(call) and not needs_too_much(call)
    if call.m == 0 or call.n == 0:
        return
    plan = call.plan()
    assert plan.block_m > 0 and plan.block_n > 0 and plan.scratch_bytes >= 0
    for grid, block, size in ((plan.grid_m, plan.block_m, call.m), (plan.grid_n, plan.block_n, call.n)):
        assert (grid - 1) * block < size <= grid * block
    assert plan.block(plan.tasks - 1, call.problem)[1::2] == (call.m, call.n)


def is_cut_in_a_group(call: Call) -> bool:
    return "sparse24" in call.op and call.k % 4 != 0


def needs_too_much(call: Call) -> bool:
    """More than the largest k of the op, or a matrix of 2^63 bytes."""
    m, n, k = call.m, call.n, call.k
    largest = 2**24 - 1 if call.op.endswith("_int8") else 2**48
    largest = 2**19 if call.op.endswith("_int4_int8") else largest
    packed = (n + 15) // 16 * ((k + 63) // 64) * 1024
    return k > largest or max(m * max(n, 1) * 4, m * max(k, 1) * 4, packed) >= 2**63


@pytest.mark.parametrize("op", OPS)
def test_kernels_ascend_and_are_named_after_their_isa(op: str) -> None:
    kernels = cpu.kernels(op)
    assert [kernel.isa for kernel in kernels] == [isa for isa in ISAS if isa in {k.isa for k in kernels}]
    assert [kernel.name for kernel in kernels] == [f"{op}_{kernel.isa}" for kernel in kernels]
    generic = kernels[0]  # computes every problem: int4 groups are multiples of 16
    assert generic.isa == "generic" and generic.min_m == 0 and 16 % generic.group_step == 0


@given(call=calls(SMALL))
@example(Call("gemm_int4_int8", 64, 64, 96, 48, "amx_int8"))  # two groups
def test_the_newest_kernel_that_may_is_chosen(call: Call) -> None:
    """A kernel may if its instruction set is in use, and it takes such rows, groups and floats."""
    usable = [
        kernel
        for kernel in cpu.kernels(call.op)
        if ISAS.index(kernel.isa) <= ISAS.index(call.isa)
        and call.m >= kernel.min_m
        and (call.is_bf16 or not kernel.needs_bf16)
        and (call.group == 0 or call.k <= call.group or call.group % kernel.group_step == 0)
    ]
    assert call.plan().kernel.name == usable[-1].name


@pytest.mark.parametrize(
    ("op", "isa", "m", "group", "kernel"),
    [
        ("gemm_int8", "avx2", 500, 0, "avx2"),
        ("gemm_int8", "avx512_vnni", 1, 0, "avx512_vnni"),
        ("gemm_int8", "amx_int8", 8, 0, "avx512_vnni"),
        ("gemm_int8", "amx_int8", 9, 0, "amx_int8"),
        ("gemm_int4_int8", "amx_int8", 9, 128, "amx_int8"),
        ("gemm_int4_int8", "amx_int8", 9, 48, "avx512_vnni"),
        ("gemm_int4", "amx_int8", 500, 128, "avx512_vnni"),
    ],
)
def test_the_kernel_fits_the_isa_and_m(op: str, isa: str, m: int, group: int, kernel: str) -> None:
    cpu_kernels = {k.isa for k in cpu.kernels(op)}
    if isa not in cpu_kernels:
        pytest.skip("another architecture than x86-64") if cpu_kernels == {"generic"} else None
    assert Call(op, m, 4096, 4096, group, isa).plan().kernel.name == f"{op}_{kernel}"


@pytest.mark.parametrize("m", [1, 500])
def test_floats_and_isa_choose_the_arithmetic_of_gemm_int4(m: int) -> None:
    for isa, is_bf16 in itertools.product(ISAS, (False, True)):
        chosen = Call("gemm_int4", m, 4096, 4096, 128, isa, is_bf16=is_bf16).plan().kernel
        assert chosen.needs_bf16 == (is_bf16 and isa in ("avx512_bf16", "amx_int8")), (isa, is_bf16)


def fields(plan: Any) -> list[Any]:
    shape = (plan.workers, plan.grid_m, plan.grid_n, plan.block_m, plan.block_n)
    return [plan.kernel.name, *shape, plan.scratch_bytes]


CHANGES = {
    "m": {"m": 700},
    "k": {"k": 4096},
    "isa": {"isa": "avx2"},
    "l2_bytes": {"l2_bytes": 4096},
    "threads": {"threads": 64},
    "is_bf16": {"is_bf16": True},
}


@pytest.mark.parametrize("what", ["op", "n", "group", *CHANGES])
@pytest.mark.parametrize("op", OPS)
def test_known_plans_are_those_that_would_be_made(op: str, what: str) -> None:
    """All that a plan depends on is in the key under which a thread remembers the plan."""

    def known(call: Call) -> int:
        """Plans made by asking for one, which is checked."""
        before = probe().plans_made()
        assert fields(call.plan(cpu.known_plan)) == fields(call.plan())
        return int(probe().plans_made() - before)

    base = Call(op, 3, next(NEW), 700, 128)
    others = {
        "op": {"op": OPS[OPS.index(op) - 1]},
        "n": {"n": next(NEW)},
        "group": {"group": 0 if op == OPS[0] else 64},
    }
    changed = replace(base, **{**CHANGES, **others}[what])
    assert [known(call) for call in (base, changed, base, changed)] == [1, 1, 0, 0]
