"""The budget of the emulator: a run that exceeds it fails and names the dearest tests."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.backends import ROOT
from tests.support.budget import EMULATOR_SECONDS, REFERENCE_SECONDS, allowance

# Takes no time: what the calls claim to have spent is added by hand.
TESTS = """
import pytest
from tests.support import budget

@pytest.mark.parametrize("number", range(12))
def test_costly(number):
    budget.spend("gemm_int8_quantized" if number % 2 else "gemm_int8", sum, ())
    budget.on_emulator["gemm_int8"] += {seconds} + number / 100

@pytest.mark.slow
def test_slow():
    budget.on_emulator["gemm_int8"] += 1000
"""
CONFTEST = """
from tests.support import budget
budget.allowance = lambda: 1.0
"""


def run(folder: Path, seconds: float, *options: str) -> subprocess.CompletedProcess[str]:
    """pytest on TESTS, with this plugin, the limits as they are and the markers of the project."""
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_planted.py").write_text(TESTS.replace("{seconds}", str(seconds)))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.support.budget", "-p", "no:cacheprovider"]
    command += ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(folder), "-m", "", *options, str(folder)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("processes", ["0", "2"])
def test_a_run_over_budget_fails_and_names_ten_tests(tmp_path: Path, processes: str) -> None:
    result = run(tmp_path, EMULATOR_SECONDS / 12, "-n", processes)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "13 passed" in result.stdout
    lines = result.stdout.splitlines()
    (first,) = (i for i, line in enumerate(lines) if "OVER BUDGET" in line)
    assert lines[first].split() == ["90.7", "of", "90.0", "gemm_int8", "OVER", "BUDGET"]
    named = [line.split()[1] for line in lines[first + 1 :] if "::test_costly" in line]
    assert named == [f"test_planted.py::test_costly[{number}]" for number in range(11, 1, -1)]


def test_a_run_within_budget_passes_whatever_slow_tests_cost(tmp_path: Path) -> None:
    result = run(tmp_path, EMULATOR_SECONDS / 12 - 0.1)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "   89.5 of 90.0  gemm_int8" in result.stdout


@pytest.mark.parametrize(("times_as_slow", "allowed"), [(0.5, 1.5), (1, 1.5), (2, 3.0)])
def test_a_slower_core_gets_more_in_proportion(
    monkeypatch: pytest.MonkeyPatch, times_as_slow: float, allowed: float
) -> None:
    clock = itertools.count(0.0, times_as_slow * REFERENCE_SECONDS)
    monkeypatch.setattr("tests.support.budget.time.process_time", lambda: next(clock))
    assert allowance.__wrapped__() == pytest.approx(allowed)
