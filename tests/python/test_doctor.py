"""lamina doctor: passes here, names every op, and notices a kernel that is wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lamina import ops
from lamina.devices import cpu_isas, cuda_problem
from lamina.doctor import CHECKS, Check, count_checks, run_checks
from lamina.doctor.outcome import Outcome
from lamina.doctor.run import CPU, run_check


def test_all_ops_pass_on_every_isa() -> None:
    checks = list(run_checks())
    assert [check for check in checks if check.failed] == []
    on_cpu = {check.backend for check in checks if "cuda" not in check.backend}
    assert on_cpu == {*(f"cpu {isa}" for isa in cpu_isas()), "cpu all"}
    assert len(checks) <= count_checks()


def test_cuda_is_skipped_with_the_reason() -> None:
    problem = cuda_problem()
    if problem is None:
        pytest.skip("this machine has a CUDA device")
    on_cuda = [check for check in run_checks() if check.backend == "cuda"]
    assert [check.op for check in on_cuda] == list(CHECKS)
    for check in on_cuda:
        assert check.skipped == problem
        assert not check.passed
        assert not check.failed


def test_a_case_without_a_ratio_fails() -> None:
    check = Check("an op", "cpu", (Outcome("right", 0.5), Outcome("not a number", math.nan)))
    assert check.failed
    assert check.worst.case == "not a number"


def test_no_op_is_forgotten() -> None:
    computing = {
        name.removeprefix("lamina::")
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("lamina::")
        and "Tensor" in str(getattr(torch.ops.lamina, name[8:]).default._schema)
    }
    # The checks of packing and compressing go the way back, too; importing moves bytes on the CPU.
    ways_back = ("unpack_", "decompress_", "import_")
    assert [op for op in computing - set(CHECKS) if not op.startswith(ways_back)] == []
    assert set(CHECKS) <= computing


def test_the_default_device_does_not_count() -> None:
    with torch.device("meta"):
        checks = [run_check(op, "cpu", CHECKS[op], CPU) for op in ("quantize_int8", "gemm_int4")]
    assert [check.op for check in checks if not check.passed] == []


def broken(op: str, change: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    right = getattr(ops, op)

    def gemm(*args: Any, **options: Any) -> Tensor:
        return change(right(*args, **options))

    return gemm


def zero_last_column(out: Tensor) -> Tensor:
    out[:, -1:] = 0
    return out


def swap_rows(out: Tensor) -> Tensor:
    return out.flip(0)


def plant_nan(out: Tensor) -> Tensor:
    out[:1, :1] = torch.nan
    return out


def one_step(out: Tensor) -> Tensor:
    return out * (1 + 4 * torch.finfo(out.dtype).eps)


@pytest.mark.parametrize("op", ["gemm_int8", "gemm_int4_int8"])
@pytest.mark.parametrize("change", [zero_last_column, swap_rows, plant_nan, one_step])
def test_a_wrong_product_is_noticed(
    change: Callable[[Tensor], Tensor], op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops, op, broken(op, change))
    check = run_check(op, "cpu", CHECKS[op], CPU)
    assert not check.passed


@pytest.mark.parametrize("field", ["q", "scale", "zero_point"])
def test_a_wrong_quantisation_is_noticed(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = ops.quantize_int8

    def quantize(*args: Any, **options: Any) -> ops.QuantizedInt8:
        result = right(*args, **options)
        value = getattr(result, field)
        if value is not None:
            value[-1, -1] += 1
        return result

    monkeypatch.setattr(ops, "quantize_int8", quantize)
    assert not run_check("quantize_int8", "cpu", CHECKS["quantize_int8"], CPU).passed


def test_an_exception_is_a_failure_with_its_text(monkeypatch: pytest.MonkeyPatch) -> None:
    def gemm(*_: Any, **__: Any) -> Tensor:
        raise RuntimeError("no kernel")

    monkeypatch.setattr(ops, "gemm_int8", gemm)
    check = run_check("gemm_int8", "cpu", CHECKS["gemm_int8"], CPU)
    assert not check.passed
    assert check.error == "RuntimeError: no kernel"
