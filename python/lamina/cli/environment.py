"""Facts about this machine and this build, for `lamina info`, reports and JSON."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

import torch

import lamina
from lamina._library import build_info
from lamina.devices import cpu_isas, runtime_devices


def environment() -> dict[str, Any]:
    """Everything that a bug report needs."""
    build = build_info()
    return {
        "lamina": lamina.__version__,
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "cpu_isas_found": cpu_isas(),
        "cpu_isa": isa_in_use(),
        "cpu_isas_built": build["cpu_isas_built"],
        "compiler": build["compiler"],
        "cuda_compiler": build["cuda_compiler"] or None,
        "cuda_archs_built": build["cuda_archs"],
        "cuda_devices": cuda_devices(),
        "cuda_driver": driver_devices(),
    }


def rows() -> list[tuple[str, str]]:
    """The same as lines for people."""
    facts = environment()
    built = ", ".join(facts["cpu_isas_built"])
    archs = ", ".join(str(arch) for arch in facts["cuda_archs_built"])
    return [
        ("lamina", facts["lamina"]),
        ("torch", f"{facts['torch']}, {_built_with(facts['torch_cuda'])}"),
        ("python", f"{facts['python']}, {facts['platform']}"),
        ("cpu", f"{facts['cpu']}, {facts['threads']} threads"),
        ("cpu isas found", ", ".join(facts["cpu_isas_found"])),
        ("cpu isa in use", facts["cpu_isa"]),
        ("built", f"{facts['compiler']}; cpu: {built}"),
        ("cuda built", f"{facts['cuda_compiler']}; archs {archs}" if archs else "no"),
        ("cuda devices", "; ".join(facts["cuda_devices"])),
        ("cuda driver", "; ".join(facts["cuda_driver"])),
    ]


def isa_in_use() -> str:
    """The instruction set in use, or why there is none (LAMINA_CPU_ISA may name one that cannot run)."""
    forced = os.environ.get("LAMINA_CPU_ISA")
    try:
        name: str = torch.ops.lamina.cpu_isa()
    except (RuntimeError, ValueError) as error:
        return str(error)
    return f"{name} (LAMINA_CPU_ISA={forced})" if forced else name


def cpu_name() -> str:
    """The model of the processor."""
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found.group(1) if found else platform.processor() or platform.machine()


def _built_with(cuda: str | None) -> str:
    return f"CUDA {cuda}" if cuda else "built without CUDA"


def cuda_devices() -> list[str]:
    """One line per device that lamina's own runtime sees; else one line that says why none is listed."""
    try:
        devices = runtime_devices()
    except (ValueError, RuntimeError) as error:
        return [f"unknown: {str(error).splitlines()[0]}"]
    if devices is None:
        return ["none: lamina is built without CUDA"]
    return [str(device) for device in devices] or ["none"]


def driver_devices() -> list[str]:
    """One line per device through cuda-python; else one line that says why none is listed."""
    try:
        from cuda.bindings import driver
    except ImportError:
        return ["unknown: cuda-python is not installed (pip install 'lamina[cuda]')"]
    try:
        count = _check(driver.cuInit(0), driver.cuDeviceGetCount())
        return [_describe_device(driver, index) for index in range(count)] or ["none"]
    except RuntimeError as error:
        return [f"none: {str(error).splitlines()[0]}"]


def _describe_device(driver: Any, index: int) -> str:
    device = _check(driver.cuDeviceGet(index))
    name = _check(driver.cuDeviceGetName(128, device)).split(b"\0")[0].decode()
    attribute = driver.CUdevice_attribute
    major, minor = (
        _check(driver.cuDeviceGetAttribute(which, device))
        for which in (
            attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
        )
    )
    memory = _check(driver.cuDeviceTotalMem(device))
    return f"{index}: {name}, sm_{major}{minor}, {memory / 2**30:.0f} GiB"


def _check(*results: Any) -> Any:
    """The value of the last of some (status, value...) results; RuntimeError for a bad status."""
    for status, *_ in results:
        if int(status) != 0:
            raise RuntimeError(f"the CUDA driver says {status.name}")
    return results[-1][1]
