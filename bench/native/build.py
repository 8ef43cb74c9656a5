"""Compiles the C helpers with the machine's own compiler when they are first needed, into build/bench."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
from pathlib import Path

NATIVE = Path(__file__).resolve().parent
ROOT = NATIVE.parent.parent
BUILD = ROOT / "build" / "bench"
# psabi: GCC notes that vectors wider than the baseline are passed otherwise; they never leave their file.
_FLAGS = ("-std=gnu11", "-O3", "-Wall", "-Wextra", "-Wno-psabi", "-fPIC", "-shared", "-pthread")


class NativeBuildError(RuntimeError):
    """No compiler, or one that cannot compile a helper."""


def compiler() -> list[str]:
    """$CC, else the first of cc, gcc, clang on the path."""
    if chosen := os.environ.get("CC"):
        return shlex.split(chosen)
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            return [name]
    raise NativeBuildError("the benchmark needs a C compiler (cc, gcc or clang, or one named by $CC)")


def build_shared(source: Path, flags: tuple[str, ...] = (), build: Path = BUILD) -> Path:
    """The shared library of one C file, named by a hash of all it depends on: a stale one is never used."""
    command = [*compiler(), *_FLAGS, *flags]
    depends = [source, *sorted(NATIVE.glob("*.h"))]
    digest = hashlib.sha256("\0".join(command).encode())
    for path in depends:
        digest.update(path.read_bytes())
    library = build / f"{source.stem}-{digest.hexdigest()[:16]}.so"
    if library.exists():
        return library
    build.mkdir(parents=True, exist_ok=True)
    partial = library.with_suffix(f".{os.getpid()}.tmp")
    # An ISA mask on this process is none of the compiler's business.
    env = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    done = subprocess.run(
        [*command, "-o", str(partial), str(source), "-ldl"], capture_output=True, text=True, env=env
    )
    if done.returncode != 0:
        raise NativeBuildError(f"{shlex.join(command)} {source.name}:\n{done.stderr.strip()}")
    partial.replace(library)  # atomic: two runs may build at once
    return library
