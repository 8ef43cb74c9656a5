"""How long a call takes, for several implementations in one process, on a machine that is never quite quiet.

Every round takes one sample of every implementation, in a seeded random order: a slow minute falls on all of
them. Before a sample the process waits until its own threads are idle (the pools of different libraries
spin for a while after a call and would take cores from the next), and untimed calls wake the pool of the
one to be measured. A sample is the mean of back-to-back calls, as many as last about `sample_s`.

With a quiet budget, a sample also waits until no other process runs, and is taken again when it was disturbed
(a thread of ours was preempted, or another process runs at its end) until the budget is spent. The choice
depends on what the scheduler did, never on the time measured.
"""

from __future__ import annotations

import random
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.affinity import pinned_threads

MIN_SAMPLES = 30


@dataclass(frozen=True)
class Protocol:
    samples: int = MIN_SAMPLES
    long_call_s: float = 0.2  # where a call of any implementation takes longer, long_samples are taken
    long_samples: int = 7
    sample_s: float = 0.01
    warm_up_s: float = 0.05  # per implementation, at least one call
    settle_s: float = 0.2  # longest wait for idle threads before a sample
    wake_s: float = 0.02  # untimed calls before a sample, at least one
    quiet_s: float = 0.0  # longest wait for other processes, all samples of a case together
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < MIN_SAMPLES:
            raise ValueError(f"samples: got {self.samples}, a median needs at least {MIN_SAMPLES}")

    def rounds(self, call_s: float) -> int:
        """How many samples are taken where the slowest call lasts call_s."""
        return self.samples if call_s <= self.long_call_s else self.long_samples

    def to_json(self) -> dict[str, object]:
        return {
            **asdict(self),
            "order": "one sample of every implementation per round, order drawn anew",
            "sample": "mean of back-to-back calls after an idle wait and wake_s of untimed calls",
            "threads": "pinned, one a core",
            "allocator": "freed memory stays in the process",
        }


@dataclass(frozen=True)
class Subject:
    """One thing to time. `select` is untimed and runs before each of its samples (it forces an ISA)."""

    call: Callable[[], object]
    select: Callable[[], None] | None = None


@dataclass(frozen=True)
class Timing:
    median_us: float
    iqr_us: float
    calls: int  # per sample
    unsettled: int  # samples that began with other threads of this process still busy
    disturbed: int  # samples that were kept although they were disturbed
    samples: int

    @staticmethod
    def of(seconds: Sequence[float], calls: int, unsettled: int = 0, disturbed: int = 0) -> Timing:
        low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
        return Timing(middle * 1e6, (high - low) * 1e6, calls, unsettled, disturbed, len(seconds))


def settle(longest_s: float) -> bool:
    """Waits until this process uses less than a tenth of a core; False when `longest_s` passed first.

    A thread that spins uses no core while another process has it, but it waits for one.
    """
    step = 0.0005
    end = time.perf_counter() + longest_s
    while time.perf_counter() < end:
        wall, used = time.perf_counter(), time.process_time()
        time.sleep(step)
        is_idle = time.process_time() - used < 0.1 * (time.perf_counter() - wall)
        if is_idle and own_running() <= 1:  # the one that looks
            return True
    return False


def others_running() -> int:
    """How many threads of other processes run or wait for a core now; 0 where the system does not say."""
    try:
        running = int(Path("/proc/loadavg").read_text().split()[3].split("/")[0])
    except OSError:
        return 0
    return max(0, running - own_running())


def own_running() -> int:
    """How many threads of this process run or wait for a core now; 0 where the system does not say."""
    own = 0
    for status in Path("/proc/self/task").glob("*/stat"):
        try:
            # The state follows the thread's name, which may hold anything, in parentheses.
            own += status.read_text().rpartition(")")[2].split()[0] == "R"
        except OSError:  # it has ended
            continue
    return own


def preemptions() -> int:
    """How often the scheduler has taken a core from a thread of this process that still wanted it."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


class QuietBudget:
    """Waits for a quiet machine, as long as the budget lasts."""

    def __init__(self, seconds: float) -> None:
        self.left_s = seconds

    def wait(self) -> None:
        """Until two looks in a row, a few milliseconds apart, find no other process."""
        quiet_looks = 0
        while quiet_looks < 2 and self.left_s > 0:
            quiet_looks = quiet_looks + 1 if others_running() == 0 else 0
            time.sleep(0.003)
            self.left_s -= 0.003 if quiet_looks == 0 else 0.0

    def spend(self, seconds: float) -> bool:
        """Whether something that takes about `seconds` may be done once more."""
        is_left = self.left_s > 0
        self.left_s -= seconds
        return is_left


def _time_calls(call: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def _wake(call: Callable[[], object], seconds: float) -> None:
    """Untimed calls: the pool's threads wake up and the clock and the caches settle."""
    end = time.perf_counter() + seconds
    call()
    while time.perf_counter() < end:
        call()


def _warm_up(subject: Subject, protocol: Protocol) -> float:
    """Calls until the time is spent; returns the shortest call in seconds."""
    if subject.select:
        subject.select()
    subject.call()
    best = float("inf")
    end = time.perf_counter() + protocol.warm_up_s
    while True:
        best = min(best, _time_calls(subject.call, 1))
        if time.perf_counter() >= end:
            return max(best, 1e-7)


def measure(
    subjects: Sequence[Subject], protocol: Protocol, after_round: Callable[[], None] | None = None
) -> list[Timing]:
    """One Timing per subject. `after_round` runs once a round: the ceiling, under the same conditions."""
    call_s = [_warm_up(subject, protocol) for subject in subjects]
    calls = [max(1, round(protocol.sample_s / best)) for best in call_s]
    seconds: list[list[float]] = [[] for _ in subjects]
    unsettled = [0] * len(subjects)
    disturbed = [0] * len(subjects)
    budget = QuietBudget(protocol.quiet_s)
    order = list(range(len(subjects)))
    shuffle = random.Random(protocol.seed).shuffle
    with pinned_threads():
        for _ in range(protocol.rounds(max(call_s))):
            shuffle(order)
            for i in order:
                subject = subjects[i]
                if subject.select:
                    subject.select()
                while True:
                    budget.wait()
                    is_settled = settle(protocol.settle_s)
                    _wake(subject.call, protocol.wake_s)
                    before = preemptions()
                    sample = _time_calls(subject.call, calls[i])
                    is_disturbed = preemptions() > before or others_running() > 0
                    if not is_disturbed or not budget.spend(sample * calls[i]):
                        break
                unsettled[i] += not is_settled
                disturbed[i] += is_disturbed
                seconds[i].append(sample)
            if after_round:
                budget.wait()
                settle(protocol.settle_s)
                after_round()
    return [Timing.of(*measured) for measured in zip(seconds, calls, unsettled, disturbed, strict=True)]
