"""The rates that torch's kernels reach on the GPU in this run: read bandwidth and matrix products."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bench.gpu.timing import Device, first_line
from bench.roofline import Arithmetic, Ceilings, ReadCeiling

READ_BYTES = 1 << 30  # beyond any L2, and long enough that the start of the kernel does not show
PEAK_EXTENT = 8192  # m = n = k of the products
WARM_UPS = 3


def _seconds(device: Device, call: Callable[[], object]) -> float:
    start, end = device.event(), device.event()
    start.record()
    call()
    end.record()
    device.synchronize()
    return start.elapsed_time(end) * 1e-3


class GpuReadProbe:
    """Two probes, each a ReadCeiling: a sum, and a copy that counts the bytes it reads and writes."""

    def __init__(self, ceilings: Ceilings, torch_device: str, nbytes: int = READ_BYTES) -> None:
        self._source = torch.ones(nbytes // 4, dtype=torch.float32, device=torch_device)
        self._target = torch.empty_like(self._source)
        size = self._source.nbytes
        self._probes: list[tuple[ReadCeiling, int, Callable[[], object]]] = [
            (ReadCeiling(size, probe="torch.sum f32"), size, lambda: torch.sum(self._source)),
            (
                ReadCeiling(size, probe="copy_, bytes read and written"),
                2 * size,
                lambda: self._target.copy_(self._source),
            ),
        ]
        ceilings.reads.extend(ceiling for ceiling, _, _ in self._probes)

    def sample(self, device: Device, count: int) -> None:
        for ceiling, moved, call in self._probes:
            for _ in range(count):
                ceiling.samples.append(moved / _seconds(device, call))


def _int8(rows: int, columns: int, torch_device: str) -> Tensor:
    """Normal values, quantised to their maximum: zeros would draw less power and run faster."""
    x = torch.randn(rows, columns, device=torch_device)
    return x.mul_(127 / x.abs().amax(1, keepdim=True)).round_().to(torch.int8)


def measure_gpu_peaks(
    ceilings: Ceilings, device: Device, torch_device: str, extent: int = PEAK_EXTENT, samples: int = 20
) -> None:
    """Fills ops_per_s: the best of `samples` products. f16 products are set against the bf16 peak."""

    def int8_call() -> Callable[[], object]:
        a, w = _int8(extent, extent, torch_device), _int8(extent, extent, torch_device)
        return lambda: torch._int_mm(a, w.t())

    def bf16_call() -> Callable[[], object]:
        a, w = (torch.randn(extent, extent, device=torch_device, dtype=torch.bfloat16) for _ in range(2))
        return lambda: torch.nn.functional.linear(a, w)

    peaks: list[tuple[Arithmetic, str, Callable[[], Callable[[], object]]]] = [
        ("int8", f"torch_int_mm {extent}^3", int8_call),
        ("bf16", f"torch_linear {extent}^3", bf16_call),
    ]
    for kind, name, make in peaks:
        try:
            call = make()
            for _ in range(WARM_UPS):
                call()
            best = min(_seconds(device, call) for _ in range(samples))
        except RuntimeError as error:
            ceilings.missing[f"{kind}/{name}"] = first_line(error)
            continue
        ceilings.ops_per_s.setdefault(kind, {})[name] = 2 * extent**3 / best
