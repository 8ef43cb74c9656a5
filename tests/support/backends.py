"""The backends on which an op can run, from kernels.inc. A backend that this machine lacks is a visible
skip."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import lamina  # noqa: F401  registers torch.ops.lamina
from lamina.testing import emulated_gpu, load_emulator, using_cuda_kernel, using_isa
from tests.support import budget
from tests.support.cases import GemmInputs
from tests.support.int4_cases import Int4Inputs
from tests.support.memory import fenced, in_aligned_rows, keep_strides_on_cuda

ROOT = Path(__file__).resolve().parents[2]
ROW = re.compile(r"^LAMINA_(CPU|CUDA)_KERNEL\((\w+), (\w+)", flags=re.MULTILINE)
# The emulator's device has few SMs, so that small problems take several waves.
EMULATOR_SMS = 4
# All kernels see shapes, depths and schedules. They share the code that deals with dtypes, scales, strides
# and what follows the sums: one of each architecture stands for it, the others see those in the slow tests.
# Where no row names it, it is the kernel with tiles of 64 rows.
STANDS_FOR_STORES = {
    "gemm_int8": ("sm80_m32", "sm90a_m64"),
    "gemm_int4": ("sm80_m32", "sm90a_m32"),
    "gemm_int4_int8": ("sm80_m64", "sm90a_m32"),
}


@functools.cache
def kernel_rows() -> list[tuple[str, str, str]]:
    """("CPU" or "CUDA", op, kernel) of every row of csrc/ops/*/kernels.inc."""
    return ROW.findall("".join(path.read_text() for path in sorted(ROOT.glob("csrc/ops/*/kernels.inc"))))


def cpu_kernels(op: str) -> list[str]:
    """The ISAs of csrc/ops/<op>/kernels.inc, in its order."""
    return [kernel for kind, name, kernel in kernel_rows() if (kind, name) == ("CPU", op)]


def cuda_kernels(op: str) -> list[str]:
    """The CUDA kernels of csrc/ops/<op>/kernels.inc, in its order, without the op's name."""
    return [kernel for kind, name, kernel in kernel_rows() if (kind, name) == ("CUDA", op)]


def cuda_ops() -> list[str]:
    """The ops that have CUDA kernels."""
    return list(dict.fromkeys(name for kind, name, _ in kernel_rows() if kind == "CUDA"))


def stand_for_stores(op: str) -> list[str]:
    """The kernels of `op` that stand for the code that its kernels share."""
    named = (*STANDS_FOR_STORES.get(op, ("sm80_m64", "sm90a_m64")), "rows")
    return [kernel for kernel in cuda_kernels(op) if kernel in named]


def kernel_of(plan: str) -> str:
    """The name of the kernel in the text of a plan."""
    return str(re.findall(r"^kernel +(\w+)", plan, flags=re.MULTILINE)[0])


class EmuOps:
    """torch.ops.lamina_emu; while it plays a GPU, its calls count against the budgets of their ops."""

    def __getattr__(self, name: str) -> Any:
        call = getattr(torch.ops.lamina_emu, name)
        plays_gpu = probe() is not None and probe().emulator.has_device()
        is_op = not name.startswith(("set_", "take_"))
        return functools.partial(budget.spend, name, call) if plays_gpu and is_op else call


@functools.cache
def emu_ops() -> Any:
    """EmuOps, or None if this build has no emulated library."""
    try:
        load_emulator()
    except ImportError:
        return None
    return EmuOps()


@functools.cache
def probe() -> Any:
    """lamina._probe (tests/probe), or None if this build has none: it needs pybind11."""
    try:
        return importlib.import_module("lamina._probe")
    except ModuleNotFoundError:
        return None


NO_PROBE = "this build has no lamina/_probe (pip install pybind11, then build with -DLAMINA_EMULATOR=ON)"


def emulator() -> Any:
    """How CUDA kernels run in emu_ops(), and reports of what ran; skips the test without probe()."""
    if probe() is None:
        pytest.skip(NO_PROBE)
    return probe().emulator


@dataclass(frozen=True)
class Backend:
    """One ISA, native or with SIMDe."""

    isa: str
    test_library: bool = False
    int4_layout = "int4_rows"
    sparse24_layout = "sparse24_rows"

    def __str__(self) -> str:
        return f"{self.isa}_simde" if self.test_library else self.isa

    @property
    def ops(self) -> Any:
        return emu_ops() if self.test_library else torch.ops.lamina

    @contextmanager
    def active(self) -> Iterator[Any]:
        """The namespace of ops, with this ISA forced."""
        with using_isa(self.isa, self.ops):
            yield self.ops

    def on_sms(self, sms: int) -> Backend:
        """The same backend with this number of SMs, if the number can be chosen."""
        return self

    def place(self, t: torch.Tensor) -> torch.Tensor:
        """t in this backend's memory; on the host a copy whose end the backend must not read past."""
        return fenced(t)

    def place_written(self, t: torch.Tensor) -> torch.Tensor:
        """t itself, or a copy in this backend's memory, which the caller must copy back."""
        return t

    def take_error(self) -> str:
        """The first bad index that kernels have recorded, which it forgets; a CPU kernel records none."""
        return ""

    def run(self, op: str, *args: Any, **options: Any) -> tuple[torch.Tensor, ...]:
        """The results of the op, in a tuple, for operands in this backend's memory."""
        placed, named = self._place_all(args), self._place_all(options.values())
        with self.active() as ops:
            results = getattr(ops, op)(*placed, **dict(zip(options, named, strict=True)))
        return tuple(r.cpu() for r in (results if isinstance(results, tuple) else (results,)))

    def quantize(self, x: torch.Tensor, *args: Any, **options: Any) -> tuple[torch.Tensor, ...]:
        return self.run("quantize_int8", x, *args, **options)

    def pack(self, w: torch.Tensor, group: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        with self.active() as ops:
            data, sums = ops.pack_int8(w, group)
        return data, sums

    def gemm(self, inputs: GemmInputs, out_dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return self.gemm_packed(inputs, *self.pack(inputs.w, inputs.group), out_dtype)

    def gemm_packed(
        self,
        inputs: GemmInputs,
        data: torch.Tensor,
        sums: torch.Tensor,
        out_dtype: torch.dtype = torch.float32,
    ) -> torch.Tensor:
        operands, i = self._operands(inputs, data, sums), inputs
        return self.run("gemm_int8", *operands, out_dtype=out_dtype, max_sms=i.max_sms, **i.then())[0]

    def matmul_sparse24_int8(self, i: GemmInputs, out_dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """gemm() with i.w compressed."""
        sparse = torch.ops.lamina.compress_sparse24(i.w)
        with self.active() as ops:
            data, sums = ops.pack_sparse24(*sparse, i.w.shape[1], self.sparse24_layout, i.group)
        options = {"out_dtype": out_dtype, "max_sms": i.max_sms, **i.then()}
        return self.run("matmul_sparse24_int8", *self._operands(i, data, sums), **options)[0]

    def gemm_quantized(
        self, inputs: GemmInputs, out_scale: torch.Tensor | None = None, symmetric: bool = True
    ) -> tuple[torch.Tensor, ...]:
        i, operands = inputs, self._operands(inputs, *self.pack(inputs.w, inputs.group))
        options = {"out_scale": out_scale, "symmetric": symmetric, "max_sms": i.max_sms, **i.then()}
        return self.run("gemm_int8_quantized", *operands, **options)

    def gemm_int4_int8(self, inputs: Int4Inputs, out_dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return self.gemm_int4_int8_packed(inputs, inputs.pack(self.int4_layout), out_dtype)

    def gemm_int4_int8_packed(
        self, inputs: Int4Inputs, data: torch.Tensor, out_dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        i = inputs
        given = (i.a, data, i.w_scale, i.group, i.a_scale, i.w_zero_point, i.a_zero_point, i.bias, out_dtype)
        return self.run("gemm_int4_int8", *given, perm=i.perm, max_sms=i.max_sms, **i.then())[0]

    def gemm_int4(self, i: Int4Inputs, out_dtype: torch.dtype | None = None) -> torch.Tensor:
        given = (i.a, i.pack(self.int4_layout), i.w_scale, i.group, i.w_zero_point, i.bias, out_dtype)
        return self.run("gemm_int4", *given, perm=i.perm, max_sms=i.max_sms, **i.then())[0]

    def _operands(self, i: GemmInputs, data: torch.Tensor, sums: torch.Tensor) -> list[Any]:
        # TMA needs aligned rows; the planner gives other rows to another kernel (tests/ops/test_emulator.py).
        a = in_aligned_rows(i.a) if self.isa.startswith("sm90a") else i.a
        return [a, data, sums, i.a_scale, i.w_scale, i.a_zero_point, i.bias]

    def _place_all(self, arguments: Iterable[Any]) -> list[Any]:
        return [self.place(arg) if isinstance(arg, torch.Tensor) else arg for arg in arguments]


@dataclass(frozen=True)
class CudaKernel(Backend):
    """One CUDA kernel; `isa` is its name in kernels.inc."""

    op: str = ""
    int4_layout = "int4_tile"
    sparse24_layout = "sparse24_tile"

    @property
    def arch(self) -> int:
        """The compute capability for which the kernel is written."""
        return 90 if self.isa.startswith("sm90a") else 80

    @contextmanager
    def active(self) -> Iterator[Any]:
        """The namespace of ops, with this kernel forced."""
        with using_cuda_kernel(f"{self.op}_{self.isa}", self.ops):
            yield self.ops

    def take_error(self) -> str:
        return str(self.ops.take_kv_error(0))


@dataclass(frozen=True)
class EmulatedKernel(CudaKernel):
    """A CUDA kernel on the emulator."""

    seed: int = 0
    sms: int = EMULATOR_SMS

    def __str__(self) -> str:
        return f"{self.isa}_emulator"

    def on_sms(self, sms: int) -> EmulatedKernel:
        return dataclasses.replace(self, sms=sms)

    @contextmanager
    def active(self) -> Iterator[Any]:
        with emulated_gpu(self.arch, self.sms, self.seed), super().active() as ops:
            yield ops


class Gpu(CudaKernel):
    """A CUDA kernel on a GPU: operands are copied there and results back. Weights are packed on the CPU."""

    def __str__(self) -> str:
        return f"{self.isa}_gpu"

    def place(self, t: torch.Tensor) -> torch.Tensor:
        return keep_strides_on_cuda(t)

    place_written = place


NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")


def emulated_kernels(op: str) -> list[Backend]:
    """Every CUDA kernel of `op` on the emulator, or none; LAMINA_EMULATOR_SEED chooses the schedule."""
    return [] if probe() is None else _emulated_kernels(op)


def _emulated_kernels(op: str) -> list[Backend]:
    seed = int(os.environ.get("LAMINA_EMULATOR_SEED", "0"))
    return [EmulatedKernel(kernel, True, op, seed) for kernel in cuda_kernels(op)]


def emulator_parameters(op: str, arch: int | None = None, stores: bool = False) -> list[Any]:
    """One pytest parameter per CUDA kernel of `op` (of one architecture) on the emulator, skipped without it.

    stores: those that do not stand for the code that stores are slow.
    """
    marks = [] if probe() is not None else [pytest.mark.skip(reason=NO_PROBE)]
    slow = [pytest.mark.slow] if stores else []
    standing = stand_for_stores(op)
    assert standing or not stores, f"STANDS_FOR_STORES needs kernels of {op}"
    return [
        pytest.param(emulated, id=str(emulated), marks=marks + slow * (emulated.isa not in standing))
        for emulated in _emulated_kernels(op)
        if isinstance(emulated, EmulatedKernel) and arch in (None, emulated.arch)
    ]


def gpu_parameter(gpu: Gpu) -> Any:
    can_run = not torch.cuda.is_available() or gpu.arch < 90 or torch.cuda.get_device_capability() == (9, 0)
    skip = pytest.mark.skipif(not can_run, reason=f"{gpu.isa}: for compute capability 9.0 alone")
    return pytest.param(gpu, id=str(gpu), marks=[pytest.mark.gpu, NO_GPU, skip])


def gpus(op: str) -> list[Any]:
    """Every CUDA kernel of `op` on the GPU; a kernel that cannot run here is skipped with the reason."""
    return [gpu_parameter(Gpu(kernel, False, op)) for kernel in cuda_kernels(op)]


def cuda_backends(op: str, stores: bool = False) -> list[Any]:
    """The CUDA kernels of `op`, on the emulator and, if the machine has one, on a GPU."""
    return [*emulator_parameters(op, stores=stores), *gpus(op)]


@functools.cache
def simde_isas() -> list[str]:
    """The instruction sets that torch.ops.lamina_emu runs with SIMDe, or none."""
    ops = emu_ops()
    if ops is None or not json.loads(ops.build_info())["has_simde"]:
        return []
    return str(ops.cpu_isas()).split(",")


def runnable(isa: str) -> Backend | None:
    """The ISA natively if the machine can run it, else with SIMDe if the build has that.

    With LAMINA_TEST_SIMDE=1 all above AVX2 run with SIMDe, as on an AVX2 machine. The build must have them:
    LAMINA_CMAKE_ARGS='-DLAMINA_SIMDE_ISAS=avx512_vnni;avx512_bf16;amx_int8' make build.
    """
    prefer_simde = "LAMINA_TEST_SIMDE" in os.environ and isa not in ("generic", "avx2")
    if isa in torch.ops.lamina.cpu_isas().split(",") and not prefer_simde:
        return Backend(isa)
    return Backend(isa, test_library=True) if isa in simde_isas() else None


def cpu_backends(op: str) -> list[Any]:
    """One pytest parameter per CPU kernel of `op`; a kernel that cannot run here is skipped with the
    reason."""
    parameters = []
    for isa in cpu_kernels(op):
        backend = runnable(isa)
        reason = f"{isa}: not on this machine, and the build has no emulation of it (install libsimde-dev)"
        marks = [pytest.mark.skip(reason=reason)] if backend is None else []
        parameters.append(pytest.param(backend or Backend(isa), id=str(backend or isa), marks=marks))
    return parameters


def backends(op: str, stores: bool = False) -> list[Any]:
    """The CPU kernels of `op`, its CUDA kernels on the emulator and, if the machine has one, on a GPU."""
    return [*cpu_backends(op), *cuda_backends(op, stores)]


def grouped_backends(stores: bool = False) -> list[Any]:
    """The backends of gemm_int8 with scales along k: the same kernels on a CPU, others on CUDA."""
    return [*cpu_backends("gemm_int8"), *cuda_backends("gemm_int8_grouped", stores)]


def available_cpu(op: str) -> list[Backend]:
    """Every CPU kernel of `op` that can run here, natively or with SIMDe."""
    found = [runnable(isa) for isa in cpu_kernels(op)]
    return [backend for backend in found if backend is not None]


def available(op: str) -> list[Backend]:
    """Every backend of `op` that can run here."""
    return available_cpu(op) + emulated_kernels(op)
