"""Builds the C++ tests with AddressSanitizer and UndefinedBehaviorSanitizer and runs them."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lamina
from tests.support.backends import ROOT

BUILD = ROOT / "build" / "cpp_tests"
PROGRAMS = ("lamina_tests", "lamina_tests_emulator")
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
assert lamina.__version__  # registers torch.ops.lamina


def run(command: list[str], **environment: str) -> str:
    result = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PATH": PATH, **environment},
        check=False,
    )
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout[-6000:]}"
    return result.stdout


def missing_isas() -> set[str]:
    """ISAs that are built but that this machine cannot run: those use SIMDe."""
    return set(lamina._library.build_info()["cpu_isas_built"]) - set(torch.ops.lamina.cpu_isas().split(","))


@pytest.fixture(scope="module")
def programs() -> list[Path]:
    cmake = shutil.which("cmake", path=PATH)
    if cmake is None:
        pytest.skip("cmake is not installed")
    # SIMDe takes minutes to compile with sanitizers: only the instruction sets that the machine lacks use it.
    options = {
        "EXTENSION": "OFF",
        "TESTS": "ON",
        "SANITIZE": "ON",
        "WERROR": "ON",
        "SIMDE": "ON" if missing_isas() else "OFF",
        "SIMDE_ISAS": ";".join(sorted(missing_isas())),
        "CUDA": "OFF",
    }
    flags = [f"-DLAMINA_{option}={value}" for option, value in options.items()]
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:  # of the processes of one test run
        fcntl.flock(lock, fcntl.LOCK_EX)
        run([cmake, "-S", str(ROOT), "-B", str(BUILD), "-G", "Ninja", *flags])
        run([cmake, "--build", str(BUILD), "--target", *PROGRAMS])
    return [BUILD / "tests" / "cpp" / program for program in PROGRAMS]


def test_cpp_tests_under_sanitizers(programs: list[Path]) -> None:
    for program in programs:
        output = run([str(program)], ASAN_OPTIONS="detect_leaks=1", UBSAN_OPTIONS="print_stacktrace=1")
        assert "FAIL" not in output
        assert output.strip().endswith(" tests, 0 failures")


def test_the_harness_fails_when_nothing_runs(programs: list[Path]) -> None:
    with pytest.raises(AssertionError, match="0 tests, 0 failures"):
        run([str(programs[0]), "no such test"])


@pytest.mark.slow
def test_paged_attention_of_a_million_random_arguments(programs: list[Path]) -> None:
    output = run([str(programs[0]), "paged_attention_of_random_arguments"], LAMINA_FUZZ="1000000")
    assert output.strip().endswith("1 tests, 0 failures")
