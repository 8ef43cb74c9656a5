"""LAMINA_NATIVE, the build of `make demo`: it has the kernels that this machine chooses, and no others."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.backends import ROOT, kernel_rows

CMAKE = Path(sys.executable).parent / "cmake"
REPLACED = ["generic", "avx2", "avx512_vnni"]  # the last that the machine runs stands for all
KERNEL = re.compile(r"::(\w+?)_(generic|avx2|avx512_vnni|avx512_bf16|amx_int8)$", re.MULTILINE)


def run(*command: object) -> str:
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{command}\n{result.stdout[-4000:]}{result.stderr[-2000:]}"
    return result.stdout


def test_every_op_has_the_instruction_sets_that_replace_one_another() -> None:
    """The native build leaves out generic and AVX2 where the machine has AVX-512."""
    isas: dict[str, list[str]] = {}
    for kind, op, kernel in kernel_rows():
        if kind == "CPU":
            isas.setdefault(op, []).append(kernel)
    assert len(isas) >= 12
    for op, built in isas.items():
        assert built[:3] == REPLACED, op


def test_the_op_asks_for_the_kernels_that_are_compiled(tmp_path: Path) -> None:
    if not CMAKE.exists() or shutil.which("nm") is None:
        pytest.skip("cmake or nm (binutils) is not installed")
    options = {"NATIVE": "ON", "EXTENSION": "OFF", "EMULATOR": "OFF", "SIMDE": "OFF", "CUDA": "OFF"}
    run(CMAKE, "-S", ROOT, "-B", tmp_path, "-G", "Ninja", *(f"-DLAMINA_{o}={v}" for o, v in options.items()))
    compiled = set(re.findall(r"/ops/\w+/cpu/(?:\w+/)?(\w+)\.cc\.o:", (tmp_path / "build.ninja").read_text()))
    ops = sorted({path.parent.name for path in ROOT.glob("csrc/ops/*/kernels.inc")})
    objects = [f"csrc/CMakeFiles/lamina_core.dir/ops/{op}/run.cc.o" for op in ops]
    run(CMAKE, "--build", tmp_path, "--target", *objects)
    symbols = run("nm", "--undefined-only", "--demangle", *(tmp_path / path for path in objects))
    runs = torch.ops.lamina.cpu_isas().split(",")
    chosen = {*runs} - {*[isa for isa in runs if isa in REPLACED][:-1]}
    assert compiled == chosen
    rows = {(op, isa) for kind, op, isa in kernel_rows() if kind == "CPU"}
    assert {*KERNEL.findall(symbols)} == {(op, isa) for op, isa in rows if isa in chosen}
