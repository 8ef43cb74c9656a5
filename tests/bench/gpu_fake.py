"""A GPU with a clock of its own, for tests: calls take the time that they say, nothing else takes any."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class FakeEvent:
    device: FakeDevice
    at_ms: float | None = None

    def record(self) -> None:
        self.at_ms = self.device.now_ms
        self.device.now_ms += self.device.step_ms
        self.device.log.append("record")

    def elapsed_time(self, end: FakeEvent, /) -> float:
        assert not self.device.pending, "an event was read before the GPU was waited for"
        assert self.at_ms is not None
        assert end.at_ms is not None
        return end.at_ms - self.at_ms


@dataclass
class FakeCapture:
    device: FakeDevice
    ms: float
    output: object = None

    def replay(self) -> None:
        self.device.log.append("replay")
        self.device.advance(self.ms)


@dataclass
class FakeDevice:
    """`step_ms`: what an event takes, so that calls that do not move this clock have a time."""

    step_ms: float = 0.01
    now_ms: float = 0.0
    pending: bool = False
    alive: bool = True
    log: list[str] = field(default_factory=list)
    captured: list[int] = field(default_factory=list)  # calls of each graph

    def advance(self, ms: float) -> None:
        self.now_ms += ms
        self.pending = True

    def event(self) -> FakeEvent:
        return FakeEvent(self)

    def flush(self) -> None:
        self.log.append("flush")
        self.advance(50.0)

    def synchronize(self) -> None:
        self.pending = False

    def capture(self, call: Callable[[], object], calls: int) -> FakeCapture:
        before = self.now_ms
        self.captured.append(calls)
        output: object = None
        for _ in range(calls):
            output = call()
        took, self.now_ms = self.now_ms - before, before  # capturing runs nothing
        return FakeCapture(self, took or calls * self.step_ms, output)

    def is_alive(self) -> bool:
        return self.alive

    def release_memory(self) -> None:
        self.log.append("release")

    def clocks(self) -> dict[str, float]:
        return {"t_s": 1.0, "sm_mhz": 1000.0}

    def describe(self) -> dict[str, object]:
        return {"name": "fake", "driver": "1", "power_limit_w": 100.0, "l2_bytes": 1 << 20}
