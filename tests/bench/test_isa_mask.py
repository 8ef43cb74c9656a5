"""The CPUID mask builds, hides what it says it hides, and leaves real faults alone."""

from __future__ import annotations

import platform
import signal
import subprocess
import sys

import pytest

from bench import isa_mask
from bench.roofline import cpu_flags

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="the mask is for Linux on x86-64"
)
needs_faulting = pytest.mark.skipif("cpuid_fault" not in cpu_flags(), reason="this CPU has no CPUID faulting")

# Asks torch and lamina, which ask CPUID, in a second thread too: the faulting state must follow threads.
ASK = """
import threading, torch, lamina
from bench import isa_mask, machine
answers = []
thread = threading.Thread(target=lambda: answers.append(torch.ops.lamina.cpu_isas()))
thread.start(); thread.join()
print(isa_mask.active_level(), torch.backends.cpu.get_cpu_capability(), answers[0])
"""


def run_masked(level: str, code: str) -> subprocess.CompletedProcess[str]:
    env = isa_mask.environment(level, isa_mask.build())
    env["PYTHONPATH"] = ":".join(filter(None, sys.path))
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)


def test_it_builds() -> None:
    assert isa_mask.build().exists()


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(isa_mask.IsaMaskError, match=r"got 'sse9'; allowed: avx2"):
        isa_mask.environment("sse9", isa_mask.SOURCE)


def test_no_mask_is_in_force_here() -> None:
    assert isa_mask.active_level() is None


@needs_faulting
def test_avx2_hides_all_that_came_later() -> None:
    done = run_masked("avx2", ASK)
    assert done.returncode == 0, done.stderr
    level, capability, isas = done.stdout.split()
    assert level == "avx2"
    assert capability in ("AVX2", "DEFAULT")
    assert "avx512" not in isas
    assert "amx" not in isas


@needs_faulting
def test_a_real_fault_still_kills_and_a_handler_still_sees_it() -> None:
    crash = "import ctypes; ctypes.string_at(0)"
    assert run_masked("avx2", crash).returncode == -signal.SIGSEGV
    done = run_masked("avx2", "import faulthandler; faulthandler.enable(); " + crash)
    assert done.returncode == -signal.SIGSEGV
    assert "Segmentation fault" in done.stderr
