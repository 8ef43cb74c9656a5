"""Drives CMake and names one abi3 wheel; flags, sources and options live in CMakeLists.txt."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeExtension(Extension):
    """lamina/_C. The same CMake build makes the libraries of the tests, in a development install."""

    def __init__(self, name: str) -> None:
        super().__init__(name, sources=[], py_limited_api=True)


def install(library: Path, target: Path) -> None:
    """Replaces target in one step: a process that has it mapped keeps the old file, not a torn one."""
    fresh = target.with_suffix(".new")
    shutil.copy2(library, fresh)
    os.replace(fresh, target)


class CMakeBuild(build_ext):
    """Runs CMake in build/cmake and copies lamina/_C to where setuptools wants it.

    LAMINA_CMAKE_ARGS adds to the command line of CMake. LAMINA_LIBRARY names a lamina/_C to pack instead.
    """

    def finalize_options(self) -> None:
        super().finalize_options()
        self.is_development = self.editable_mode or bool(self.inplace)

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        install(Path(os.environ.get("LAMINA_LIBRARY") or self.build_library(target.name)), target)

    def build_library(self, name: str) -> Path:
        import torch  # only building needs it; metadata does not

        build, output = ROOT / "build" / "cmake", ROOT / "build" / "lib"
        for_tests = "ON" if self.is_development else "OFF"
        configure = [
            "cmake", "-S", ROOT, "-B", build, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
            f"-DPython_EXECUTABLE={sys.executable}", f"-DTORCH_ROOT={Path(torch.__file__).parent}",
            f"-DLAMINA_OUTPUT={output}", f"-DLAMINA_VERSION={self.distribution.get_version()}",
            f"-DLAMINA_EMULATOR={for_tests}", f"-DLAMINA_SIMDE={for_tests}", "-DLAMINA_CUDA=AUTO",
            "-DLAMINA_NATIVE=OFF",
            *os.environ.get("LAMINA_CMAKE_ARGS", "").split(),
        ]  # fmt: skip
        subprocess.run([str(part) for part in configure], check=True)
        subprocess.run(["cmake", "--build", str(build)], check=True)
        if self.is_development:
            for library in output.glob("*.so"):
                install(library, ROOT / "python" / "lamina" / library.name)
        return output / name


setup(
    ext_modules=[CMakeExtension("lamina._C")],
    cmdclass={"build_ext": CMakeBuild},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
