"""Stages of gpu_check.py: commands with a log and a limit each; a failed stage does not end the run."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO

PASSED, FAILED, TIMED_OUT, SKIPPED, PARTIAL = "passed", "failed", "timed out", "skipped", "partial"
DONE = (PASSED, "no tests")  # what a second run does not repeat
SECONDS = "{seconds}"  # in a command: what is left of the stage's limit
MARGIN_S = 15.0  # between what a command is told and its limit: the start of Python and torch
GRACE_S = 5.0  # between asking a command to end and ending it
TAIL_CHARACTERS = 2000


@dataclass(frozen=True)
class Stage:
    """Commands one after the other, up to the first that fails."""

    name: str
    commands: tuple[tuple[str, ...], ...]
    share: float  # of the time; what earlier stages leave over is shared out among the later
    env: Mapping[str, str] = field(default_factory=dict)
    codes: Mapping[int, str] = field(default_factory=dict)  # exit codes that are not failures, and the status
    retry_code: int | None = None  # an exit code after which the command is run again, up to RETRIES times
    skip: str = ""  # why it cannot run here
    needs: str = ""  # a stage that must not have failed


RETRIES = 3


@dataclass(frozen=True)
class Outcome:
    name: str
    status: str
    seconds: float = 0.0
    detail: str = ""  # the last line of the log, or why it was skipped
    log: str = ""
    tail: str = ""
    resumed: bool = False  # of an earlier run

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the command and what it started: they are a process group of their own."""
    for number, wait_s in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, GRACE_S)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        try:
            process.wait(wait_s)
        except subprocess.TimeoutExpired:
            continue
        if number == signal.SIGTERM:
            continue  # children may have outlived the one that was waited for
        return


def run_command(
    command: Sequence[str], log: IO[bytes], limit_s: float, env: Mapping[str, str], cwd: Path
) -> int | None:
    """The exit code; None: it took longer than the limit and was ended."""
    log.write(f"$ {' '.join(command)}\n".encode())
    log.flush()
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env={**os.environ, **env},
            start_new_session=True,
        )
    except OSError as error:
        log.write(f"{error}\n".encode())
        return 127
    try:
        return process.wait(max(limit_s, 0.1))
    except subprocess.TimeoutExpired:
        _end(process)
        return None
    except BaseException:
        _end(process)
        raise


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("$ ")]
    return lines[-1][:200] if lines else ""


def run_stage(
    stage: Stage, limit_s: float, log_path: Path, cwd: Path, clock: Callable[[], float] = time.monotonic
) -> Outcome:
    start = clock()
    log_path.parent.mkdir(parents=True, exist_ok=True)
    status = PASSED
    with log_path.open("wb") as log:
        for command in stage.commands:
            for _ in range(RETRIES + 1):
                left = limit_s - (clock() - start)
                told = f"{max(left - MARGIN_S, 1):.0f}"
                full = [part.replace(SECONDS, told) for part in command]
                code = run_command(full, log, left, stage.env, cwd)
                if code is None or code != stage.retry_code:
                    break
            status = _status(stage, code)
            if status != PASSED:
                break
    text = log_path.read_text(errors="replace")
    detail = _last_line(text)
    if status == TIMED_OUT:
        detail = f"stopped after {limit_s:.0f} s: {detail}"
    return Outcome(stage.name, status, clock() - start, detail, log_path.name, text[-TAIL_CHARACTERS:])


def _status(stage: Stage, code: int | None) -> str:
    if code is None:
        return TIMED_OUT
    return PASSED if code == 0 else stage.codes.get(code, FAILED)


def limits(stages: Sequence[Stage], left_s: float) -> list[float]:
    """Seconds of each stage if every stage takes all of its own."""
    total = sum(stage.share for stage in stages) or 1.0
    return [max(0.0, left_s) * stage.share / total for stage in stages]


def run_stages(
    stages: Sequence[Stage],
    folder: Path,
    cwd: Path,
    total_s: float,
    earlier: Mapping[str, Outcome],
    report: Callable[[Outcome | Stage, float], None],
    clock: Callable[[], float] = time.monotonic,
) -> list[Outcome]:
    """All outcomes, in order. `report` hears of a stage (with its limit) as it begins and as it ends."""
    start = clock()
    outcomes: dict[str, Outcome] = {}
    runnable = [s for s in stages if not s.skip and not _is_done(earlier.get(s.name))]
    for stage in stages:
        before = earlier.get(stage.name)
        if stage.skip:
            outcome = Outcome(stage.name, SKIPPED, detail=stage.skip)
        elif before and _is_done(before):
            outcome = replace(before, resumed=True)
        elif stage.needs and outcomes.get(stage.needs, _NONE).status not in DONE:
            outcome = Outcome(stage.name, SKIPPED, detail=f"needs the stage {stage.needs}")
            runnable.remove(stage)
        else:
            limit = limits(runnable, total_s - (clock() - start))[0]
            runnable.remove(stage)
            report(stage, limit)
            outcome = run_stage(stage, limit, folder / "logs" / f"{stage.name}.log", cwd, clock)
        outcomes[stage.name] = outcome
        report(outcome, 0.0)
    return list(outcomes.values())


_NONE = Outcome("", FAILED)


def _is_done(outcome: Outcome | None) -> bool:
    return outcome is not None and outcome.status in DONE


def load_outcomes(path: Path, fingerprint: str) -> dict[str, Outcome]:
    """Of an earlier summary.json with the same fingerprint; nothing where there is none."""
    try:
        content = json.loads(path.read_text())
        if content["fingerprint"] != fingerprint:
            return {}
        return {entry["name"]: Outcome(**{**entry, "resumed": False}) for entry in content["stages"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
