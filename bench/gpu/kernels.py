"""Runs every CUDA kernel in its own process, up to eight at once, with a time limit: a stage of gpu_check.py.

    python bench/gpu/kernels.py --json smoke.json --logs LOGS [--only gemm_int8] [--seconds 60]
    python bench/gpu/kernels.py --json memcheck.json --logs LOGS --smoke smoke.json --tool memcheck

A kernel that hangs, crashes or accesses memory illegally ends only its own process, and gets a row. The file
is written after every row, and a second run repeats the kernels that were not right. With --tool the
processes run under compute-sanitizer: kernels that --smoke found wrong come first, and those that hung do not
run.
Exit status: 0 every kernel is right; 1 a kernel is not; 4 --seconds are over; 5 there was nothing to run.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

if __package__ in (None, ""):  # run as a file: make `bench` importable, from the checkout
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from bench.gpu import target as targets
from bench.gpu import verdicts
from bench.gpu.processes import end, exit_on_sigterm, start
from bench.gpu.stages import EXIT_FAILED, EXIT_NO_TIME, EXIT_NOTHING
from bench.gpu.verdicts import CRASHED, FINDINGS, HUNG, READY, RIGHT, RUNS, Verdict, marked

ROOT = Path(__file__).resolve().parents[2]
AT_ONCE = min(8, os.cpu_count() or 1)
START_LIMIT_S = 90.0  # until a process has imported everything; eight start at once from a cold disk
TOOL_SLOWDOWN = 6.0  # factor on the time limit: compute-sanitizer instruments every kernel
TOOL_EXIT = 99
# torch and lamina ask the driver for what it may lack; memcheck would count each refusal as an error.
TOOL_OPTIONS = {"memcheck": ("--report-api-errors", "no")}
TOOL_UNUSABLE = "compute-sanitizer: Device not supported"

WORTH_A_TOOL = (verdicts.ILLEGAL_ACCESS, verdicts.CUDA_ERROR, verdicts.WRONG, CRASHED)
Known = dict[tuple[str, str], Verdict]


@dataclass
class Job:
    """A kernel and, once started, its process."""

    op: str
    kernel: str
    log: Path
    command: tuple[str, ...]
    process: subprocess.Popen[bytes] | None = None
    began: float = field(default_factory=time.monotonic)
    ready: float | None = None
    verdict: Verdict | None = None

    def start(self, env: dict[str, str]) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            self.process = start(self.command, log, env, ROOT)
        self.began = time.monotonic()

    def watch(self, limit_s: float) -> None:
        """Sets the verdict once the process has ended or runs too long."""
        assert self.process is not None
        now, code = time.monotonic(), self.process.poll()
        text = self.log.read_text(errors="replace")
        if self.ready is None and any(word == READY for word, _ in marked(text)):
            self.ready = now
        is_late = now - self.began > START_LIMIT_S if self.ready is None else now - self.ready > limit_s
        if code is not None or is_late:
            found, detail = judge(text, code)
            self.verdict = Verdict(self.op, self.kernel, found, detail, round(now - self.began, 1))


def judge(text: str, code: int | None) -> tuple[str, str]:
    """The verdict of a process from its output and its exit code; the code is None if it had to be ended."""
    said = [(word, detail) for word, detail in marked(text) if word not in (READY, RUNS)]
    lines = [line.strip() for line in text.splitlines() if line.strip() and verdicts.MARK not in line]
    problems = [detail for word, detail in marked(text) if word == RUNS]
    last = (
        f"in {problems[-1]}"
        if problems
        else f"before any problem: {lines[-1][:200] if lines else 'no output'}"
    )
    if code is None:
        return HUNG, last
    if "Device not supported" in text:
        return verdicts.REFUSED, TOOL_UNUSABLE
    if code == TOOL_EXIT:
        findings = [line.lstrip("= ") for line in lines if re.match(r"=+ +\w", line)]
        notable = [line for line in findings if re.search(r"Invalid|Error|hazard|race|SUMMARY|Leaked", line)]
        return FINDINGS, "; ".join(dict.fromkeys([*notable[:1], *notable[-1:]]))[:300]
    # A verdict that the process has printed stays valid if a lost context then aborts the process.
    if said and (code == 0 or said[-1][0] != RIGHT):
        return said[-1]
    by = f"by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
    return CRASHED, f"{by} {last}"


def end_jobs(jobs: Sequence[Job]) -> None:
    end(*[job.process for job in jobs if job.process], ask=False)


def run_jobs(
    jobs: Sequence[Job], env: dict[str, str], limit_s: float, deadline: float, known: Known, path: Path
) -> int:
    """Runs AT_ONCE jobs at a time and adds verdicts to `known` and the file. Returns how many did not end."""
    waiting, running = deque(jobs), list[Job]()
    try:
        while waiting or running:
            while waiting and len(running) < AT_ONCE and time.monotonic() < deadline:
                job = waiting.popleft()
                job.start(env)
                running.append(job)
            for job in running:
                job.watch(limit_s)
                if verdict := job.verdict:
                    known[job.op, job.kernel] = verdict
                    verdicts.write(path, list(known.values()))
                    print(f"{verdict.name}: {verdict.verdict}  {verdict.detail}", flush=True)
            end_jobs([job for job in running if job.verdict])
            running = [job for job in running if not job.verdict]
            if time.monotonic() >= deadline:
                break
            time.sleep(0.05)
    finally:  # also where this program is asked to end: a tool's death does not end what it runs
        end_jobs(running)
    return len(waiting) + len(running)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="bench/gpu/kernels.py"
    )
    made.add_argument("--json", type=Path, required=True, help="file of verdicts, continued if it exists")
    made.add_argument("--logs", type=Path, required=True, help="folder that gets a log per kernel")
    made.add_argument("--only", help="one op")
    made.add_argument("--smoke", type=Path, help="file of verdicts of the run without a tool")
    made.add_argument("--tool", help="tool of compute-sanitizer: memcheck, racecheck, ...")
    made.add_argument("--sanitizer", default="compute-sanitizer", help="path of compute-sanitizer")
    made.add_argument("--seconds", type=float, default=float("inf"), help="time limit of the whole run")
    return made


def by_name(found: Sequence[Verdict]) -> Known:
    return {(verdict.op, verdict.kernel): verdict for verdict in found}


def for_tool(kernels: Sequence[tuple[str, str]], smoke: Known) -> list[tuple[str, str]]:
    """The kernels in the order in which they run under a tool: wrong ones first, without those that hang."""
    worth = [key for key in kernels if key not in smoke or smoke[key].verdict in (RIGHT, *WORTH_A_TOOL)]
    return sorted(worth, key=lambda key: key not in smoke or smoke[key].is_fine)


def main(arguments: Sequence[str] | None = None) -> int:
    deadline = time.monotonic()
    wanted = parser().parse_args(arguments)
    deadline += wanted.seconds
    target = targets.load()
    known = by_name(verdicts.load(wanted.json))
    kernels = [key for key in target.kernels() if wanted.only in (None, verdicts.suite_of(key[0]))]
    # Kernels that have not run yet come first, then those that were not right in an earlier run.
    waiting = [key for key in kernels if key not in known or not known[key].is_fine]
    waiting.sort(key=lambda key: key in known)
    prefix: tuple[str, ...] = ()
    env = {"OMP_NUM_THREADS": "1"}
    if wanted.tool:
        options = ("--tool", wanted.tool, "--error-exitcode", str(TOOL_EXIT), "--kernel-name", "kns=lamina")
        prefix = (wanted.sanitizer, *options, "--target-processes", "application-only")
        prefix += TOOL_OPTIONS.get(wanted.tool, ())
        waiting = for_tool(waiting, by_name(verdicts.load(wanted.smoke)))
        # Without torch's cache every tensor is one allocation, so memcheck sees an access beyond its end.
        env["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    if not waiting:
        print("every kernel was right in an earlier run" if known else "no kernel to run")
        return 0 if known else EXIT_NOTHING
    child = (sys.executable, str(ROOT / "bench" / "gpu" / "one_kernel.py"))
    jobs = [
        Job(op, kernel, wanted.logs / f"{op}_{kernel}.log", (*prefix, *child, op, kernel))
        for op, kernel in waiting
    ]
    limit_s = target.kernel_limit_s * (TOOL_SLOWDOWN if wanted.tool else 1)
    left = run_jobs(jobs, env, limit_s, deadline, known, wanted.json)
    bad = [verdict for verdict in known.values() if not verdict.is_fine]
    for verdict in bad:
        print(f"NOT RIGHT  {verdict.name}: {verdict.verdict}  {verdict.detail}")
    print(f"{len(known)} kernels: {len(known) - len(bad)} right, {len(bad)} not, {left} not run", flush=True)
    if bad and all(verdict.detail == TOOL_UNUSABLE for verdict in bad):
        print(TOOL_UNUSABLE)
        return EXIT_NOTHING
    return EXIT_FAILED if bad else EXIT_NO_TIME if left else 0


if __name__ == "__main__":
    exit_on_sigterm()
    sys.exit(main())
