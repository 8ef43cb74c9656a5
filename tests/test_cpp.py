"""Builds the C++ tests with AddressSanitizer and UndefinedBehaviorSanitizer and runs them."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lamina
from tests.support.backends import ROOT, cuda_kernels, cuda_ops, stand_for_stores

PROGRAMS = ("lamina_tests", "lamina_tests_emulator")
# A sanitizer sees the code of a template, whatever the tile. So `make test` compiles with sanitizers only the
# kernels that reach all of the code: one of each template, and
# - the kernel of gemm_int8 whose two warpgroups store boxes of their own;
# - the kernel of gemm_int4_int8 in which some threads copy no rows of a;
# - for every cache of paged_attention the kernels that the head dims of the C++ tests choose.
SANITIZED = (
    *(f"{op}_{kernel}" for op in cuda_ops() for kernel in stand_for_stores(op) if kernel != "rows"),
    *("gemm_int8_sm90a_m128", "gemm_int4_int8_sm80_m16"),
    *(f"paged_attention_{kernel}" for kernel in cuda_kernels("paged_attention") if "_d64" in kernel),
)
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


@pytest.fixture(scope="module", params=["few", pytest.param("all", marks=pytest.mark.slow)])
def programs(request: pytest.FixtureRequest) -> list[Path]:
    """The programs of the C++ tests, with few CUDA kernels and the instruction sets of this machine, or with
    all, in SIMDe where this machine lacks them."""
    build = ROOT / "build" / f"cpp_tests_{request.param}"
    cmake = shutil.which("cmake", path=PATH)
    if cmake is None:
        pytest.skip("cmake is not installed")
    options = {
        "EXTENSION": "OFF",
        "TESTS": "ON",
        "SANITIZE": "ON",
        "WERROR": "ON",
        "CUDA": "OFF",
        "EMULATED_KERNELS": ";".join(SANITIZED) if request.param == "few" else "",
        "SIMDE": "OFF" if request.param == "few" else "ON",
    }
    flags = [f"-DLAMINA_{option}={value}" for option, value in options.items()]
    build.mkdir(parents=True, exist_ok=True)
    with (build / "lock").open("w") as lock:  # of the processes of one test run
        fcntl.flock(lock, fcntl.LOCK_EX)
        run([cmake, "-S", str(ROOT), "-B", str(build), "-G", "Ninja", *flags])
        run([cmake, "--build", str(build), "--target", *PROGRAMS])
    return [build / "tests" / "cpp" / program for program in PROGRAMS]


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
