"""Runs the tests marked `gpu` in several processes and logs a line per test: a stage of gpu_check.py.

    python bench/gpu/run_tests.py --log tests.jsonl [--smoke smoke.json] [--only gemm_int8] [--seconds 120]

Each process is a pytest that gets one test after the other. A test that hangs or crashes ends only its own
process; after a hang or three crashes the other tests of its kernel are left out. The tests run in this
order, taking one test of each kernel in turn: tests of right kernels; tests of kernels that --smoke found not
right; tests that failed in an earlier run; tests that hung, crashed or never ended in one. Passed tests are
not repeated.
Exit status: 0 all passed; 1 a test did not pass; 4 --seconds are over; 5 no test ran, or all were skipped.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import selectors
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

if __package__ in (None, ""):  # run as a file: make `bench` importable, from the checkout
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from bench.cases import op_names
from bench.gpu import target as targets
from bench.gpu import tests_log, tests_worker, verdicts
from bench.gpu.processes import end, start
from bench.gpu.stages import EXIT_FAILED, EXIT_NO_TIME, EXIT_NOTHING
from bench.gpu.tests_log import CRASHED, FINE, HUNG, LEFT_OUT, NOT_RUN, PASSED, SKIPPED, STARTED, STOPPED

ROOT = Path(__file__).resolve().parents[2]
MOST_PROCESSES = 12  # each needs a CUDA context, and CPU time for the expected values
MOST_LOSSES = 3  # after the tests of a kernel ended so many processes, its other tests are left out
MOST_FALSE_STARTS = 3  # after so many processes ended before they collected tests, no more are started
PROGRESS_S = 10.0

RUN_AS_NEW = (STOPPED, LEFT_OUT, SKIPPED)  # outcomes of an earlier run; a skip may depend on the machine

Kernel = tuple[str, str] | None


@dataclass
class Worker:
    """A pytest process, and the test that runs in it."""

    process: subprocess.Popen[bytes]
    orders: IO[str]
    answers: IO[bytes]
    has_collected: bool = False
    test: str | None = None
    since: float = 0.0
    buffer: bytes = b""

    @staticmethod
    def start(arguments: Sequence[str], log: IO[bytes]) -> Worker:
        order_read, order_write = os.pipe()
        answer_read, answer_write = os.pipe()
        options = ("-p", "no:cacheprovider", "-p", tests_worker.__name__)
        command = (sys.executable, "-m", "pytest", *options, "--continue-on-collection-errors", *arguments)
        env = {
            tests_worker.VARIABLE: f"{order_read},{answer_write}",
            "OMP_NUM_THREADS": "2",
            "OPENBLAS_NUM_THREADS": "2",
            # A plugin that happens to be installed costs time, and may need the reporter that ours removes.
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        }
        process = start(command, log, env, ROOT, pass_fds=(order_read, answer_write))
        os.close(order_read)
        os.close(answer_write)
        os.set_blocking(answer_read, False)
        orders = os.fdopen(order_write, "w", buffering=1)
        return Worker(process, orders, os.fdopen(answer_read, "rb", buffering=0))

    def lines(self) -> list[Any] | None:
        """The answers since the last call; None once the process has ended."""
        chunk = self.answers.read(1 << 20)
        if chunk == b"":
            return None
        *whole, self.buffer = (self.buffer + (chunk or b"")).split(b"\n")
        return [json.loads(line) for line in whole]

    def order(self, test: str) -> None:
        self.test, self.since = test, time.monotonic()
        with contextlib.suppress(BrokenPipeError):  # the process has just ended: the next read shows it
            self.orders.write(json.dumps(test) + "\n")

    def close(self) -> None:
        for pipe in (self.orders, self.answers):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def is_about(test: str, kernel: Kernel, only: str | None) -> bool:
    """Whether a test belongs to the op `only`, by its kernel, or else by the longest op in its name."""
    if only is None:
        return True
    named = sorted((op for op in op_names() if op in test), key=len)
    op = verdicts.suite_of(kernel[0] if kernel else named[-1] if named else "")
    return op == only


def in_order(
    collected: Sequence[tuple[str, Kernel]], earlier: Mapping[str, tests_log.Entry], bad: set[tuple[str, str]]
) -> list[str]:
    """The tests that must still run, in the order of the module docstring."""
    rank: Counter[Kernel] = Counter()
    keyed: list[tuple[int, bool, int, int, str]] = []
    for test, kernel in collected:
        before = earlier.get(test, {}).get("outcome")
        if before == PASSED:
            continue
        trouble = 0 if before in (None, *RUN_AS_NEW) else 1 if before == tests_log.FAILED else 2
        keyed.append((trouble, kernel in bad, rank[kernel], len(keyed), test))
        rank[kernel] += 1
    return [test for *_, test in sorted(keyed)]


@dataclass
class Run:
    log: Path
    only: str | None
    bad: set[tuple[str, str]]
    limit_s: float
    earlier: dict[str, tests_log.Entry]
    kernels: dict[str, Kernel] = field(default_factory=dict)
    waiting: deque[str] | None = None  # None: no process has collected the tests yet
    losses: Counter[Kernel] = field(default_factory=Counter)
    not_collected: set[str] = field(default_factory=set)
    false_starts: int = 0

    def write(self, test: str, outcome: str, **more: object) -> None:
        tests_log.append(self.log, test=test, outcome=outcome, **more)
        if outcome in (tests_log.FAILED, tests_log.ERROR, HUNG, CRASHED):
            lines = str(more.get("detail", "")).strip().splitlines()
            print(f"{outcome}: {test}  {lines[0][:160] if lines else ''}", flush=True)

    def collect(self, answer: Mapping[str, Any]) -> None:
        for error in answer["errors"]:
            self.write(**error)
            self.not_collected.add(error["test"])
        found = [(test, tuple(kernel) if kernel else None) for test, kernel in answer["collected"]]
        mine = [(test, kernel) for test, kernel in found if is_about(test, kernel, self.only)]
        self.kernels = dict(mine)
        self.waiting = deque(in_order(mine, self.earlier, self.bad))
        print(f"{len(mine)} tests, {len(self.waiting)} to run", flush=True)

    def next(self) -> str | None:
        while self.waiting:
            test = self.waiting.popleft()
            kernel = self.kernels[test]
            if kernel is None or self.losses[kernel] < MOST_LOSSES:
                return test
            self.write(test, LEFT_OUT, detail=f"other tests of {'_'.join(kernel)} hang or crash")
        return None

    def hear(self, worker: Worker) -> bool:
        """Logs the worker's answers and gives it another test. Returns False if it has ended or must end."""
        answers = worker.lines()
        if answers is None:
            if worker.test is not None:
                code = worker.process.wait()
                self.write(worker.test, CRASHED, detail=f"the process ended with status {code}")
                self.losses[self.kernels[worker.test]] += 1
            elif not worker.has_collected:
                self.false_starts += 1
            return False
        for answer in answers:
            if "collected" in answer:
                worker.has_collected = True
                if self.waiting is None:
                    self.collect(answer)
            else:
                worker.test, ends = None, answer.pop("ends")
                self.write(**answer)
                if ends:
                    self.losses[self.kernels[answer["test"]]] += 1
                    return False
        if worker.has_collected and worker.test is None:
            test = self.next()
            if test is None:
                return False
            self.write(test, STARTED)
            worker.order(test)
        return True

    def is_overdue(self, worker: Worker) -> bool:
        """Whether its test runs too long; the log then says so."""
        if worker.test is None or time.monotonic() - worker.since < self.limit_s:
            return False
        self.write(worker.test, HUNG, detail=f"no end after {self.limit_s:.0f} s")
        self.losses[self.kernels[worker.test]] += MOST_LOSSES
        worker.test = None
        return True

    def wanted_processes(self, workers: Sequence[Worker]) -> float:
        """One per test that runs or waits; no limit before the tests are collected."""
        if self.false_starts >= MOST_FALSE_STARTS:
            return 0
        running = sum(worker.test is not None for worker in workers)
        return float("inf") if self.waiting is None else running + len(self.waiting)

    def go(self, arguments: Sequence[str], processes: int, deadline: float) -> None:
        workers: list[Worker] = []
        selector, said = selectors.DefaultSelector(), time.monotonic()

        def drop(gone: Sequence[Worker]) -> None:
            end(*[worker.process for worker in gone], ask=False)
            for worker in gone:
                selector.unregister(worker.answers)
                workers.remove(worker)
                worker.close()

        while time.monotonic() < deadline:
            while len(workers) < min(processes, self.wanted_processes(workers)):
                worker = Worker.start(arguments, sys.stdout.buffer)
                workers.append(worker)
                selector.register(worker.answers, selectors.EVENT_READ, worker)
            if not workers:
                return
            drop([key.data for key, _ in selector.select(0.2) if not self.hear(key.data)])
            drop([worker for worker in workers if self.is_overdue(worker)])
            if time.monotonic() - said > PROGRESS_S:
                said = time.monotonic()
                waiting = "not known yet" if self.waiting is None else len(self.waiting)
                print(f"tests that wait: {waiting}", flush=True)
        for worker in workers:
            if worker.test is not None:
                self.write(worker.test, STOPPED)
        drop(list(workers))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        prog="bench/gpu/run_tests.py",
    )
    made.add_argument("--log", type=Path, required=True, help="file of JSON lines, continued if it exists")
    made.add_argument("--only", help="one op")
    made.add_argument("--smoke", type=Path, help="file of verdicts of the kernels")
    made.add_argument("--processes", type=int, default=min(MOST_PROCESSES, os.cpu_count() or 1))
    made.add_argument("--seconds", type=float, default=float("inf"), help="time limit of the whole run")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    began = time.monotonic()
    wanted = parser().parse_args(arguments)
    target = targets.load()
    bad = {(v.op, v.kernel) for v in verdicts.load(wanted.smoke) if not v.is_fine}
    run = Run(wanted.log, wanted.only, bad, target.test_limit_s, tests_log.read(wanted.log))
    run.go(target.test_arguments(), wanted.processes, began + wanted.seconds)
    if run.waiting is None:
        print("no process could collect the tests: see above", flush=True)
        return EXIT_FAILED
    entries = {
        name: entry
        for name, entry in tests_log.read(wanted.log).items()
        if name in run.kernels or name in run.not_collected
    }
    left = sum(entries.get(name, {"outcome": STARTED})["outcome"] in NOT_RUN for name in run.kernels)
    print(f"{tests_log.described(entries)}; {left} not run", flush=True)
    outcomes = {entry["outcome"] for entry in entries.values()}
    if outcomes - {*FINE, *NOT_RUN}:
        return EXIT_FAILED
    return EXIT_NO_TIME if left else 0 if PASSED in outcomes else EXIT_NOTHING


if __name__ == "__main__":
    sys.exit(main())
