"""The CPU seconds that tests cost: on the emulator by op, within a budget, and elsewhere by file.

The seconds are CPU time of the process: the wall time of a test depends on what else the machine does. The
limits are for a core that runs a loop of Python as fast as REFERENCE_SECONDS says. A slower core gets more in
proportion, and every run half more, because neighbours on the same cores slow CPU time too. Tests that are
marked slow do not count. With pytest-xdist each process reports to the one that started them.
"""

from __future__ import annotations

import functools
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

EMULATOR_SECONDS = 90  # of every op that has no entry in LIMITS
LIMITS: dict[str, float] = {
    **dict.fromkeys(("gather_paged_kv", "copy_kv_blocks", "compact_kv", "merge_attention_states"), 5),
    "append_paged_kv": 20,
    "paged_attention": 180,
}
DEAREST = 10
REFERENCE_SECONDS = 0.045  # of the loop in allowance(), on the core for which the limits were set: Zen 4

on_emulator: Counter[str] = Counter()  # by op, of the test that runs
_costs: list[tuple[str, str, float]] = []  # test, op or "" for what is not the emulator, seconds


def spend(op: str, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Calls; the seconds count as those of `op` on the emulator."""
    start = _cpu_seconds()
    try:
        return call(*args, **options)
    finally:
        on_emulator[op.removesuffix("_quantized")] += _cpu_seconds() - start


def _cpu_seconds() -> float:
    """The CPU seconds of this process and of the processes that it has waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    on_emulator.clear()
    start = _cpu_seconds()
    result = yield
    if item.get_closest_marker("slow") is None:
        _costs.append((item.nodeid, "", _cpu_seconds() - start - on_emulator.total()))
        _costs.extend((item.nodeid, op, seconds) for op, seconds in on_emulator.items())
    return result


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    _costs.extend(map(tuple, getattr(node, "workeroutput", {}).get("costs", ())))


@functools.cache
def allowance() -> float:
    """By how much an op may exceed its limit on this machine: the core's slowness times 1.5."""

    def loop() -> float:
        start = time.process_time()
        sum(i * i for i in range(1_000_000))
        return time.process_time() - start

    return 1.5 * max(1.0, min(loop() for _ in range(5)) / REFERENCE_SECONDS)


def limit(op: str) -> float:
    return round(LIMITS.get(op, EMULATOR_SECONDS) * allowance(), 1)


def seconds_by_op() -> Counter[str]:
    total: Counter[str] = Counter()
    for _, op, seconds in _costs:
        total[op] += seconds
    del total[""]
    return total


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["costs"] = _costs
    elif session.exitstatus == 0 and any(spent > limit(op) for op, spent in seconds_by_op().items()):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    write = terminalreporter.write_line
    terminalreporter.section("CPU seconds on the emulator by op, and of tests by file")
    for op, spent in seconds_by_op().most_common():
        write(f"{spent:7.1f} of {limit(op)}  {op}{'  OVER BUDGET' if spent > limit(op) else ''}")
        tests = sorted(((s, test) for test, o, s in _costs if o == op), reverse=True)
        for seconds, test in tests[:DEAREST] if spent > limit(op) else ():
            write(f"{seconds:14.1f}  {test}")
    files: Counter[tuple[str, bool]] = Counter()
    for test, op, seconds in _costs:
        files[test.partition("::")[0], bool(op)] += seconds
    for file in sorted({file for file, _ in files}):
        emulated, other = files[file, True], files[file, False]
        if emulated + other >= 1:
            write(f"{emulated + other:7.1f} ({emulated:6.1f} on the emulator)  {file}")
