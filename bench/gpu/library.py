"""Prints which lamina a process loads, and fails if this machine cannot run it: a stage of gpu_check.py.

Nothing is launched here: a kernel that fails must cost no more than itself (kernels.py).
"""

from __future__ import annotations

import json
import os
import re
import sys
from importlib import util
from pathlib import Path

if __package__ in (None, ""):  # run as a file: make `bench` importable, from the checkout
    sys.path[0] = str(Path(__file__).resolve().parents[2])

Version = tuple[int, ...]


def needed_glibc(library: Path) -> Version:
    """The newest glibc version that an ELF file needs, such as (2, 34)."""
    found = re.findall(rb"\0GLIBC_(\d+)\.(\d+)(?:\.(\d+))?", library.read_bytes())
    return max((tuple(int(part) for part in version if part) for version in found), default=(0,))


def own_glibc() -> Version:
    """The glibc version of this machine; (0,) if it has another C library."""
    try:
        name, version = str(os.confstr("CS_GNU_LIBC_VERSION")).split()
    except (ValueError, OSError):
        return (0,)
    return tuple(map(int, version.split("."))) if name == "glibc" else (0,)


def library_path() -> Path | None:
    """The compiled library that `import lamina` would load, without loading it."""
    found = util.find_spec("lamina")
    folders = found.submodule_search_locations if found else None
    return Path(next(iter(folders))) / "_C.abi3.so" if folders else None


def main() -> int:
    path = library_path()
    if path is None or not path.is_file():
        print(f"{path or 'lamina'} does not exist: run --prepare on a machine with nvcc, or use --build")
        return 1
    needed, own = needed_glibc(path), own_glibc()
    if needed > own:
        print(f"{path} needs glibc {'.'.join(map(str, needed))}, this machine has {'.'.join(map(str, own))}")
        return 1
    import torch

    import lamina
    from bench.gpu import target as targets
    from bench.gpu.runner import library_sha256

    info = json.loads(torch.ops.lamina.build_info())
    print(
        json.dumps({"file": lamina.__file__, "sha256": library_sha256(), "torch": torch.__version__, **info})
    )
    if problem := targets.load().library_problem(info):
        print(problem)
        return 1
    print(f"lamina {info['version']} for {', '.join(info['cuda_archs']) or 'CPUs'} loads")
    return 0


if __name__ == "__main__":
    sys.exit(main())
