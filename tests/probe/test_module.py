"""lamina/_probe itself: it needs no torch, and it shares the emulator with torch.ops.lamina_emu."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.support.backends import NO_PROBE, ROOT, probe

if probe() is None:
    pytest.skip(NO_PROBE, allow_module_level=True)

SCRIPT = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("_probe", sys.argv[1])
probe = importlib.util.module_from_spec(spec)
spec.loader.exec_module(probe)
device = probe.cuda.Device(90, 132)
print(probe.cuda.plan("gemm_int8", probe.Problem(1, 8192, 8192), device).kernel.name, "torch" in sys.modules)
"""


def test_plans_need_no_torch() -> None:
    command = [sys.executable, "-c", SCRIPT, str(probe().__file__)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert shown.split() == ["gemm_int8_sm90a_m16", "False"]


def test_every_product_is_here() -> None:
    headers = (ROOT / "csrc" / "ops").glob("*/*.h")
    declared = [
        (path.stem, name)
        for path in headers
        for name in re.findall(r"^const CpuOp& (\w+)_op\(\);", path.read_text(), re.MULTILINE)
    ]
    parts = [stem if name in ("cpu", "float") else f"{stem}_{name}" for stem, name in declared]
    assert sorted(probe().ops) == sorted(parts)


def test_reports_begin_anew() -> None:
    emulator = probe().emulator
    emulator.take_report()
    report = emulator.take_report()
    assert (report.launches, report.blocks, report.most_blocks, report.sites) == (0, 0, 0, [])
