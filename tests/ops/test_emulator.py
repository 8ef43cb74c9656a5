"""CUDA kernels under many schedules of the emulator, their bank conflicts, and the planner's choices."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from lamina.testing import using_cuda_kernel
from tests.support.backends import (
    EmulatedKernel,
    emu_ops,
    emulated_kernels,
    emulator,
    emulator_parameters,
    kernel_of,
    probe,
)
from tests.support.cases import FLOAT_DTYPES, GemmCase, dtype_name, generator
from tests.support.check import check_gemm, in_turn
from tests.support.compare import assert_equal
from tests.support.on_emulator import check_caps, emulated_ops, sites_without_conflicts

SEEDS = range(8)
# Shapes that are ragged everywhere, rows without 16-byte alignment, k split between blocks and within them.
CASES = [GemmCase("ragged", 17, 37, 203), GemmCase("aligned", 33, 64, 320), GemmCase("deep", 3, 21, 1500)]
# Compute capability and SMs.
A100, H200, NEWER = (80, 108), (90, 132), (120, 170)
KERNELS = emulator_parameters("gemm_int8")


def test_the_emulator_is_built() -> None:
    """Without the emulator all its cases in the op tests would be missing unnoticed."""
    assert emu_ops() is not None, "lamina/_emu is missing: build with -DLAMINA_EMULATOR=ON"
    assert probe() is not None, "lamina/_probe is missing: install pybind11 and build again"
    assert KERNELS and emulated_kernels("quantize_int8")


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("emulated", KERNELS)
def test_gemm_is_exact_under_every_schedule(emulated: EmulatedKernel, case: GemmCase) -> None:
    inputs = case.inputs(zero_point="token", bias=torch.float16)
    accumulated = inputs.accumulated()
    for seed in SEEDS:
        emulated = dataclasses.replace(emulated, seed=seed)
        check_gemm(emulated, inputs, accumulated, f"seed {seed}", in_turn(emulated, seed, FLOAT_DTYPES))


@pytest.mark.parametrize("emulated", emulator_parameters("gemm_int8", arch=90))
def test_16_bit_results_under_every_schedule(emulated: EmulatedKernel) -> None:
    """A block takes tile after tile of several boxes, and some boxes lie partly or wholly past an edge."""
    inputs = GemmCase("boxes", 300, 328, 64).inputs(zero_point="token", bias=torch.float16)
    inputs, accumulated = dataclasses.replace(inputs, max_sms=2), inputs.accumulated()
    for seed, dtype in zip(SEEDS, itertools.cycle((torch.float16, torch.bfloat16)), strict=False):
        got = dataclasses.replace(emulated, seed=seed).gemm(inputs, dtype)
        assert_equal(got, inputs.expected_bits(accumulated, dtype), f"seed {seed}")


@pytest.mark.parametrize("seed", SEEDS)
def test_quantize_is_the_same_under_every_schedule(seed: int) -> None:
    (emulated,) = emulated_kernels("quantize_int8")
    x = torch.randn(5, 1037, generator=generator("schedules"))
    for symmetric in (True, False):
        want = torch.ops.lamina.quantize_int8(x, None, None, symmetric)
        got = dataclasses.replace(emulated, seed=seed).quantize(x, None, None, symmetric)
        for name, a, b in zip(("q", "scale", "zero_point"), got, want, strict=True):
            assert_equal(a, b, name)


@pytest.mark.parametrize("out_dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
@pytest.mark.parametrize("emulated", KERNELS)
def test_gemm_has_no_bank_conflicts(emulated: EmulatedKernel, out_dtype: torch.dtype) -> None:
    inputs = GemmCase("conflicts", 130, 128, 512).inputs()
    operands = (inputs.a, *emu_ops().pack_int8(inputs.w), inputs.a_scale, inputs.w_scale)
    sites = sites_without_conflicts(emulated, lambda ops: ops.gemm_int8(*operands, out_dtype=out_dtype))
    assert {site.function for site in sites} >= {"load_shared"}
    in_boxes = any(site.file.endswith("store_tma.cuh") for site in sites)
    assert in_boxes == (emulated.arch == 90 and out_dtype == torch.bfloat16)


@pytest.mark.parametrize(
    ("op", "group", "device", "m", "n", "k", "kernel", "is_split"),
    [
        ("gemm_int8", None, A100, 1, 108 * 2 * 64, 4096, "sm80_m16", False),
        ("gemm_int8", None, A100, 1, 512, 8192, "sm80_m16", True),
        ("gemm_int8", None, A100, 16, 512, 8192, "sm80_m16", True),
        ("gemm_int8", None, A100, 4096, 4096, 4096, "sm80_m128", False),
        ("gemm_int8", None, A100, 3, 8, 70000, "sm80_m16", True),
        ("gemm_int8", None, H200, 1, 8192, 8192, "sm90a_m16", False),
        ("gemm_int8", None, H200, 64, 8192, 8192, "sm90a_m64", False),
        ("gemm_int8", None, H200, 4096, 8192, 8192, "sm90a_m256", False),
        ("gemm_int8", None, H200, 1, 4096, 16384, "sm90a_m16", True),
        ("gemm_int8", None, NEWER, 4096, 8192, 8192, "sm80_m128", False),
        ("gemm_int4", 128, A100, 1, 8192, 8192, "sm80_m16", True),
        ("gemm_int4", 128, A100, 16, 512, 8192, "sm80_m16", True),
        ("gemm_int4", 128, A100, 4096, 8192, 8192, "sm80_m128", False),
        ("gemm_int4", 128, H200, 1, 8192, 8192, "sm90a_m16", True),
        ("gemm_int4", 128, H200, 1, 28672, 8192, "sm90a_m16", False),
        ("gemm_int4", 128, H200, 32, 8192, 8192, "sm90a_m32", True),
        ("gemm_int4", 128, H200, 4096, 8192, 8192, "sm90a_m128", False),
        ("gemm_int4_int8", 128, A100, 1, 8192, 8192, "sm80_m16", True),
        ("gemm_int4_int8", -1, A100, 1, 8192, 8192, "sm80_m16", True),
        ("gemm_int4_int8", 4096, A100, 1, 8192, 8192, "sm80_m16", True),
        ("gemm_int4_int8", -1, A100, 1, 512, 1024, "sm80_m16", False),
        ("gemm_int4_int8", 128, A100, 64, 8192, 8192, "sm80_m64", True),
        ("gemm_int4_int8", 128, A100, 4096, 8192, 8192, "sm80_m128", False),
        ("gemm_int4_int8", 128, H200, 1, 8192, 8192, "sm90a_m16", True),
        ("gemm_int4_int8", -1, H200, 1, 8192, 8192, "sm90a_m16", True),
        ("gemm_int4_int8", 128, H200, 1, 28672, 8192, "sm90a_m16", False),
        ("gemm_int4_int8", -1, H200, 1, 512, 1024, "sm90a_m16", False),
        ("gemm_int4_int8", 128, H200, 48, 8192, 8192, "sm90a_m64", True),
        ("gemm_int4_int8", 128, H200, 4096, 8192, 8192, "sm90a_m128", False),
    ],
)
def test_plan_fits_the_problem(
    op: str,
    group: int | None,
    device: tuple[int, int],
    m: int,
    n: int,
    k: int,
    kernel: str,
    is_split: bool,
) -> None:
    plan = str(getattr(emu_ops(), f"explain_{op}_cuda")(m, n, k, *device, group))
    assert kernel_of(plan) == f"{op}_{kernel}"
    assert ("x 1 splits" not in plan) == is_split, plan


@pytest.mark.parametrize(("stride", "k"), [(203, 203), (0, 208), (16, 208)])
def test_rows_that_tma_cannot_fetch_go_to_another_kernel(stride: int, k: int) -> None:
    """Rows at odd addresses, one row for all, and rows that overlap."""
    ops, inputs = emu_ops(), GemmCase("odd rows", 5, 40, k).inputs()
    a = inputs.a.as_strided((5, k), (stride, 1))
    operands = (a, *ops.pack_int8(inputs.w), inputs.a_scale, inputs.w_scale)
    want = ops.gemm_int8(*operands)
    refused = r'set_cuda_kernel: name = "gemm_int8_sm90a_m16": .* of 1 bytes, and'
    with emulated_ops(90):
        assert_equal(ops.gemm_int8(*operands), want)
        with using_cuda_kernel("gemm_int8_sm90a_m16", ops), pytest.raises(ValueError, match=refused):
            ops.gemm_int8(*operands)


@pytest.mark.parametrize("emulated", KERNELS)
def test_a_cap_on_sms_caps_blocks_and_changes_nothing(emulated: EmulatedKernel) -> None:
    inputs = GemmCase("capped", 150, 140, 700).inputs(zero_point="token")

    def results(max_sms: int | None) -> list[torch.Tensor]:
        limited = dataclasses.replace(inputs, max_sms=max_sms)
        return [
            emulated.gemm(limited),
            *emulated.gemm_quantized(limited, None, symmetric=False),
            *emulated.gemm_quantized(limited, torch.tensor([0.05])),
        ]

    check_caps(emulated, results, (1, 3), launches=5)


def test_a_cap_on_sms_caps_the_blocks_that_add_splits() -> None:
    (emulated,) = (emulated for emulated in emulated_kernels("gemm_int8") if emulated.isa == "sm80_m32")
    inputs = GemmCase("capped sums", 5, 100, 66000).inputs()
    limited = dataclasses.replace(inputs, max_sms=2)
    emulator().take_report()
    check_gemm(emulated, limited, inputs.accumulated(), "capped", [torch.float32])
    report = emulator().take_report()
    assert report.launches > 1
    assert report.most_blocks == 2


@pytest.mark.parametrize("max_sms", [1, 2, 131, 132, 10**12])
def test_some_kernel_fits_every_cap(max_sms: int) -> None:
    ops, inputs = emu_ops(), GemmCase("capped", 40, 70, 300).inputs()
    operands = (inputs.a, *ops.pack_int8(inputs.w), inputs.a_scale, inputs.w_scale)
    want = torch.ops.lamina.gemm_int8(*operands)
    emulator().take_report()
    for arch in (80, 90, 120):
        with emulated_ops(arch, 132):
            assert_equal(ops.gemm_int8(*operands, max_sms=max_sms), want)
    assert emulator().take_report().most_blocks <= max_sms


def test_old_devices_are_refused() -> None:
    with pytest.raises(ValueError, match=r"compute capability 7\.5; the kernels need 8\.0 or newer"):
        emu_ops().explain_gemm_int8_cuda(1, 1, 1, 75, 40)


@pytest.mark.parametrize(("arch", "sms"), [(80, 0), (80, -1), (80, 2**40), (-80, 108), (2**40, 108)])
def test_devices_that_cannot_be_are_refused(arch: int, sms: int) -> None:
    with pytest.raises(ValueError, match=r"explain_gemm_int8_cuda: (compute_capability|sm_count) = "):
        emu_ops().explain_gemm_int8_cuda(1, 1, 1, arch, sms)
