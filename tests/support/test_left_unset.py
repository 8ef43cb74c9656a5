"""A test that leaves an emulated GPU or a forced kernel behind fails, and the next one finds neither."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.backends import ROOT, emulator

TESTS = """
from tests.support.backends import emu_ops, emulator

def test_leaves_a_gpu():
    emulator().set_device(90, 4)

def test_leaves_a_kernel():
    emu_ops().set_cuda_kernel("gemm_int8_sm80_m16")

def test_finds_neither():
    assert not emulator().has_device()
    assert emu_ops().set_cuda_kernel("") == ""
"""


def test_what_a_test_leaves_behind_fails_it(tmp_path: Path) -> None:
    emulator()  # skips without it
    (tmp_path / "test_planted.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-p", "no:cacheprovider"]
    command += ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(tmp_path), str(tmp_path)]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    assert "3 passed, 2 errors" in said, said
    assert "AssertionError: the test has left an emulated GPU\n" in said
    assert "AssertionError: the test has left the forced kernel gemm_int8_sm80_m16\n" in said
