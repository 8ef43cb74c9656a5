"""The CPU instruction sets and CUDA devices of this machine, and why lamina's ops cannot run on a GPU."""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch

from lamina.ops import quantize_int8


@dataclass(frozen=True)
class CudaDevice:
    """A device as lamina's own CUDA runtime sees it; neither torch nor cuda-python takes part."""

    index: int
    compute_capability: int  # 80, 90
    sm_count: int
    smem_per_block: int  # bytes, with opt-in
    l2_bytes: int

    def __str__(self) -> str:
        major, minor = divmod(self.compute_capability, 10)
        return (
            f"{self.index}: compute capability {major}.{minor}, {self.sm_count} SMs, "
            f"{self.smem_per_block // 2**10} KiB shared memory a block, {self.l2_bytes // 2**20} MiB L2"
        )


def cpu_isas() -> list[str]:
    """The instruction sets that this machine runs and the build has, in ascending order."""
    names: str = torch.ops.lamina.cpu_isas()
    return names.split(",")


def runtime_devices() -> list[CudaDevice] | None:
    """The devices that lamina's CUDA runtime sees; None if lamina was built without CUDA."""
    found = json.loads(torch.ops.lamina.cuda_devices())
    return None if found is None else [CudaDevice(index, **facts) for index, facts in enumerate(found)]


def cuda_problem() -> str | None:
    """Why lamina's ops cannot run on a CUDA device here, or None. Runs one op on the device."""
    if not torch.cuda.is_available():
        return "torch finds no CUDA device" + ("" if torch.version.cuda else " (it is a build without CUDA)")
    try:
        devices = runtime_devices()
        if devices is None:
            return "lamina is built without CUDA: no nvcc was found when it was built"
        if not devices:
            return "lamina's CUDA runtime finds no device; the driver may be too old for it"
        quantize_int8(torch.zeros(1, 1, device="cuda")).q.cpu()
    except (ValueError, RuntimeError) as error:
        return str(error).splitlines()[0]
    return None
