"""Starts, watches and ends commands as process groups that do not outlive the process that started them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

GRACE_S = 5.0  # between SIGTERM and SIGKILL
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)  # loaded before the fork, because the child must not load libraries


def start(
    command: Sequence[str], log: IO[bytes], env: Mapping[str, str], cwd: Path, **options: Any
) -> subprocess.Popen[bytes]:
    """Starts the command as a process group; its output goes to `log`. It dies when this process dies.

    It does not get its own session, because a rented machine may end only the session of the command it runs.
    """
    parent = os.getpid()

    def in_child() -> None:
        os.setpgid(0, 0)
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent ended before the call of prctl
            os._exit(1)

    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        cwd=cwd,
        env={**os.environ, **env},
        preexec_fn=in_child,
        **options,
    )


def end(*processes: subprocess.Popen[bytes], ask: bool = True) -> None:
    """Kills commands and their groups; with `ask` they get SIGTERM and GRACE_S seconds first.

    A driver call may delay the end of a process: GRACE_S seconds are enough for all of them together.
    """
    for number in (signal.SIGTERM, signal.SIGKILL) if ask else (signal.SIGKILL,):
        for process in processes:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, number)
        deadline = time.monotonic() + GRACE_S
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(deadline - time.monotonic(), 0))


def exit_on_sigterm() -> None:
    """SIGTERM raises SystemExit, so that a program can end what it has started."""

    def leave(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)


class Stopped(Exception):
    """A command that was ended; the message says why."""


def run(
    command: Sequence[str],
    log: IO[bytes],
    limit_s: float,
    env: Mapping[str, str],
    cwd: Path,
    *,
    stall_s: float = float("inf"),
    tick: Callable[[], object] = lambda: None,
    tick_s: float = 1.0,
) -> int:
    """Runs the command and returns its exit code, or 127 if it cannot be started. Raises Stopped after
    limit_s seconds, and after stall_s seconds without output. Calls `tick` about every tick_s seconds."""
    log.write(f"$ {' '.join(command)}\n".encode())
    log.flush()
    try:
        process = start(command, log, env, cwd)
    except OSError as error:
        log.write(f"{error}\n".encode())
        return 127
    began = last_output = time.monotonic()
    size = os.fstat(log.fileno()).st_size
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(max(min(tick_s, limit_s), 0.05))
            now, grown = time.monotonic(), os.fstat(log.fileno()).st_size
            if grown != size:
                size, last_output = grown, now
            if now - began >= limit_s:
                raise Stopped(f"stopped after {limit_s:.0f} s")
            if now - last_output >= stall_s:
                raise Stopped(f"stopped after {stall_s:.0f} s without output")
            tick()
    except BaseException:
        end(process)
        raise
