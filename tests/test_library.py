"""The needs of the compiled library in its process: libraries, symbols, torch's current CUDA stream."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lamina
from tests.support.backends import ROOT

LIBRARY = Path(lamina.__file__).parent / "_C.abi3.so"
# `import torch` loads libtorch_cpu before lamina; the others are the C++ runtime of every Linux.
NEEDED = {
    "libtorch_cpu.so",
    "libstdc++.so.6",
    "libm.so.6",
    "libgcc_s.so.1",
    "libc.so.6",
    "ld-linux-x86-64.so.2",
}
# A weak symbol that no library defines is null, without an error. Only these of the compiler may be weak.
WEAK = {"__cxa_finalize", "__gmon_start__", "_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable"}
OLDEST_GLIBC = (2, 34)
RUNTIMES = re.compile(r"GLIBC_|GLIBCXX_|CXXABI_|GCC_")

STUB = """
#include <stdint.h>
int32_t aoti_torch_get_current_cuda_stream(int32_t device, void** stream) {
  *stream = (void*)(intptr_t)(0x5000 + device);
  return device == 7; /* not zero: an error */
}
"""
# The stub is loaded as `import torch` loads libtorch_cuda: after libtorch_cpu, with RTLD_LOCAL.
SCRIPT = """
import ctypes, sys, torch, lamina
def ask(device):
    try:
        return torch.ops.lamina.current_cuda_stream(device)
    except RuntimeError as error:
        return str(error).splitlines()[0]
print(ask(0))
if len(sys.argv) > 1:
    stub = ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_LOCAL)
    assert not hasattr(ctypes.CDLL(None), "aoti_torch_get_current_cuda_stream")
    print(ask(0), ask(3), ask(7), ask(4), sep="\\n")
"""


def binutils(*command: str) -> str:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} (binutils) is not installed")
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def undefined() -> list[tuple[str, str]]:
    """(type, name) of each dynamic symbol that other libraries define. The type is U, or w or v if weak."""
    lines = binutils("nm", "-D", "--undefined-only", str(LIBRARY)).splitlines()
    return [(line.split()[-2], line.split()[-1]) for line in lines]


def test_libraries_that_must_be_there() -> None:
    dynamic = binutils("readelf", "-d", str(LIBRARY))
    needed = set(re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic))
    assert "libtorch_cpu.so" in needed
    assert needed <= NEEDED, "a library that a machine without CUDA, or another torch, lacks"
    assert not re.search(r"\((RPATH|RUNPATH)\)", dynamic), "a path of the machine that built it"


def test_no_symbol_is_missing_in_silence() -> None:
    assert {name.split("@")[0] for kind, name in undefined() if kind in "wv"} <= WEAK


def test_each_symbol_has_its_library() -> None:
    """A symbol that is not of torch, Python or the C++ runtime would be unresolved in a user's process."""
    folder = Path(torch.__file__).parent / "lib"
    names = binutils("nm", "-D", "--defined-only", str(folder / "libtorch_cpu.so"))
    of_torch = {line.split()[-1].split("@")[0] for line in names.splitlines()}
    strong = [name for kind, name in undefined() if kind == "U" and not RUNTIMES.search(name)]
    foreign = [name for name in strong if name not in of_torch and not name.startswith(("Py", "_Py"))]
    assert strong and foreign == []


def test_oldest_glibc() -> None:
    versions = re.findall(r"@GLIBC_(\d+)\.(\d+)", " ".join(name for _, name in undefined()))
    assert max((int(major), int(minor)) for major, minor in versions) <= OLDEST_GLIBC


def test_looked_up_by_name_at_run_time() -> None:
    """A look-up by name can fail on a user's machine only: a new one needs a test like the ones below."""
    pattern = re.compile(r"\b(?:dlopen|dlsym|dlvsym|cudaGetDriverEntryPoint\w*)\s*\(|\bweak\b")
    code = {
        path: re.sub(r"//[^\n]*", "", path.read_text())
        for path in (ROOT / "csrc").rglob("*")
        if path.is_file()
    }
    found = {str(path.relative_to(ROOT / "csrc")) for path, text in code.items() if pattern.search(text)}
    assert found == {"torch/cuda_stream.cc", "device/tensor_map.cu"}


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A libtorch_cuda.so whose stream of device d is 0x5000 + d."""
    compiler = next((c for c in ("cc", "gcc", "clang") if shutil.which(c)), None)
    if compiler is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("stub")
    (folder / "stub.c").write_text(STUB)
    library = folder / "libstub.so"
    options = ("-shared", "-fPIC", "-Wl,-soname,libtorch_cuda.so")
    subprocess.run([compiler, *options, str(folder / "stub.c"), "-o", str(library)], check=True)
    return library


def ask_for_streams(*arguments: object) -> list[str]:
    command = [sys.executable, "-c", SCRIPT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


NO_LIBRARY = "lamina: this process has no libtorch_cuda.so: torch was built without CUDA"


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has a libtorch_cuda of its own")
def test_stream_of_a_torch_that_is_loaded_local(stub: Path) -> None:
    """The first call comes before the library is loaded; its failure must not be remembered."""
    first, *streams = ask_for_streams(stub)
    assert first == NO_LIBRARY
    assert streams[:2] == [str(0x5000), str(0x5003)]
    assert streams[2] == "lamina: torch has no current CUDA stream on device 7"
    assert streams[3] == str(0x5004)


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has a libtorch_cuda of its own")
def test_stream_of_a_torch_without_cuda() -> None:
    assert ask_for_streams() == [NO_LIBRARY]
