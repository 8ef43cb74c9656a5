"""Gives every thread of every pool a core of its own while samples are taken.

The pools of several libraries in one process mislead the scheduler: it now and then wakes a worker on the
core where the main thread already waits for it, and a call takes milliseconds more (2026-11, 2 cores, libgomp
after onnxruntime: 1.7 ms became 2.7 ms, upper quartile 5 ms). A process with one pool does not meet this.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_TASKS = Path("/proc/self/task")


@contextmanager
def pinned_threads() -> Iterator[None]:
    """The main thread on the first core, all others on the rest in turn; afterwards main runs anywhere.

    Enter it when the pools exist: onnxruntime sizes its work by the cores it sees when it makes its pool.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") and _TASKS.is_dir() else []
    if len(cores) < 2:
        yield
        return
    workers = sorted(int(task.name) for task in _TASKS.iterdir() if int(task.name) != os.getpid())
    for i, worker in enumerate(workers):
        try:
            os.sched_setaffinity(worker, [cores[1 + i % (len(cores) - 1)]])
        except OSError:  # it has ended
            continue
    os.sched_setaffinity(0, cores[:1])
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
