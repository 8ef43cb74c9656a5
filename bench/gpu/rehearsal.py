"""The pretended GPU of gpu_check.py --dry-run: kernels run on the emulator, benchmarks on the CPU.

A rehearsal takes few kernels and tiny problems. It shows that the stages work; its numbers mean nothing.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from bench.attention.cases import AttentionCase, Options
from bench.cases import AnyCase, Candidate, Context, load_op
from bench.gpu.runner import GpuRunner, RunDevice
from bench.gpu.target import Target
from bench.gpu.timing import GpuProtocol
from bench.timing import MIN_SAMPLES

READ_BYTES, PEAK_EXTENT = 1 << 16, 64


class HostEvent:
    """Satisfies bench.gpu.timing.Event."""

    def __init__(self) -> None:
        self.at_s = 0.0

    def record(self) -> None:
        self.at_s = time.perf_counter()

    def elapsed_time(self, end: Any, /) -> float:
        return float(max(end.at_s - self.at_s, 1e-9) * 1e3)


class HostCapture:
    def __init__(self, call: Callable[[], object], calls: int) -> None:
        self.call, self.calls, self.output = call, calls, call()

    def replay(self) -> None:
        for _ in range(self.calls):
            self.output = self.call()


class HostDevice:
    """Satisfies bench.gpu.runner.RunDevice with the host's clock."""

    def event(self) -> HostEvent:
        return HostEvent()

    def flush(self) -> None: ...

    def synchronize(self) -> None: ...

    def capture(self, call: Callable[[], object], calls: int) -> HostCapture:
        return HostCapture(call, calls)

    def is_alive(self) -> bool:
        return True

    def release_memory(self) -> None: ...

    def clocks(self) -> dict[str, float]:
        return {"t_s": time.monotonic()}

    def describe(self) -> dict[str, object]:
        return {"name": "pretended", "driver": None, "power_limit_w": None}


class HostBench:
    """The GPU candidates of an op, on CPU tensors."""

    def __init__(self, op: Any) -> None:
        self.name, self.dtypes, self.groups = op.name, ("bf16",), getattr(op, "groups", ())
        self.devices = ("cpu",)
        self.weight_dtypes = getattr(op, "weight_dtypes", ())
        self._op = op

    def peers_on(self, device: str) -> tuple[str, ...]:
        peers: tuple[str, ...] = self._op.peers_on("cuda")
        return peers

    def cases(self, device: str, dtype: str | None, given: Options) -> list[AttentionCase]:
        found: list[AttentionCase] = self._op.cases(device, dtype, given)
        return found

    def candidates(self, case: AnyCase, context: Context) -> list[Candidate]:
        found: list[Candidate]
        if self.name == "paged_attention":
            found = self._op.candidates(case, context)
            return found
        if self.name.startswith(
            ("quantize_int8", "rms_norm", "silu_mul", "paged_kv", "merge_attention_states", "sample")
        ):
            found = self._op.candidates(case, replace(context, isas=("generic",)))
            return found
        found = importlib.import_module(f"bench.gpu.{self.name}").candidates(case, context)
        return found


class Rehearsal(Target):
    torch_device = "cpu"
    kernel_limit_s = 20.0
    problems = ((5, 19, 70),)

    def library_problem(self, info: dict[str, Any]) -> str:
        from tests.support.backends import emu_ops

        return "this build has no emulator (CMake's LAMINA_EMULATOR)" if emu_ops() is None else ""

    def kernels(self) -> list[tuple[str, str]]:
        """The first kernel of every op for each arch."""
        first = {(op, kernel.split("_")[0]): (op, kernel) for op, kernel in reversed(super().kernels())}
        return sorted(first.values())

    def backend(self, op: str, kernel: str) -> Any:
        from tests.support.backends import EmulatedKernel, emu_ops

        emu_ops()  # loads the library
        return EmulatedKernel(kernel, True, op)

    def refusal(self, backend: Any) -> str:
        return ""

    def is_alive(self) -> bool:
        return True

    def prepare_tests(self) -> None:
        """Gives the tests a few kernels on the emulator as GPU backends, with a GPU's marker and ids."""
        import pytest

        from tests.support import backends

        def gpus(op: str) -> list[Any]:
            kernels = [kernel for name, kernel in self.kernels() if name == op]
            return [
                pytest.param(self.backend(op, kernel), id=f"{kernel}_gpu", marks=pytest.mark.gpu)
                for kernel in kernels
            ]

        def gpu_parameter(gpu: Any) -> Any:
            return pytest.param(self.backend(gpu.op, gpu.isa), id=f"{gpu.isa}_gpu", marks=pytest.mark.gpu)

        backends.gpus, backends.gpu_parameter = gpus, gpu_parameter

    def test_arguments(self) -> Sequence[str]:
        files = ("test_gemm_int8.py", "test_gemm_int4_cuda.py", "test_gemm_int4_int8_cuda.py")
        few = "(test_matches_reference and smallest) or test_weights_are_rounded or test_extreme"
        return ("-m", "gpu", "-k", few, *(f"tests/ops/{file}" for file in files))

    def bench_op(self, name: str) -> HostBench:
        return HostBench(load_op(name))

    def bench_device(self) -> RunDevice:
        return HostDevice()

    def rotation_bytes(self, device: Any, rotate_mib: int) -> int:
        return 1 << 16

    def protocol(self, samples: int) -> GpuProtocol:
        return GpuProtocol(samples=MIN_SAMPLES, warm_up_s=1e-5, replay_s=1e-5)

    def measure_ceilings(self, runner: GpuRunner) -> None:
        runner.measure_ceilings(self.torch_device, READ_BYTES, PEAK_EXTENT)


TARGET: Target = Rehearsal()
