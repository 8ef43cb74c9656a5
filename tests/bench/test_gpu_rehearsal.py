"""gpu_check.py from end to end on a pretended GPU where much goes wrong; the run is killed, then resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bench.gpu.archive import ARCHIVE, SUMMARY
from tests.support.backends import ROOT, emu_ops

pytestmark = pytest.mark.skipif(emu_ops() is None, reason="this build has no emulator")

# A rented machine returns at most so many files, of at most such a size.
MOST_FILES, MOST_BYTES = 8, 16 << 20
SANITIZER = """#!/bin/sh
# memcheck finds something in one kernel; racecheck finds something in all, without running them.
case "$*" in
  *racecheck*|*"--report-api-errors no"*) ;;
  *) echo "========= Program hit CUDA_ERROR_NOT_FOUND on CUDA API call to cuGetProcAddress_v2"; exit 99;;
esac
case "$2" in racecheck) echo "========= RACECHECK SUMMARY: 1 hazard displayed"; exit 99;; esac
while [ "$1" != "" ] && [ "${1#*python}" = "$1" ]; do shift; done
"$@" || exit $?
case "$*" in *sm80_m32)
  echo "========= Invalid __global__ write of size 16 bytes"
  echo "=========     at 0x90 in lamina::gemm_int8_sm80_m32"
  echo "========= ERROR SUMMARY: 3 errors"
  exit 99;;
esac
"""


@pytest.fixture
def prebuilt(tmp_path: Path) -> Path:
    """A folder as --prepare makes it, with the emulator, and with device vectors that need no GPU."""
    folder = tmp_path / "prebuilt"
    (folder / "python").mkdir(parents=True)
    (folder / "python" / "lamina").symlink_to(ROOT / "python" / "lamina")
    (folder / "vectors_emulator").write_text("#!/bin/sh\necho '3 tests, 0 failures'\n")
    return folder


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "compute-sanitizer").write_text(SANITIZER)
    (tools / "compute-sanitizer").chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "LAMINA_GPU_TARGET": "tests.bench.planted",
        "LAMINA_PLANTED_PIDS": str(tmp_path / "pids"),
    }


def start(out: Path, prebuilt: Path, environment: dict[str, str], *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "bench/gpu_check.py", "--dry-run", "--only", "gemm_int8", "--out", str(out)]
    return subprocess.Popen(
        [*command, "--prebuilt", str(prebuilt), "--minutes", "30", *more],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def summary_of(out: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads((out / SUMMARY).read_text())
    except FileNotFoundError:
        return {"tests": {"counts": {}}}
    return content


def wait_until(what: str, is_so: Any, limit_s: float = 300.0) -> None:
    deadline = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def has_ended(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def assert_can_be_carried_back(out: Path) -> None:
    files = [path for path in out.rglob("*") if path.is_file()]
    assert len(files) <= MOST_FILES
    assert all(path.parent == out and path.stat().st_size <= MOST_BYTES for path in files)
    with tarfile.open(out / ARCHIVE) as archive:
        assert SUMMARY in archive.getnames()


def verdicts(summary: dict[str, Any], stage: str) -> dict[str, str]:
    found = summary["kernels"][stage]
    return {name.removeprefix("gemm_int8_"): verdict for name, (verdict, _) in found.items()}


def test_a_run_that_is_killed_and_resumed(
    prebuilt: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    run = start(first, prebuilt, environment)
    try:
        wait_until("a test hangs", lambda: summary_of(first)["tests"]["counts"].get("started"))
        wait_until("its process is known", (tmp_path / "pids").exists)
        (stage,) = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    finally:
        run.send_signal(signal.SIGKILL)
        said = run.communicate()[0]
    hanging = (tmp_path / "pids").read_text().strip()
    # This limit is shorter than the time after which the stage itself would end the test.
    wait_until("its processes end with the run", lambda: has_ended(stage) and has_ended(hanging), 3)
    assert_can_be_carried_back(first)
    killed = summary_of(first)
    smoke = {"sm80_m16": "right", "sm80_m32": "wrong", "sm80_m64": "crashed", "sm80_m128": "hung"}
    assert verdicts(killed, "smoke") == smoke, said
    assert list(verdicts(killed, "smoke"))[-1] == "sm80_m16", "what is not right comes first"
    assert [stage["status"] for stage in killed["stages"]] == ["passed", "failed"]

    resumed = start(second, prebuilt, environment, "--resume", str(first / ARCHIVE))
    said = resumed.communicate(timeout=300)[0]
    assert resumed.returncode == 1, said
    assert_can_be_carried_back(second)
    assert sorted(path.name for path in second.iterdir()) == [ARCHIVE, SUMMARY]
    final = summary_of(second)
    stages = {stage["name"]: stage for stage in final["stages"]}
    assert {name: stage["status"] for name, stage in stages.items()} == {
        "library": "passed",
        "smoke_gemm_int8": "failed",
        "gpu_tests_gemm_int8": "failed",
        "device_vectors": "passed",
        "memcheck_gemm_int8": "failed",
        "bench_gemm_int8": "passed",
        "host_time": "passed",
        "racecheck_gemm_int8": "advice",
        "more_gemm_int8": "passed",
    }, said
    assert stages["library"]["resumed"]
    assert "gemm_int8_sm80_m16: right" not in stages["smoke_gemm_int8"]["tail"], "it was right before"
    assert verdicts(final, "smoke") == smoke
    # A kernel that hangs does not run again under a tool that makes kernels slower.
    memcheck = {"sm80_m16": "right", "sm80_m32": "findings", "sm80_m64": "crashed"}
    assert verdicts(final, "memcheck") == memcheck
    assert verdicts(final, "racecheck") == dict.fromkeys(memcheck, "findings")
    assert "Invalid __global__ write" in final["kernels"]["memcheck"]["gemm_int8_sm80_m32"][1]

    by_test = {entry["test"].split("::")[1]: entry for entry in final["tests"]["not_passed"]}
    assert {test: entry["outcome"] for test, entry in by_test.items()} == {
        "test_first[sm80_m128_gpu]": "hung",
        "test_second[sm80_m32_gpu]": "failed",
        "test_second[sm80_m64_gpu]": "crashed",
        "test_gemm_int8_that_loses_the_context": "failed",
        "test_gemm_int8_that_is_skipped_for_want_of_a_context": "failed",
    }, said
    assert "a planted failure" in by_test["test_second[sm80_m32_gpu]"]["detail"]
    assert "context is lost" in by_test["test_gemm_int8_that_loses_the_context"]["detail"]
    expected = {"passed": 5, "skipped": 1, "failed": 3, "hung": 1, "crashed": 1}
    assert Counter(final["tests"]["counts"]) == expected
    assert final["benchmarks"]["gemm_int8"]["rows"] == 4  # two shapes by two protocols
    table = said[said.index("\nkernels") : said.index("tests that did not pass")]
    assert table.index("gemm_int8_sm80_m128") < table.index("gemm_int8_sm80_m16"), (
        "what is not right comes first"
    )
    assert said.index("tests that did not pass") < said.rindex("gemm_int8: graph | do_bench")
