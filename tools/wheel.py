"""Makes dist/: the archive of the sources, and a wheel of the built library that a package index takes.

    python -m tools.wheel [--plat manylinux_2_34_x86_64]

The wheel is packed from the archive around python/lamina/_C.abi3.so and gets the manylinux tag that its
symbols allow. `twine check --strict` checks both files, and `lamina doctor` tests every op of the wheel in a
fresh environment.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "python" / "lamina" / "_C.abi3.so"
# torch brings these; a wheel with copies of its own would load two torches.
OF_TORCH = ("libtorch*.so", "libc10*.so")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q")


def run(command: list[str], cwd: Path = ROOT, **variables: str) -> str:
    """Runs a command and returns what it prints; an error of the command has that text."""
    search = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    result = subprocess.run(
        command,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**environment, "PATH": search, **variables},
        check=False,
    )
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{result.stdout[-6000:]}")
    return result.stdout


def make_archive(out: Path, source: Path = ROOT) -> Path:
    """The archive of the sources, made in the folder `source`."""
    run([sys.executable, "setup.py", "-q", "sdist", "-d", str(out)], source)
    (archive,) = out.glob("*.tar.gz")
    return archive


def make_wheel(archive: Path, out: Path, **variables: str) -> Path:
    """A wheel from the archive alone. Indexes refuse its tag, which is that of any Linux."""
    options = ["--no-build-isolation", "--no-deps", "--no-index", "-w", str(out)]
    run([*PIP, "wheel", *options, str(archive)], out, **variables)
    (wheel,) = out.glob("*.whl")
    return wheel


def tag_manylinux(wheel: Path, out: Path, platform: str = "auto") -> Path:
    """The same wheel, tagged for the oldest manylinux whose symbols suffice, or for `platform`."""
    excluded = [f"--exclude={library}" for library in OF_TORCH]
    tagged = out / "tagged"
    run(["auditwheel", "repair", f"--plat={platform}", *excluded, f"--wheel-dir={tagged}", str(wheel)])
    (fresh,) = tagged.glob("*.whl")
    wheel = fresh.replace(out / fresh.name)
    tagged.rmdir()
    return wheel


def install_alone(wheel: Path, folder: Path) -> Path:
    """The Python of a new environment in `folder` that has this wheel.

    torch and all else that lamina needs come from this environment through a .pth file. The folder that it
    names is searched, but the .pth files in that folder, such as an editable install, are not run.
    """
    run([sys.executable, "-m", "venv", "--without-pip", str(folder)], folder.parent)
    site = next((folder / "lib").glob("python*/site-packages"))
    run([*PIP, "install", "--target", str(site), "--no-deps", "--no-index", str(wheel)])
    (site / "packages_of_the_builder.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    return folder / "bin" / "python"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--plat", default="auto", help="the manylinux tag (default: the oldest that suits)")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "dist", help="folder of both files (default: dist)"
    )
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for old in (*arguments.out.glob("lamina-*.whl"), *arguments.out.glob("lamina-*.tar.gz")):
        old.unlink()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        archive = make_archive(arguments.out)
        plain = make_wheel(archive, folder, LAMINA_LIBRARY=str(LIBRARY))
        wheel = tag_manylinux(plain, arguments.out, arguments.plat)
        print(run(["twine", "check", "--strict", str(archive), str(wheel)]))
        python = install_alone(wheel, folder / "alone")
        print(run([str(python), "-m", "lamina.cli", "doctor"], folder))
    for file in (archive, wheel):
        print(f"{file}: {file.stat().st_size / 2**20:.1f} MB")


if __name__ == "__main__":
    main()
