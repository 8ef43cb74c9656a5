"""The CUDA device as the benchmark sees it: events, flush, capture, clocks, and what to say of it."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import time
from collections.abc import Callable
from typing import Any

import torch

from bench.cases import BenchError

MIN_FLUSH_BYTES = 256 << 20  # as triton.testing.do_bench: long enough for the host to launch what follows
FLUSH_PER_L2 = 4
# A set four times the L2, read in turn: a copy is evicted before its next turn whatever the L2 replaces.
ROTATION_PER_L2 = 4
_SMI_FIELDS = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu")
_untyped: Any = torch.cuda  # its classes have no complete types
_CLOCK_KEYS = ("sm_mhz", "mem_mhz", "power_w", "temperature_c")


def require_cuda() -> None:
    if not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        raise BenchError(f"--device cuda: no CUDA device that torch {torch.__version__} ({built}) can use")


def _number(text: object) -> float | None:
    try:
        return float(str(text))
    except ValueError:  # "[N/A]"
        return None


class Monitor:
    """Reads clocks, power and driver through NVML or nvidia-smi; never sets anything."""

    def __init__(self, uuid: str | None) -> None:
        self.source = "none"
        self._id = f"GPU-{uuid}" if uuid else "0"
        self._nvml: Any = None
        self._handle: Any = None
        self._smi = shutil.which("nvidia-smi")
        try:
            nvml = importlib.import_module("pynvml")
            nvml.nvmlInit()
            by_uuid = uuid is not None
            self._handle = (
                nvml.nvmlDeviceGetHandleByUUID(self._id) if by_uuid else nvml.nvmlDeviceGetHandleByIndex(0)
            )
            self._nvml, self.source = nvml, "nvml"
        except Exception:  # no package, no library, no permission: nvidia-smi is asked instead
            self.source = "nvidia-smi" if self._smi else "none"

    def _query(self, fields: tuple[str, ...]) -> list[str]:
        if not self._smi:
            return []
        command = [self._smi, "-i", self._id, f"--query-gpu={','.join(fields)}"]
        try:
            done = subprocess.run(
                [*command, "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=20
            )
        except (OSError, subprocess.SubprocessError):
            return []
        values = [value.strip() for value in done.stdout.strip().split(",")]
        return values if done.returncode == 0 and len(values) == len(fields) else []

    def clocks(self) -> dict[str, float]:
        values: list[float | None] = []
        if self._nvml:
            nvml, handle = self._nvml, self._handle
            reads: list[Callable[[], float]] = [
                lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
                lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
                lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
                lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            ]
            for read in reads:
                try:
                    values.append(float(read()))
                except Exception:  # a value that this device does not report
                    values.append(None)
        else:
            values = [_number(text) for text in self._query(_SMI_FIELDS)]
        return {key: v for key, v in zip(_CLOCK_KEYS, values, strict=False) if v is not None}

    def facts(self) -> dict[str, object]:
        names = ("driver_version", "power.limit", "clocks.max.sm", "clocks.max.mem", "persistence_mode")
        values = self._query(names)
        if values:
            driver, limit, sm, mem, persistence = values
            return {
                "driver": driver,
                "power_limit_w": _number(limit),
                "max_sm_mhz": _number(sm),
                "max_mem_mhz": _number(mem),
                "persistence_mode": persistence,
            }
        if not self._nvml:
            return {"driver": None, "power_limit_w": None}
        try:
            limit_mw = self._nvml.nvmlDeviceGetEnforcedPowerLimit(self._handle)
            driver = self._nvml.nvmlSystemGetDriverVersion()
        except Exception:
            return {"driver": None, "power_limit_w": None}
        driver = driver.decode() if isinstance(driver, bytes) else str(driver)
        return {"driver": driver, "power_limit_w": limit_mw / 1000}


class CudaCapture:
    def __init__(self, graph: torch.cuda.CUDAGraph, output: object) -> None:
        self.graph, self.output = graph, output

    def replay(self) -> None:
        self.graph.replay()


class CudaDevice:
    """The current CUDA device. Satisfies timing.Device."""

    def __init__(self) -> None:
        require_cuda()
        self.properties: Any = torch.cuda.get_device_properties(torch.cuda.current_device())
        self.l2_bytes = int(self.properties.L2_cache_size)
        self.flush_bytes = max(FLUSH_PER_L2 * self.l2_bytes, MIN_FLUSH_BYTES)
        self._buffer = torch.empty(self.flush_bytes, dtype=torch.int8, device="cuda")
        uuid = getattr(self.properties, "uuid", None)
        self.monitor = Monitor(str(uuid) if uuid else None)
        self._start = time.monotonic()

    def event(self) -> Any:
        return _untyped.Event(enable_timing=True)

    def flush(self) -> None:
        self._buffer.zero_()

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def capture(self, call: Callable[[], object], calls: int) -> CudaCapture:
        """A graph. One call on a side stream comes first: libraries set up what a capture may not."""
        side = _untyped.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        output: object = None
        current = torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph):
                for _ in range(calls):
                    output = None  # frees the memory for the next result
                    output = call()
        except RuntimeError:
            torch.cuda.set_stream(current)  # torch leaves the capture's stream in place when its end fails
            raise
        return CudaCapture(graph, output)

    def is_alive(self) -> bool:
        """False after an illegal access or the like: nothing works in this process any more."""
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            return False
        return True

    def release_memory(self) -> None:
        torch.cuda.empty_cache()

    def clocks(self) -> dict[str, float]:
        return {"t_s": round(time.monotonic() - self._start, 3), **self.monitor.clocks()}

    def rotation_target(self, rotate_mib: int) -> int:
        free, _total = torch.cuda.mem_get_info()
        return min(ROTATION_PER_L2 * self.l2_bytes, rotate_mib << 20, free // 16)

    def describe(self) -> dict[str, object]:
        p = self.properties
        return {
            "name": p.name,
            "compute_capability": f"{p.major}.{p.minor}",
            "sm_count": p.multi_processor_count,
            "memory_bytes": p.total_memory,
            "l2_bytes": self.l2_bytes,
            "flush_bytes": self.flush_bytes,
            "cuda_runtime": torch.version.cuda,
            "clock_source": self.monitor.source,
            **self.monitor.facts(),
        }
