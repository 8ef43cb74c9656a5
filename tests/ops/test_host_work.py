"""Calls make plans and tensor maps once, and find them again by every input that they depend on."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from tests.support.backends import EMULATOR_SMS, emu_ops, emulator
from tests.support.cases import generator
from tests.support.compare import assert_equal
from tests.support.on_emulator import emulated_ops

N, K, GROUP = 40, 128, 64
OPS = ("gemm_int8", "gemm_int8_quantized", "gemm_int4", "gemm_int4_int8")
# Numbers of SMs of devices that no earlier test has planned for.
NEW_SMS = itertools.count(EMULATOR_SMS + 4000)
# The number of tensor maps for tensors that move from call to call: 16-bit results, and W4A8's packed
# activations.
ELSEWHERE = {"gemm_int8": 1, "gemm_int8_quantized": 0, "gemm_int4": 0, "gemm_int4_int8": 1}
KEPT: list[Any] = []  # tensors that stay, so that no other gets their address


@pytest.fixture(autouse=True)
def emulated() -> Iterator[Any]:
    with emulated_ops(90, next(NEW_SMS)) as ops:
        yield ops


class Operands:
    """Inputs of every op, and calls that give the results as a list."""

    def __init__(self, m: int = 5, seed: str = "host work") -> None:
        g = generator(seed)
        self.a = torch.randint(-100, 100, (m, K), generator=g, dtype=torch.int8)
        self.x = torch.randn(m, K, generator=g).bfloat16()
        self.w8, self.sums = torch.ops.lamina.pack_int8(
            torch.randint(-100, 100, (N, K), generator=g, dtype=torch.int8)
        )
        codes = torch.randint(0, 16, (N, K), generator=g, dtype=torch.uint8)
        self.w4 = torch.ops.lamina.pack_int4(codes, "int4_tile")
        self.group = GROUP
        self.scale = torch.rand(K // GROUP, N, generator=g).bfloat16()
        self.one = torch.full((1,), 1 / 128)
        KEPT.append(self)

    def call(self, op: str, max_sms: int | None = None) -> list[torch.Tensor]:
        ops, none, bf16 = emu_ops(), None, torch.bfloat16
        if op == "gemm_int8":
            out = ops.gemm_int8(
                self.a, self.w8, self.sums, self.one, self.one, none, none, bf16, none, none, none, max_sms
            )
        elif op == "gemm_int8_quantized":
            out = ops.gemm_int8_quantized(
                *(self.a, self.w8, self.sums, self.one, self.one),
                *(none, none, none, none, none, none, True, max_sms),
            )
        elif op == "gemm_int4":
            out = ops.gemm_int4(self.x, self.w4, self.scale, self.group, *(none,) * 7, max_sms)
        else:
            out = ops.gemm_int4_int8(
                self.x, self.w4, self.scale, self.group, *(none,) * 4, bf16, *(none,) * 4, max_sms
            )
        KEPT.append(out)
        return [out] if isinstance(out, torch.Tensor) else list(out)


def work(call: Callable[[], object]) -> dict[str, int]:
    """The plans and tensor maps that `call` made."""
    before = json.loads(emu_ops().host_work())
    call()
    after = json.loads(emu_ops().host_work())
    return {name: after[name] - before[name] for name in after}


def plans(call: Callable[[], object]) -> int:
    return work(call)["plans"]


def maps(call: Callable[[], object]) -> int:
    return work(call)["tensor_maps"]


@pytest.mark.parametrize("op", OPS)
def test_a_call_that_repeats_plans_nothing(op: str, emulated: Any) -> None:
    operands, larger = Operands(), Operands(m=7)
    sms = next(NEW_SMS)
    emulator().set_device(90, sms)
    first = operands.call(op)
    assert plans(lambda: operands.call(op)) == 0
    assert plans(lambda: larger.call(op)) == 1
    assert plans(lambda: operands.call(op, 3)) == 1
    # The emulator's devices 9.0 and 10.0 differ in nothing but their compute capability.
    for device in ((80, sms), (100, sms), (90, next(NEW_SMS))):
        emulator().set_device(*device)
        assert plans(lambda: operands.call(op)) == 1
    emulator().set_device(90, sms)
    again: list[torch.Tensor] = []
    assert plans(lambda: again.extend(operands.call(op))) == 0
    for got, want in zip(again, first, strict=True):
        assert_equal(got, want, op)


@pytest.mark.parametrize("op", OPS)
def test_a_forced_kernel_is_planned_for_and_released(op: str, emulated: Any) -> None:
    family = op.removesuffix("_quantized")
    operands = Operands()
    first = operands.call(op)
    for kernel in ("sm80_m16", "sm90a_m64"):
        emulated.set_cuda_kernel(f"{family}_{kernel}")
        assert plans(lambda: operands.call(op)) == 1
        assert plans(lambda: operands.call(op)) == 0
    emulated.set_cuda_kernel("no_such_kernel")
    for _ in range(2):  # the second time the plan is known, and it still has no kernel
        with pytest.raises(ValueError, match='name = "no_such_kernel": no CUDA kernel of this name'):
            operands.call(op)
    emulated.set_cuda_kernel("")
    for got, want in zip(operands.call(op), first, strict=True):
        assert_equal(got, want, op)


@pytest.mark.parametrize("op", OPS)
def test_tensor_maps_are_found_by_address_and_tell_nothing_of_values(op: str) -> None:
    operands = Operands()
    operands.call(op)
    assert maps(lambda: operands.call(op)) <= ELSEWHERE[op]
    KEPT.extend((operands.w8, operands.w4))
    operands.w8, operands.w4 = operands.w8.clone(), operands.w4.clone()
    assert 1 <= maps(lambda: operands.call(op)) <= 1 + ELSEWHERE[op]

    other = Operands(seed="other values")
    want = other.call(op)
    for name in ("a", "x", "w8", "w4", "sums", "scale"):
        getattr(operands, name).copy_(getattr(other, name))
    for got, expected in zip(operands.call(op), want, strict=True):
        assert_equal(got, expected, op)


@pytest.mark.parametrize("op", ["gemm_int8_quantized", "gemm_int4"])
def test_other_rows_at_the_same_address_have_another_map(op: str) -> None:
    operands = Operands(m=6)
    whole = operands.call(op)
    a, x = operands.a, operands.x
    for rows in (slice(0, 3), slice(0, 6, 2)):  # another extent, another stride
        operands.a, operands.x = a[rows], x[rows]
        results: list[torch.Tensor] = []
        assert maps(lambda: results.extend(operands.call(op))) == 1  # noqa: B023
        for got, want in zip(results, whole, strict=True):
            assert_equal(got, want[rows], op)


def test_unaligned_rows_are_planned_for(emulated: Any) -> None:
    """TMA needs rows at multiples of 16 bytes; with other rows the same problem gets another kernel."""
    operands = Operands()
    want = operands.call("gemm_int8")[0]
    wide = torch.zeros(5, K + 4, dtype=torch.int8)
    wide[:, :K] = operands.a
    operands.a = wide[:, :K]
    results: list[torch.Tensor] = []
    assert plans(lambda: results.extend(operands.call("gemm_int8"))) == 1
    assert_equal(results[0], want, "unaligned rows")


def test_groups_are_planned_for(emulated: Any) -> None:
    operands = Operands()
    operands.call("gemm_int8")
    w8, sums = torch.ops.lamina.pack_int8(torch.ops.lamina.unpack_int8(operands.w8, N, K), 128)
    want = operands.call("gemm_int8")[0]
    operands.w8, operands.sums = w8, sums  # one group of all of k: the same product
    results: list[torch.Tensor] = []
    assert plans(lambda: results.extend(operands.call("gemm_int8"))) == 1
    assert_equal(results[0], want, "scales along k")

    for op in ("gemm_int4", "gemm_int4_int8"):
        coarse, fine = Operands(), Operands()
        fine.group, fine.scale = GROUP // 2, coarse.scale.repeat_interleave(2, dim=0)
        coarse.call(op)
        assert plans(lambda: fine.call(op)) == 1  # noqa: B023


def test_threads_plan_for_themselves_and_agree(emulated: Any) -> None:
    operands = Operands()
    results: dict[int, list[torch.Tensor]] = {}
    made: dict[int, int] = {}

    def run(thread: int) -> None:
        made[thread] = plans(lambda: results.setdefault(thread, operands.call("gemm_int8")))

    for number in range(2):  # one after the other, because the count covers all threads
        thread = threading.Thread(target=run, args=(number,))
        thread.start()
        thread.join()
    assert made == {0: 1, 1: 1}
    assert_equal(results[0][0], results[1][0], "two threads")


def test_threads_at_once_agree(emulated: Any) -> None:
    """Each thread has its own tables, so no thread sees a half-written entry of another."""
    operands = [Operands(m) for m in (1, 2, 3, 4)]
    want = [each.call("gemm_int4")[0] for each in operands]
    wrong: list[int] = []

    def run() -> None:
        for _ in range(3):
            for i, each in enumerate(operands):
                if not torch.equal(each.call("gemm_int4")[0], want[i]):
                    wrong.append(i)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("op", ["gemm_int8", "gemm_int4", "gemm_int4_int8"])
def test_cpu_plans_are_found_again(op: str, emulated: Any) -> None:
    emulator().set_device(0, 0)
    operands, other = Operands(), Operands(m=211)
    operands.w4 = other.w4 = torch.ops.lamina.pack_int4(
        torch.ops.lamina.unpack_int4(operands.w4, N, K, "int4_tile"), "int4_rows"
    )
    threads = torch.get_num_threads()
    isa = emulated.set_cpu_isa("generic")
    try:
        first = operands.call(op)[0]
        assert plans(lambda: operands.call(op)) == 0
        assert plans(lambda: other.call(op)) == 1
        torch.set_num_threads(threads + 1)
        assert plans(lambda: operands.call(op)) == 1
        torch.set_num_threads(threads)
        assert plans(lambda: operands.call(op)) == 0
        assert_equal(operands.call(op)[0], first, op)
    finally:
        emulated.set_cpu_isa(isa)
        torch.set_num_threads(threads)
