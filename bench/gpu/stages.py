"""Runs the stages of gpu_check.py: commands with a log and a time limit. A failed stage ends no other."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from bench.gpu.processes import Stopped, run

PASSED, FAILED, TIMED_OUT, SKIPPED, PARTIAL = "passed", "failed", "timed out", "skipped", "partial"
ADVICE = "advice"  # a finding of a stage that only advises
# Exit statuses of the programs of a stage; every other status is a failure.
EXIT_FAILED, EXIT_LOST, EXIT_NO_TIME, EXIT_NOTHING = 1, 3, 4, 5
STATUS = {0: PASSED, EXIT_NO_TIME: PARTIAL, EXIT_NOTHING: SKIPPED}
RETRIES = 3  # of a command that lost the device, or that printed nothing for stall_s seconds
SECONDS = "{seconds}"  # in a command: replaced by the seconds left of the stage's limit, less MARGIN_S
LEAST_S = 35.0  # of a stage, taken from later stages if need be: in less time it could only start
MARGIN_S = 15.0  # for the start of Python and torch
TAIL_CHARACTERS = 2000


@dataclass(frozen=True)
class Stage:
    """Commands one after the other, up to the first that fails."""

    name: str
    commands: tuple[tuple[str, ...], ...]
    share: float  # of the time; time that earlier stages do not use is shared among the later ones
    env: Mapping[str, str] = field(default_factory=dict)
    stall_s: float = float("inf")  # longest silence of a command
    advises: bool = False  # a failure has the status "advice"
    skip: str = ""  # why the stage cannot run here
    needs: str = ""  # a stage that must have passed


@dataclass(frozen=True)
class Outcome:
    name: str
    status: str
    seconds: float = 0.0
    detail: str = ""  # the last line of the log, or why it was skipped
    log: str = ""
    tail: str = ""
    resumed: bool = False  # the stage ran in an earlier run

    def to_json(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True)
class Watch:
    """Callbacks of a stage: when it begins (with its limit), every tick_s (with its log), when it ends."""

    begun: Callable[[Stage, float], object] = lambda stage, limit_s: None
    tick: Callable[[Path], object] = lambda log: None
    ended: Callable[[Outcome], object] = lambda outcome: None
    tick_s: float = 1.0


def last_line(text: str) -> str:
    """With words in it: no rule below a table, and no command."""
    lines = [
        line.strip() for line in text.splitlines() if re.search(r"\w", line) and not line.startswith("$ ")
    ]
    return lines[-1][:200] if lines else ""


def run_stage(
    stage: Stage,
    limit_s: float,
    log_path: Path,
    cwd: Path,
    watch: Watch | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    start, watch = clock(), watch or Watch()
    log_path.parent.mkdir(parents=True, exist_ok=True)
    status, why = PASSED, ""
    with log_path.open("wb") as log:
        for command in stage.commands:
            for _ in range(RETRIES + 1):
                left = limit_s - (clock() - start)
                full = [part.replace(SECONDS, f"{max(left - MARGIN_S, 1):.0f}") for part in command]
                code, why = EXIT_LOST, ""
                try:
                    code = run(
                        full,
                        log,
                        left,
                        stage.env,
                        cwd,
                        stall_s=stage.stall_s,
                        tick=lambda: watch.tick(log_path),
                        tick_s=watch.tick_s,
                    )
                except Stopped as error:
                    why = f"{error}: "
                if code != EXIT_LOST or clock() - start >= limit_s:
                    break
            status = TIMED_OUT if why else STATUS.get(code, ADVICE if stage.advises else FAILED)
            if status != PASSED:
                break
    text = log_path.read_text(errors="replace")
    detail = why + last_line(text)
    return Outcome(stage.name, status, clock() - start, detail, log_path.name, text[-TAIL_CHARACTERS:])


def limits(stages: Sequence[Stage], left_s: float) -> list[float]:
    """Seconds of each stage if every stage uses its whole share."""
    total = sum(stage.share for stage in stages) or 1.0
    return [max(0.0, left_s) * stage.share / total for stage in stages]


def run_stages(
    stages: Sequence[Stage],
    folder: Path,
    cwd: Path,
    total_s: float,
    earlier: Mapping[str, Outcome],
    watch: Watch | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> list[Outcome]:
    """Runs the stages and returns all outcomes in order. Stages that passed in an earlier run do not run."""
    start, watch = clock(), watch or Watch()
    outcomes: dict[str, Outcome] = {}
    runnable = [stage for stage in stages if not stage.skip and not _has_passed(earlier.get(stage.name))]
    for stage in stages:
        before = earlier.get(stage.name)
        if stage.skip:
            outcome = Outcome(stage.name, SKIPPED, detail=stage.skip)
        elif before and _has_passed(before):
            outcome = replace(before, resumed=True)
        elif stage.needs and not _has_passed(outcomes.get(stage.needs)):
            outcome = Outcome(stage.name, SKIPPED, detail=f"needs the stage {stage.needs}")
        elif (left := total_s - (clock() - start)) < LEAST_S / 2:
            outcome = Outcome(stage.name, PARTIAL, detail="no time was left")
        else:
            limit = min(max(limits(runnable, left)[0], LEAST_S), left)
            watch.begun(stage, limit)
            outcome = run_stage(stage, limit, folder / "logs" / f"{stage.name}.log", cwd, watch, clock)
        runnable = [later for later in runnable if later is not stage]
        outcomes[stage.name] = outcome
        watch.ended(outcome)
    return list(outcomes.values())


def _has_passed(outcome: Outcome | None) -> bool:
    return outcome is not None and outcome.status == PASSED
