"""The stages of gpu_check.py with pretended commands: their results, and how a later run continues."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from bench.gpu import processes
from bench.gpu.archive import ARCHIVE, LIMIT_BYTES, SUMMARY, ArchiveError, continue_from, publish, unpack
from bench.gpu.processes import Stopped, run
from bench.gpu.stages import Outcome, Stage, Watch, limits, run_stage, run_stages
from tests.support.backends import ROOT

PYTHON = sys.executable
MADE_WITH = {"gpu": "H", "library": "abc"}


def py(code: str) -> tuple[str, ...]:
    return (PYTHON, "-S", "-c", code)


def stage(name: str, *codes: str, **more: Any) -> Stage:
    return Stage(name, tuple(py(code) for code in codes), more.pop("share", 1.0), **more)


@pytest.mark.parametrize(
    ("made", "status", "detail"),
    [
        (stage("good", "print('3 passed')"), "passed", "3 passed"),
        (stage("table", "print('| 5 us |'); print('+--+')"), "passed", "| 5 us |"),
        (stage("bad", "print('1 failed'); raise SystemExit(1)"), "failed", "1 failed"),
        (stage("advice", "print('a race'); raise SystemExit(1)", advises=True), "advice", "a race"),
        (stage("partial", "raise SystemExit(4)"), "partial", ""),
        (stage("nothing", "raise SystemExit(5)"), "skipped", ""),
        (stage("stops", "raise SystemExit(2)", "print('never')"), "failed", ""),
        (Stage("missing", (("/nonexistent/tool",),), 1), "failed", "No such file"),
        (stage("env", "import os; print(os.environ['FAKE'])", env={"FAKE": "yes"}), "passed", "yes"),
        (Stage("told", ((*py("import sys; print(sys.argv[1])"), "{seconds}"),), 1), "passed", "45"),
    ],
    ids=lambda value: value.name if isinstance(value, Stage) else "",
)
def test_a_stage_has_a_status_and_a_log(made: Stage, status: str, detail: str, tmp_path: Path) -> None:
    outcome = run_stage(made, 60, tmp_path / "logs" / "x.log", tmp_path, clock=lambda: 0.0)
    assert outcome.status == status
    assert detail in outcome.detail
    text = (tmp_path / "logs" / outcome.log).read_text()
    assert text.startswith("$ ")
    assert "never" not in outcome.detail


def has_ended(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def test_a_command_over_its_limit_is_ended_with_its_children(tmp_path: Path) -> None:
    slow = Stage("slow", (("sh", "-c", "sleep 60 & echo $!; wait"),), 1)
    outcome = run_stage(slow, 1.0, tmp_path / "slow.log", tmp_path)
    assert outcome.status == "timed out"
    assert outcome.detail.startswith("stopped after 1 s: ")
    deadline = time.monotonic() + 10
    while not (ended := has_ended(outcome.detail.split()[-1])) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert ended


def test_processes_that_the_driver_holds_on_to_cost_one_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck:
        pid = 0

        def wait(self, timeout: float) -> int:
            time.sleep(timeout)
            raise subprocess.TimeoutExpired("stuck", timeout)

    asked: list[int] = []
    monkeypatch.setattr(processes, "GRACE_S", 0.1)
    monkeypatch.setattr(os, "killpg", lambda pid, number: asked.append(number))
    began = time.monotonic()
    processes.end(*[Stuck() for _ in range(50)])  # type: ignore[arg-type]
    assert time.monotonic() - began < 50 * 0.1
    assert asked == [signal.SIGTERM] * 50 + [signal.SIGKILL] * 50


def test_kernels_end_what_a_tool_has_started(tmp_path: Path) -> None:
    """A compute-sanitizer that dies leaves behind the program it runs, and the program holds the GPU."""
    code = """
from pathlib import Path
from bench.gpu import kernels
kernels.exit_on_sigterm()
tool = ("sh", "-c", "sleep 60 & echo $!; wait")
kernels.run_jobs([kernels.Job("op", "kernel", Path("log"), tool)], {}, 60, float("inf"), {}, Path("json"))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))}
    run = subprocess.Popen([PYTHON, "-c", code], cwd=tmp_path, env=environment)
    deadline, log = time.monotonic() + 60, tmp_path / "log"
    while not (log.is_file() and log.read_text().endswith("\n")) and time.monotonic() < deadline:
        time.sleep(0.05)
    run.send_signal(signal.SIGTERM)
    assert run.wait(60) == 128 + signal.SIGTERM
    while not (ended := has_ended(log.read_text().strip())) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert ended


def test_a_command_without_output_is_ended(tmp_path: Path) -> None:
    talks = "import time\nfor _ in range(6): print('x', flush=True); time.sleep(0.1)"
    with (tmp_path / "log").open("wb") as log:
        assert run(py(talks), log, 60, {}, tmp_path, stall_s=5, tick_s=0.05) == 0
        with pytest.raises(Stopped, match=r"stopped after 0 s without output"):
            run(py("import time; time.sleep(60)"), log, 60, {}, tmp_path, stall_s=0.3, tick_s=0.05)


COUNT = (
    "from pathlib import Path; p = Path('count'); n = int(p.read_text()) if p.exists() else 0; "
    "p.write_text(str(n + 1)); "
)


def test_a_lost_device_and_a_silent_command_are_tried_again(tmp_path: Path) -> None:
    twice = stage("twice", COUNT + "raise SystemExit(3 if n < 2 else 0)")
    assert run_stage(twice, 60, tmp_path / "a.log", tmp_path).status == "passed"
    (tmp_path / "count").unlink()
    always = stage("always", COUNT + "raise SystemExit(3)")
    assert run_stage(always, 60, tmp_path / "b.log", tmp_path).status == "failed"
    assert (tmp_path / "count").read_text() == "4"
    (tmp_path / "count").unlink()
    once = stage("once", COUNT + "import time; time.sleep(60 if n < 1 else 0)", stall_s=3.0)
    outcome = run_stage(once, 60, tmp_path / "c.log", tmp_path, Watch(tick_s=0.1))
    assert (outcome.status, (tmp_path / "count").read_text()) == ("passed", "2")


def test_time_is_shared_and_what_is_left_over_flows_on(tmp_path: Path) -> None:
    stages = [stage("a", share=1), stage("b", share=3)]
    assert limits(stages, 100) == [25, 75]
    assert limits(stages[1:], 90) == [90]
    assert limits(stages, -5) == [0, 0]
    told: list[tuple[str, float]] = []
    now = iter([0.0, 0.0, 0.0, 30.0, 30.0, 60.0, 60.0, 60.0, 90.0, 90.0, 90.0, 90.0])
    three = [stage("a"), stage("b", share=9), stage("c")]
    watch = Watch(begun=lambda made, limit_s: told.append((made.name, limit_s)))
    outcomes = run_stages(three, tmp_path, tmp_path, 70, {}, watch, lambda: next(now, 60.0))
    assert told[0] == ("a", 35.0), "its share is 6 s, in which it could only start"
    assert (outcomes[-1].status, outcomes[-1].detail) == ("partial", "no time was left")


def test_failures_do_not_stop_the_rest_and_a_second_run_repeats_only_them(tmp_path: Path) -> None:
    heard: list[str] = []
    watch = Watch(
        begun=lambda made, limit_s: heard.append(made.name),
        ended=lambda outcome: heard.append(f"{outcome.name} {outcome.status}"),
    )
    stages = [
        stage("a", "print('fine')"),
        stage("b", "raise SystemExit(1)"),
        stage("c", "pass", needs="b"),
        stage("d", "pass", skip="no tool"),
        stage("e", "pass", needs="a"),
    ]
    first = run_stages(stages, tmp_path, tmp_path, 600, {}, watch)
    assert [outcome.status for outcome in first] == ["passed", "failed", "skipped", "skipped", "passed"]
    assert [outcome.detail for outcome in first[2:4]] == ["needs the stage b", "no tool"]
    assert heard[:3] == ["a", "a passed", "b"]

    repaired = [stages[0], stage("b", "pass"), *stages[2:]]
    heard.clear()
    earlier = {outcome.name: outcome for outcome in first}
    second = run_stages(repaired, tmp_path, tmp_path, 600, earlier, watch)
    assert [outcome.status for outcome in second] == ["passed", "passed", "passed", "skipped", "passed"]
    assert [outcome.resumed for outcome in second] == [True, False, False, False, True]
    assert [name for name in heard if " " not in name] == ["b", "c"]


def test_an_interrupt_ends_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []

    class Interrupted(subprocess.Popen[bytes]):
        def wait(self, timeout: float | None = None) -> int:
            if not ended:
                ended.append(self.pid)
                raise KeyboardInterrupt
            return super().wait(timeout)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    with (tmp_path / "log").open("wb") as log, pytest.raises(KeyboardInterrupt):
        run(py("import time; time.sleep(60)"), log, 60, {}, tmp_path)
    assert has_ended(str(ended[0]))


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A working folder with a result, a log, and files that do not belong into the archive."""
    folder = tmp_path / "work"
    (folder / "logs").mkdir(parents=True)
    (folder / "smoke.json").write_text("{}")
    (folder / "logs" / "smoke.log").write_text("fine\n")
    (folder / "vectors").write_bytes(b"a program")
    return folder


def test_what_is_published_is_continued(work: Path, tmp_path: Path) -> None:
    out, again = tmp_path / "out", tmp_path / "again"
    out.mkdir()
    again.mkdir()
    stages = [Outcome("library", "passed", 1.5, "fine").to_json()]
    publish(work, out, {"made_with": MADE_WITH, "stages": stages})
    assert sorted(path.name for path in out.iterdir()) == [ARCHIVE, SUMMARY]
    assert continue_from(out / ARCHIVE, again, MADE_WITH) == ""
    names = sorted(str(path.relative_to(again)) for path in again.rglob("*") if path.is_file())
    assert names == ["logs/smoke.log", "smoke.json", SUMMARY]
    assert json.loads((again / SUMMARY).read_text())["stages"] == stages


@pytest.mark.parametrize("key", MADE_WITH)
def test_results_of_another_library_or_gpu_are_not_continued(key: str, work: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    again.mkdir()
    publish(work, tmp_path, {"made_with": MADE_WITH, "stages": []})
    why = continue_from(tmp_path / ARCHIVE, again, {**MADE_WITH, key: "other"})
    assert why == f"its {key} is {MADE_WITH[key]}, this run's is other"
    assert list(again.iterdir()) == []


def test_the_archive_stays_under_its_limit(work: Path, tmp_path: Path) -> None:
    for i in range(24):
        (work / "logs" / f"{i}.log").write_bytes(b"begin" + os.urandom(900_000) + b"the end")
    publish(work, tmp_path, {"made_with": MADE_WITH, "stages": []})
    assert (tmp_path / ARCHIVE).stat().st_size <= LIMIT_BYTES
    unpack(tmp_path / ARCHIVE, again := tmp_path / "again")
    log = (again / "logs" / "3.log").read_bytes()
    assert log.startswith(b"begin") and log.endswith(b"the end") and b" bytes ...]" in log
    assert (again / "smoke.json").read_text() == "{}"


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    path, work = tmp_path / "file.tar.gz", tmp_path / "work"
    path.write_text("no archive")
    work.mkdir()
    with pytest.raises(ArchiveError, match=r"file.tar.gz is not an archive of gpu_check.py: "):
        unpack(path, work)
    with tarfile.open(path, "w:gz") as tar:  # an archive without a summary, with a path outside of the folder
        member = tarfile.TarInfo("../outside.json")
        tar.addfile(member, io.BytesIO())
    with pytest.raises(ArchiveError, match=r"is not an archive of gpu_check.py: .*summary.json"):
        unpack(path, work)
    assert not (tmp_path / "outside.json").exists()
