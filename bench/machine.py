"""The machine and the software that produced a result file."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path

import torch

from bench import isa_mask
from bench.roofline import cpu_flags

ROOT = Path(__file__).resolve().parent.parent
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")

# The flags that decide which kernels run, here or in a peer.
_FLAGS = (
    *("sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx_vnni_int8"),
    *("avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "i8mm", "bf16", "sve"),
    *("hypervisor", "cpuid_fault"),
)
_PACKAGES = ("torch", "onnxruntime", "onnx", "numpy")


def _read(path: str | Path) -> str | None:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return None


def hidden_flags() -> frozenset[str]:
    """The names of /proc/cpuinfo that an ISA mask in force takes from this process."""
    level = isa_mask.active_level()
    if level is None:
        return frozenset()
    gone = {"avx2": ("avx512", "amx", "avx_vnni"), "avx_vnni": ("avx512", "amx"), "avx512_vnni": ("amx",)}[
        level
    ]
    return frozenset(flag for flag in cpu_flags() if flag.startswith(gone))


def visible_flags() -> frozenset[str]:
    return cpu_flags() - hidden_flags()


def caches() -> dict[str, int]:
    """Bytes of one instance per level as the kernel reports them: L1d, L1i, L2, L3."""
    sizes: dict[str, int] = {}
    for index in sorted(CACHES.glob("index*")):
        level, kind, size = (_read(index / name) for name in ("level", "type", "size"))
        if not (level and kind and size):
            continue
        units = {"K": 1 << 10, "M": 1 << 20}
        nbytes = int(size.rstrip("KM")) * units.get(size[-1], 1)
        sizes[f"L{level}" + {"Data": "d", "Instruction": "i"}.get(kind, "")] = nbytes
    return sizes


def last_level_cache_bytes() -> int:
    """The largest cache reported; 32 MiB where nothing is reported."""
    return max((size for name, size in caches().items() if not name.endswith("i")), default=32 << 20)


def available_memory_bytes() -> int:
    for line in (_read("/proc/meminfo") or "").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return 4 << 30


def _cpu_model() -> str:
    for line in (_read("/proc/cpuinfo") or "").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
    except OSError:  # no git
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


class Noise:
    """How much of the machine others used since construction: the first thing to read of a result."""

    def __init__(self) -> None:
        self._wall, self._own, self._total, self._steal = self._now()

    @staticmethod
    def _now() -> tuple[float, float, float, float]:
        """Seconds: wall, this process and the children that it has waited for, all processes, stolen."""
        times = [int(field) for field in (_read("/proc/stat") or "cpu").splitlines()[0].split()[1:9]]
        user, nice, system, _idle, _iowait, irq, softirq, steal = times or [0] * 8
        ticks = os.sysconf("SC_CLK_TCK")
        busy = (user + nice + system + irq + softirq) / ticks
        return time.perf_counter(), sum(os.times()[:4]), busy, steal / ticks

    def to_json(self) -> dict[str, float]:
        wall, own, total, steal = self._now()
        passed = max(wall - self._wall, 1e-9)
        others = max(0.0, (total - self._total) - (own - self._own))
        return {
            "wall_s": passed,
            "cores_used_by_others": others / passed,
            "cores_stolen": (steal - self._steal) / passed,
        }


def describe() -> dict[str, object]:
    """Everything but the ceilings and the protocol."""
    level = isa_mask.active_level()
    flags = cpu_flags()
    status = _git("status", "--porcelain")
    return {
        "cpu": _cpu_model(),
        "arch": platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "flags": [flag for flag in _FLAGS if flag in flags],
        "isa_mask": None
        if level is None
        else {"level": level, "hidden": sorted(hidden_flags() & set(_FLAGS))},
        "caches_bytes": caches(),
        "memory_available_bytes": available_memory_bytes(),
        "transparent_hugepage": _read("/sys/kernel/mm/transparent_hugepage/enabled"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "git_sha": _git("rev-parse", "HEAD"),
        "git_dirty": bool(status) if status is not None else None,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
