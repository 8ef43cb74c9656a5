"""Builds on a machine without a GPU what gpu_check.py carries: library and device vectors, in one folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.gpu.find import cuda_tool
from bench.gpu.library import needed_glibc

ROOT = Path(__file__).resolve().parents[2]
VECTORS = (
    *("tests/cpp/main.cc", "tests/cpp/device/vectors.cc"),
    *("csrc/base/status.cc", "csrc/device/launch.cu", "csrc/device/launch_shape.cc"),
)
# Tensor maps count the work of the host.
HOPPER_VECTORS = (
    *("tests/cpp/device/vectors_sm90a.cc", "tests/cpp/device/vectors_wgmma.cc"),
    *("csrc/base/memo.cc", "csrc/device/tensor_map.cc", "csrc/device/tensor_map.cu"),
)
ARCHS = ("sm_80", "sm_90a")
GLIBC = (2, 34)  # machines installed since 2022 have at least this version
MOST_BYTES = 64 << 20  # of the folder, because uploads to a rented machine are limited
BUILD = (sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "-e", ".")


class PrepareError(Exception):
    """The folder cannot be prepared; the message says what is missing and how to get it."""


def vectors_command(arch: str, program: Path, nvcc: str) -> tuple[str, ...]:
    """Builds tests/cpp/device as a program for one arch, with the CUDA runtime inside."""
    number = arch.removeprefix("sm_")
    flags = (
        *("-x", "cu", "-std=c++20", "--expt-relaxed-constexpr", "-fmad=false", "-Icsrc", "-Itests/cpp"),
        # -arch would also add PTX of the plain compute capability, which has no wgmma.
        *("-cudart", "static", "-gencode", f"arch=compute_{number},code=sm_{number}"),
    )
    sources = (*VECTORS, *(HOPPER_VECTORS if arch == "sm_90a" else ()))
    return (nvcc, *flags, *sources, "-o", str(program))


def vectors_program(folder: Path, arch: str) -> Path:
    """The path of the program for a GPU of this arch; code for sm_80 runs on every 8.x."""
    return folder / f"vectors_{'sm_80' if arch.startswith('sm_8') else arch}"


def _run(command: Sequence[str]) -> None:
    print("$ " + " ".join(command), flush=True)
    if subprocess.run(command, cwd=ROOT, check=False).returncode != 0:
        raise PrepareError(f"{command[0]}: failed, see above")


def newer_source(root: Path, library: Path) -> Path | None:
    """A source that is newer than the library, or None. An old library would waste the rented minutes."""
    sources = [path for folder in ("csrc", "cmake") for path in sorted((root / folder).rglob("*.*"))]
    built = library.stat().st_mtime
    return next((path for path in sources if path.is_file() and path.stat().st_mtime > built), None)


def cuda_archs(package: Path) -> list[str]:
    """The CUDA archs of the library in a folder that holds `lamina`; a new process loads it."""
    code = "import json, torch, lamina; print(torch.ops.lamina.build_info())"
    env = {**os.environ, "PYTHONPATH": str(package)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False, cwd=package
    )
    if done.returncode != 0:
        raise PrepareError(f"the library in {package} does not load: {done.stderr.strip().splitlines()[-1]}")
    return [str(arch) for arch in json.loads(done.stdout)["cuda_archs"]]


def prepare(folder: Path, *, build: bool, archs: Sequence[str] = ARCHS) -> None:
    """Fills `folder` with python/lamina and a program vectors_<arch> per arch. Raises PrepareError."""
    nvcc = cuda_tool("nvcc")
    if nvcc is None:
        raise PrepareError("nvcc not found: put CUDA's bin folder on the PATH, or set CUDA_HOME")
    source, package = ROOT / "python", folder / "python"
    library = source / "lamina" / "_C.abi3.so"
    if build or not library.is_file():
        _run(BUILD)
    elif newer := newer_source(ROOT, library):
        raise PrepareError(f"{newer} is newer than {library}: build it anew with --build, or with make build")
    have = {f"sm_{arch}" for arch in cuda_archs(source)}
    if lacking := [arch for arch in archs if arch not in have]:
        raise PrepareError(
            f"the library of this checkout has no code for {', '.join(lacking)}: build it anew with --build"
        )
    shutil.rmtree(package, ignore_errors=True)
    # Copy the emulator too, so that a rehearsal can use the same folder as the run on the GPU.
    leave = shutil.ignore_patterns("__pycache__", "*.new", "_probe.*")
    shutil.copytree(source / "lamina", package / "lamina", ignore=leave)
    if strip := shutil.which("strip"):  # names of local symbols are 2 MiB of the upload
        subprocess.run([strip, *package.glob("lamina/*.so")], check=True)
    for arch in archs:
        _run(vectors_command(arch, vectors_program(folder, arch), nvcc))
    _report(folder)


def _report(folder: Path) -> None:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    programs = [path for path in files if path.suffix == ".so" or path.name.startswith("vectors_")]
    for path in programs:
        needed = needed_glibc(path)
        newer = (
            "" if needed <= GLIBC else f", NEWER than {'.'.join(map(str, GLIBC))}: old machines cannot run it"
        )
        size = path.stat().st_size / 2**20
        print(f"{path.relative_to(folder)}: {size:.1f} MiB, glibc {'.'.join(map(str, needed))}{newer}")
    total = sum(path.stat().st_size for path in files)
    print(
        f"{folder}: {len(files)} files, {total / 2**20:.1f} MiB; use it with --prebuilt {folder}", flush=True
    )
    if total > MOST_BYTES:
        raise PrepareError(f"{folder} has {total >> 20} MiB; at most {MOST_BYTES >> 20} MiB are allowed")
