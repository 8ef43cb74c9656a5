"""Where an op can run. kernels.inc is the list; a backend that this machine lacks is a visible skip."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import lamina  # noqa: F401  registers torch.ops.lamina
from lamina import _library
from tests.support.cases import GemmInputs

ROOT = Path(__file__).resolve().parents[2]
ROW = re.compile(r"^LAMINA_(CPU|CUDA)_KERNEL\((\w+), (\w+)")
# The device that the twin plays: few SMs, so that small problems already are several waves.
TWIN_ARCH, TWIN_SMS = 80, 4


def _kernels(op: str, kind: str) -> list[str]:
    text = (ROOT / "csrc" / "ops" / op / "kernels.inc").read_text()
    rows = [match.groups() for line in text.splitlines() if (match := ROW.match(line))]
    return [kernel for row_kind, name, kernel in rows if (row_kind, name) == (kind, op)]


def cpu_kernels(op: str) -> list[str]:
    """The ISAs of csrc/ops/<op>/kernels.inc, in its order."""
    return _kernels(op, "CPU")


def cuda_kernels(op: str) -> list[str]:
    """The CUDA kernels of csrc/ops/<op>/kernels.inc, in its order, without the op's name."""
    return _kernels(op, "CUDA")


def kernel_of(plan: str) -> str:
    """The kernel that the text of a plan names."""
    return str(re.findall(r"^kernel +(\w+)", plan, flags=re.MULTILINE)[0])


@functools.cache
def emulated_ops() -> Any:
    """torch.ops.lamina_emu, or None if this build has no emulated library."""
    try:
        _library.load_emulated()
    except ImportError:
        return None
    return torch.ops.lamina_emu


@dataclass(frozen=True)
class Backend:
    """One ISA, native or emulated."""

    isa: str
    emulated: bool = False

    def __str__(self) -> str:
        return f"{self.isa}_emulated" if self.emulated else self.isa

    @property
    def ops(self) -> Any:
        return emulated_ops() if self.emulated else torch.ops.lamina

    @contextmanager
    def active(self) -> Iterator[Any]:
        """The namespace of ops, with this ISA forced."""
        previous = self.ops.set_cpu_isa(self.isa)
        try:
            yield self.ops
        finally:
            self.ops.set_cpu_isa(previous)

    def quantize(self, x: torch.Tensor, *args: Any, **options: Any) -> tuple[torch.Tensor, ...]:
        with self.active() as ops:
            result: tuple[torch.Tensor, ...] = ops.quantize_int8(x, *args, **options)
        return result

    def pack(self, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with self.active() as ops:
            data, sums = ops.pack_int8(w)
        return data, sums

    def gemm(self, inputs: GemmInputs, out_dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return self.gemm_packed(inputs, *self.pack(inputs.w), out_dtype)

    def gemm_packed(
        self,
        inputs: GemmInputs,
        data: torch.Tensor,
        sums: torch.Tensor,
        out_dtype: torch.dtype = torch.float32,
    ) -> torch.Tensor:
        i, move = inputs, self.move
        with self.active() as ops:
            out: torch.Tensor = ops.gemm_int8(
                move(i.a), move(data), move(sums), move(i.a_scale), move(i.w_scale), move(i.a_zero_point),
                move(i.bias), out_dtype, i.activation, move(i.gate), move(i.residual),
            )  # fmt: skip
        return out.cpu()

    def gemm_quantized(
        self, inputs: GemmInputs, out_scale: torch.Tensor | None = None, symmetric: bool = True
    ) -> tuple[torch.Tensor, ...]:
        i, move = inputs, self.move
        data, sums = self.pack(i.w)
        with self.active() as ops:
            results = ops.gemm_int8_quantized(
                move(i.a), move(data), move(sums), move(i.a_scale), move(i.w_scale), move(i.a_zero_point),
                move(i.bias), i.activation, move(i.gate), move(i.residual), move(out_scale), symmetric,
            )  # fmt: skip
        return tuple(result.cpu() for result in results)

    def move(self, tensor: torch.Tensor | None) -> torch.Tensor | None:
        """The tensor, strides and all, where this backend reads it."""
        return tensor


@dataclass(frozen=True)
class Twin(Backend):
    """A CUDA kernel on the host twin; `isa` is its name in kernels.inc."""

    op: str = ""
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.isa}_twin"

    @contextmanager
    def active(self) -> Iterator[Any]:
        ops = emulated_ops()
        ops.set_twin_options(self.seed, 1, False)
        ops.set_twin(TWIN_ARCH, TWIN_SMS, f"{self.op}_{self.isa}")
        try:
            yield ops
        finally:
            ops.set_twin(0, 0, "")


class Gpu(Backend):
    """The CUDA key on a real device: operands go there, results come back."""

    def __str__(self) -> str:
        return "gpu"

    @contextmanager
    def active(self) -> Iterator[Any]:
        yield torch.ops.lamina

    def quantize(self, x: torch.Tensor, *args: Any, **options: Any) -> tuple[torch.Tensor, ...]:
        moved = [arg.cuda() if isinstance(arg, torch.Tensor) else arg for arg in args]
        named = {key: arg.cuda() if isinstance(arg, torch.Tensor) else arg for key, arg in options.items()}
        results = torch.ops.lamina.quantize_int8(keep_strides_on_cuda(x), *moved, **named)
        return tuple(result.cpu() for result in results)

    def move(self, tensor: torch.Tensor | None) -> torch.Tensor | None:
        return None if tensor is None else keep_strides_on_cuda(tensor)


def keep_strides_on_cuda(x: torch.Tensor) -> torch.Tensor:
    """x on the GPU with the strides and the offset that it has here; .cuda() may make it contiguous."""
    whole = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage())
    return whole.cuda().as_strided(x.shape, x.stride(), x.storage_offset())


NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")


def twins(op: str) -> list[Backend]:
    """Every CUDA kernel of `op` on the twin; LAMINA_TWIN_SEED chooses the schedule."""
    seed = int(os.environ.get("LAMINA_TWIN_SEED", "0"))
    return [] if emulated_ops() is None else [Twin(kernel, True, op, seed) for kernel in cuda_kernels(op)]


@functools.cache
def emulated_isas() -> list[str]:
    """The instruction sets that torch.ops.lamina_emu emulates, or none."""
    ops = emulated_ops()
    if ops is None or not json.loads(ops.build_info())["emulates_isas"]:
        return []
    return str(ops.cpu_isas()).split(",")


def runnable(isa: str) -> Backend | None:
    """Native where the machine can, else emulated where the build can.

    LAMINA_TEST_EMULATED=1 shows what an AVX2 machine runs: everything above AVX2 is emulated.
    """
    prefer_emulated = "LAMINA_TEST_EMULATED" in os.environ and isa not in ("generic", "avx2")
    if isa in torch.ops.lamina.cpu_isas().split(",") and not prefer_emulated:
        return Backend(isa)
    return Backend(isa, emulated=True) if isa in emulated_isas() else None


def cpu_backends(op: str) -> list[Any]:
    """One pytest parameter per CPU kernel of `op`; what cannot run here is skipped with the reason."""
    parameters = []
    for isa in cpu_kernels(op):
        backend = runnable(isa)
        reason = f"{isa}: not on this machine, and the build has no emulation of it (install libsimde-dev)"
        marks = [pytest.mark.skip(reason=reason)] if backend is None else []
        parameters.append(pytest.param(backend or Backend(isa), id=str(backend or isa), marks=marks))
    return parameters


def backends(op: str) -> list[Any]:
    """The CPU kernels of `op`, its CUDA kernels on the twin, and a GPU where there is one."""
    gpu = pytest.param(Gpu("gpu"), id="gpu", marks=[pytest.mark.gpu, NO_GPU])
    return [*cpu_backends(op), *(pytest.param(twin, id=str(twin)) for twin in twins(op)), gpu]


def available(op: str) -> list[Backend]:
    """Every backend of `op` that can run here, native and emulated."""
    found = [runnable(isa) for isa in cpu_kernels(op)]
    return [backend for backend in found if backend is not None] + emulated_twins(op) + twins(op)


def emulated_twins(op: str) -> list[Backend]:
    """The kernels of `op` in the emulated library, whether or not the machine has the ISA."""
    return [Backend(isa, emulated=True) for isa in cpu_kernels(op) if isa in emulated_isas()]
