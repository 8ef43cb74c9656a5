"""A pytest plugin: reads the names of tests to run from a pipe of run_tests.py, reports outcomes to another.

An environment variable gives both file descriptors as "READ,WRITE". After a test that lost the CUDA context
the process ends, because no later test could pass in it.
"""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from bench.gpu import target as targets
from bench.gpu.tests_log import ERROR, FAILED, PASSED, SKIPPED

VARIABLE = "LAMINA_TEST_PIPES"
DETAIL_CHARACTERS = 1500

_outcome: dict[str, Any] = {}  # of the running test
_collection_errors: list[dict[str, str]] = []


def kernel_of(item: pytest.Item) -> tuple[str, str] | None:
    """The (op, kernel) of a test, if it has a backend as a parameter."""
    parameters = getattr(item, "callspec", None)
    for value in parameters.params.values() if parameters else ():
        if hasattr(value, "op") and hasattr(value, "isa"):
            return str(value.op), str(value.isa)
    return None


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.unregister(name="terminalreporter")  # run_tests.py prints the results
    targets.load().prepare_tests()


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        text = str(report.longrepr)[-DETAIL_CHARACTERS:]
        _collection_errors.append({"test": report.nodeid, "outcome": ERROR, "detail": text})


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        message = str(getattr(crash, "message", ""))[:DETAIL_CHARACTERS]
        detail = f"{message}\n{report.longreprtext[-DETAIL_CHARACTERS:]}".strip()
        _outcome.update(outcome=FAILED, detail=detail)
    elif report.skipped and _outcome["outcome"] == PASSED:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        _outcome.update(outcome=SKIPPED, detail=str(reason)[-DETAIL_CHARACTERS:])
    _outcome["seconds"] = round(_outcome["seconds"] + report.duration, 3)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool:
    read, write = map(int, os.environ[VARIABLE].split(","))
    target = targets.load()
    items = {item.nodeid: item for item in session.items}
    with os.fdopen(read) as orders, os.fdopen(write, "w", buffering=1) as answers:

        def say(**answer: object) -> None:
            answers.write(json.dumps(answer) + "\n")

        collected = [(name, kernel_of(item)) for name, item in items.items()]
        say(collected=collected, errors=_collection_errors)
        for line in orders:
            item = items[json.loads(line)]
            _outcome.clear()
            _outcome.update(outcome=PASSED, seconds=0.0, detail="")
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
            is_lost = _outcome["outcome"] != PASSED and not target.is_alive()
            if is_lost:
                _outcome.update(outcome=FAILED, detail=f"the CUDA context is lost: {_outcome['detail']}")
            say(test=item.nodeid, ends=is_lost, **_outcome)
            if is_lost:
                break
    return True
