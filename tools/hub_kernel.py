"""Lays a wheel out as a kernel of the Hugging Face hub, for get_kernel and get_local_kernel of `kernels`.

python -m tools.hub_kernel dist/lamina-*.whl OUT
"""

from __future__ import annotations

import json
import platform
import re
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERSION = 1  # of the functions of the kernel, which a user of get_kernel names

# `kernels` runs the __init__.py of a variant as a module of a name of its own. lamina's ops exist once in a
# process, so an installed lamina that is imported already counts.
INIT = '''"""lamina as a kernel of the Hugging Face hub: its ops, and what transformers looks for."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
try:
    from lamina import *  # noqa: F403
    from lamina.integrations.flash_attn import flash_attn_varlen_func, flash_attn_with_kvcache  # noqa: F401
finally:
    sys.path.remove(str(Path(__file__).parent))
'''


def lay_out(wheel: Path, out: Path, backends: Sequence[str]) -> list[Path]:
    """Unpacks the wheel into out/build/VARIANT for each backend, and returns these folders.

    backends  "cpu" and, of a library with CUDA kernels, "cu130": the library is the same
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / "build.toml").write_text((ROOT / "build.toml").read_text())
    bindings = (ROOT / "csrc/torch/CMakeLists.txt").read_text()
    abi = re.search(r"TORCH_TARGET_VERSION=0x(..)(..)0{12}", bindings)
    assert abi is not None
    major, minor = (int(byte, 16) for byte in abi.groups())
    folders = []
    for backend in backends:
        variant = f"torch-stable-abi{major}{minor}-{backend}-{platform.machine()}-linux"
        folder = out / "build" / variant
        with zipfile.ZipFile(wheel) as packed:
            packed.extractall(folder)
        (folder / "__init__.py").write_text(INIT)
        (folder / "metadata.json").write_text(json.dumps(_metadata(backend), indent=2) + "\n")
        folders.append(folder)
    return folders


def _metadata(backend: str) -> dict[str, object]:
    kind = "cpu" if backend == "cpu" else "cuda"
    return {
        "id": f"lamina_{kind}_{VERSION}",
        "name": "lamina",
        "version": VERSION,
        "license": "Apache-2.0",
        "python-depends": [],
        "backend": {"type": kind},
    }


if __name__ == "__main__":
    for made in lay_out(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:] or ["cpu"]):
        print(made)
