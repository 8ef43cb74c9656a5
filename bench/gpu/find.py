"""Finds what gpu_check.py can use on a machine: GPU, CUDA tools, Python packages. Does not import torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

# Packages that stages need; a rented machine may lack any of them.
PACKAGES = ("numpy", "pytest", "hypothesis")
PROBE = f"""
import importlib.util, json
found = {{"missing": [name for name in {PACKAGES} if importlib.util.find_spec(name) is None]}}
try:
    import torch
    found.update(torch=torch.__version__, cuda=torch.version.cuda)
    if torch.cuda.is_available():
        p = torch.cuda.get_device_properties(0)
        found.update(name=p.name, compute_capability=[p.major, p.minor])
except Exception as error:
    found["error"] = f"{{type(error).__name__}}: {{error}}".splitlines()[0]
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Gpu:
    name: str
    arch: str  # as nvcc names it: sm_80
    missing: tuple[str, ...] = field(default=(), compare=False)  # of PACKAGES


PRETENDED = Gpu("pretended", "emulator")
# This environment variable, set to this module, makes the stages run on a pretended GPU: see target.py.
TARGET_VARIABLE, REHEARSAL = "LAMINA_GPU_TARGET", "bench.gpu.rehearsal"


def find_gpu(run: Callable[..., subprocess.CompletedProcess[str]] = subprocess.run) -> Gpu | str:
    """This machine's GPU, or why torch finds none. Asks a new process, so that this one needs no torch."""
    try:
        done = run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=300)
        found = json.loads(done.stdout.strip().splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        return f"torch could not be asked for its GPU: {error}"
    if "error" in found:
        return f"torch does not work: {found['error']}"
    if "name" not in found:
        built = f"built for CUDA {found['cuda']}" if found["cuda"] else "built without CUDA"
        return f"torch {found['torch']} ({built}) sees no CUDA device"
    major, minor = found["compute_capability"]
    # From Hopper on, arch-specific code has instructions that the plain target lacks; it runs on this chip.
    return Gpu(found["name"], f"sm_{major}{minor}{'a' if major >= 9 else ''}", tuple(found["missing"]))


def cuda_tool(name: str) -> str | None:
    """The path of a CUDA tool, from the PATH or from the CUDA toolkit's folder."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    found = (shutil.which(name, path=str(Path(home) / "bin")) for home in homes if home)
    return shutil.which(name) or next((path for path in found if path), None)
