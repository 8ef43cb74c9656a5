"""Runs a benchmark as if the machine had no newer instruction set: cpuid_mask.c says how."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from pathlib import Path
from typing import NoReturn

from bench.native.build import build_shared

VARIABLE = "LAMINA_BENCH_ISA_MASK"
LEVELS = ("avx2", "avx_vnni", "avx512_vnni")
SOURCE = Path(__file__).resolve().parent / "cpuid_mask.c"

# glibc's loader asks CPUID before any library runs. Its own string functions use the answer, and it takes the
# sets away by name.
_GLIBC_AVX512 = ("AVX512F", "AVX512VL", "AVX512BW", "AVX512DQ", "AVX512CD")


class IsaMaskError(RuntimeError):
    """The mask cannot work here, or does not."""


def build() -> Path:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise IsaMaskError("--mask-isa needs Linux on x86-64")
    return build_shared(SOURCE, ("-Wl,-z,initfirst",))


def environment(level: str, library: Path) -> dict[str, str]:
    """The environment in which a process sees no instruction set above `level`."""
    if level not in LEVELS:
        raise IsaMaskError(f"--mask-isa: got {level!r}; allowed: {', '.join(LEVELS)}")
    env = dict(os.environ)
    env[VARIABLE] = level
    env["LD_PRELOAD"] = " ".join(filter(None, [str(library), env.get("LD_PRELOAD", "")]))
    if level != "avx512_vnni":
        hide = "glibc.cpu.hwcaps=" + ",".join(f"-{name}" for name in _GLIBC_AVX512)
        env["GLIBC_TUNABLES"] = ":".join(filter(None, [env.get("GLIBC_TUNABLES", ""), hide]))
    return env


def reexecute(level: str) -> NoReturn:
    """Starts this very command again under the mask; does not return."""
    os.execve(sys.executable, [sys.executable, *sys.argv], environment(level, build()))


def active_level() -> str | None:
    """The level in force in this process, asked of the library itself; None without one."""
    wanted = os.environ.get(VARIABLE)
    try:
        level = ctypes.CDLL(None).lamina_isa_mask_level
    except AttributeError:
        if wanted is not None:
            raise IsaMaskError(f"{VARIABLE}={wanted} is set, but the mask library is not loaded") from None
        return None
    return LEVELS[int(level())]
