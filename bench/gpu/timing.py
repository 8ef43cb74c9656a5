"""How long a call takes on a GPU, for several implementations in one process, by two protocols.

do_bench  Before every sample a buffer of more than twice the L2 is written, so that weights, activations and
          outputs are cold; then events around one call. The call is launched from Python: where the GPU waits
          for the launches, the wait is in the sample.
graph     Calls over rotating weights are captured in a CUDA graph; a sample is one replay over its calls. No
          launch from the host is in it; activations stay hot, as the layer before has just written them.

Every round takes one sample of every implementation, in a seeded random order, and waits for the GPU at its
end. Nothing here needs torch: a device is what satisfies `Device`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Protocol

from bench.timing import MIN_SAMPLES, Timing

PROTOCOLS = ("do_bench", "graph")


class Event(Protocol):
    def record(self) -> object: ...

    def elapsed_time(self, end: Event, /) -> float:
        """Milliseconds from this event to `end`; both have passed."""


class Capture(Protocol):
    """Calls in a graph."""

    output: object  # of the last call; a replay rewrites it

    def replay(self) -> object: ...


class Device(Protocol):
    def event(self) -> Event: ...

    def flush(self) -> None:
        """Writes more than twice the L2."""

    def synchronize(self) -> None: ...

    def capture(self, call: Callable[[], object], calls: int) -> Capture: ...


@dataclass(frozen=True)
class GpuProtocol:
    samples: int = 50
    warm_up_s: float = 0.02  # per implementation, at least three calls
    replay_s: float = 2e-3  # a replay lasts about as long, or one turn of the copies if that is longer
    max_calls: int = 512  # in one graph
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < MIN_SAMPLES:
            raise ValueError(f"samples: got {self.samples}, a median needs at least {MIN_SAMPLES}")

    def to_json(self) -> dict[str, object]:
        return {
            **asdict(self),
            "order": "one sample of every implementation per round, order drawn anew",
            "do_bench": "a write of more than twice the L2 before every sample; events around one call",
            "graph": "events around one replay of calls_per_sample captured calls over rotating copies",
        }


@dataclass(frozen=True)
class GpuSubject:
    call: Callable[[], object]
    copies: int = 1  # that successive calls rotate through


@dataclass
class Timed:
    """By protocol, the timing or why there is none; and what the captured graph computed last."""

    timings: dict[str, Timing] = field(default_factory=dict)
    not_timed: dict[str, str] = field(default_factory=dict)
    graph_output: object = None


def calls_per_graph(call_s: float, copies: int, protocol: GpuProtocol) -> int:
    """Whole turns of the copies that last about replay_s; less than one turn only above max_calls."""
    wanted = max(1, round(protocol.replay_s / max(call_s, 1e-7)))
    turns = max(1, min(-(-wanted // copies), protocol.max_calls // copies))
    return min(turns * copies, protocol.max_calls)


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _timed(device: Device, body: Callable[[], object]) -> tuple[Event, Event]:
    start, end = device.event(), device.event()
    start.record()
    body()
    end.record()
    return start, end


def _seconds(events: tuple[Event, Event]) -> float:
    return events[0].elapsed_time(events[1]) * 1e-3


def _warm_up(subject: GpuSubject, protocol: GpuProtocol, device: Device) -> float:
    """Calls until the time is spent; returns about how long a call takes."""

    def three() -> None:
        for _ in range(3):
            subject.call()

    spent, best = 0.0, float("inf")
    while True:
        events = _timed(device, three)
        device.synchronize()
        taken = max(_seconds(events), 1e-7)
        spent, best = spent + taken, min(best, taken / 3)
        if spent >= protocol.warm_up_s:
            return best


def _rounds(
    bodies: Sequence[Callable[[], object]],
    protocol: GpuProtocol,
    device: Device,
    before: Callable[[], object] | None,
    halfway: Callable[[], object] | None,
) -> list[list[float]]:
    """Seconds of every body, a list of samples each. `halfway` runs while the middle round is under way."""
    samples: list[list[float]] = [[] for _ in bodies]
    order = list(range(len(bodies)))
    shuffle = random.Random(protocol.seed).shuffle
    for number in range(protocol.samples):
        shuffle(order)
        events = {}
        for i in order:
            if before:
                before()
            events[i] = _timed(device, bodies[i])
        if halfway and number == protocol.samples // 2:
            halfway()
        device.synchronize()
        for i, pair in events.items():
            samples[i].append(_seconds(pair))
    return samples


def measure(
    subjects: Sequence[GpuSubject],
    protocol: GpuProtocol,
    device: Device,
    halfway: Callable[[], object] | None = None,
) -> list[Timed]:
    """Both protocols for every subject, one after the other. A failed capture is a reason, no error."""
    results = [Timed() for _ in subjects]
    estimates = [_warm_up(subject, protocol, device) for subject in subjects]
    flushed = _rounds([subject.call for subject in subjects], protocol, device, device.flush, None)
    for result, samples in zip(results, flushed, strict=True):
        result.timings["do_bench"] = Timing.of(samples, calls=1)

    captures: list[tuple[Timed, int, Capture]] = []
    for subject, result, estimate in zip(subjects, results, estimates, strict=True):
        calls = calls_per_graph(estimate, subject.copies, protocol)
        try:
            captures.append((result, calls, device.capture(subject.call, calls)))
        except RuntimeError as error:
            result.not_timed["graph"] = f"capture failed: {first_line(error)}"
    for _, _, capture in captures:
        capture.replay()
    device.synchronize()
    replays = [capture.replay for _, _, capture in captures]
    replayed = _rounds(replays, protocol, device, None, halfway)
    for (result, calls, capture), samples in zip(captures, replayed, strict=True):
        result.timings["graph"] = Timing.of([sample / calls for sample in samples], calls=calls)
        result.graph_output = capture.output
    return results
