"""The wheel in an environment of its own, used from outside the tree."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.support.backends import ROOT
from tools import hub_kernel
from tools import wheel as wheels

SCRIPT = """
import sys, torch, lamina
assert lamina.__file__.startswith(sys.prefix), lamina.__file__
w = torch.tensor([[1, 2, 3], [-128, 127, 0]], dtype=torch.int8)
a = torch.tensor([[-128, 5, 127]], dtype=torch.int8)
print(lamina.gemm_int8(a, lamina.pack_int8(w), torch.tensor([0.5]), torch.ones(2)).tolist())
"""


def tracked_files() -> list[str]:
    """Those that a commit would hold, without the tests."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    files = listed.stdout.splitlines()
    return [file for file in files if (ROOT / file).is_file() and not file.startswith("tests/")]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("source") / "lamina"
    for file in tracked_files():
        (source / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / file, source / file)
    return wheels.make_archive(source / "dist", source)


@pytest.fixture(scope="module", params=["packed", pytest.param("compiled", marks=pytest.mark.slow)])
def wheel(sdist: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made from the archive, as a user would: around the library under test, or around a CPU build."""
    out = tmp_path_factory.mktemp("wheel")
    library = str(wheels.LIBRARY) if request.param == "packed" else ""
    return wheels.make_wheel(sdist, out, LAMINA_LIBRARY=library, LAMINA_CMAKE_ARGS="-DLAMINA_CUDA=OFF")


def test_the_archive_of_the_sources_has_all_that_a_build_reads(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    read = r"(CMakeLists\.txt|setup\.py|pyproject\.toml|README\.md|LICENSE|(cmake|csrc|python)/.*)"
    assert [file for file in tracked_files() if re.fullmatch(read, file) and file not in names] == []


def test_name_says_one_binary_for_every_python(wheel: Path) -> None:
    version, tags = wheel.stem.split("-", 2)[1:]
    assert version
    assert tags.startswith("cp310-abi3-linux")


def test_contents(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    libraries = [name for name in names if name.endswith(".so")]
    assert libraries == ["lamina/_C.abi3.so"], "one library, and no test library"
    assert "lamina/py.typed" in names
    outside = [n for n in names if not n.startswith("lamina/") and ".dist-info/" not in n]
    assert outside == []
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert wheel.stat().st_size < 60 * 2**20


def test_works_in_a_clean_environment(wheel: Path, tmp_path: Path) -> None:
    python = wheels.install_alone(wheel, tmp_path / "venv")
    assert wheels.run([str(python), "-c", SCRIPT], tmp_path).strip() == "[[131.5, 8509.5]]"


def test_an_index_takes_the_tag(wheel: Path, tmp_path: Path) -> None:
    tagged = wheels.tag_manylinux(wheel, tmp_path)
    assert re.fullmatch(r"lamina-[^-]+-cp310-abi3-(manylinux[0-9_]+_x86_64\.?)+", tagged.stem)
    libraries = [name for name in zipfile.ZipFile(tagged).namelist() if ".so" in name]
    assert libraries == ["lamina/_C.abi3.so"], "no copies of torch's libraries"


def test_stable_abi(wheel: Path, tmp_path: Path) -> None:
    audit = shutil.which(
        "torch-abi-audit", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    )
    if audit is None:
        pytest.skip("torch-abi-audit is not installed")
    zipfile.ZipFile(wheel).extract("lamina/_C.abi3.so", tmp_path)
    wheels.run([audit, "--check", "both", str(tmp_path / "lamina" / "_C.abi3.so")], tmp_path)


KERNEL = """
import importlib.util, json, sys
from pathlib import Path
import torch
folder = Path(sys.argv[1])
metadata = json.loads((folder / "metadata.json").read_text())
spec = importlib.util.spec_from_file_location(metadata["id"], folder / "__init__.py")
kernel = sys.modules[metadata["id"]] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kernel)
import lamina
assert lamina.__file__ == str(folder / "lamina" / "__init__.py"), lamina.__file__
assert str(folder) not in sys.path
print(kernel.quantize_int8(torch.tensor([[1.0, -2.0]])).q.tolist(), kernel.flash_attn_varlen_func.__name__)
"""


def test_a_kernel_of_the_hub_is_loaded_from_its_folder(wheel: Path, tmp_path: Path) -> None:
    """As `kernels` loads it: __init__.py is a module of another name, and lamina is on no path."""
    folders = hub_kernel.lay_out(wheel, tmp_path, ["cpu", "cu130"])
    variants = [f"torch-stable-abi211-{backend}-x86_64-linux" for backend in ("cpu", "cu130")]
    assert folders == [tmp_path / "build" / variant for variant in variants]
    assert (tmp_path / "build.toml").read_text() == (ROOT / "build.toml").read_text()
    kinds = [json.loads((folder / "metadata.json").read_text())["backend"]["type"] for folder in folders]
    assert kinds == ["cpu", "cuda"]
    loaded = wheels.run([sys.executable, "-c", KERNEL, str(folders[0])], tmp_path)
    assert loaded.strip() == "[[64, -127]] flash_attn_varlen_func"


def test_the_package_kernels_loads_it(wheel: Path, tmp_path: Path) -> None:
    pytest.importorskip("kernels", reason="pip install kernels")
    hub_kernel.lay_out(wheel, tmp_path, ["cpu"])
    script = (
        f"import pathlib, kernels; print(kernels.get_local_kernel(pathlib.Path({str(tmp_path)!r})).__file__)"
    )
    loaded = wheels.run([sys.executable, "-c", script], tmp_path)
    assert loaded.strip().startswith(str(tmp_path / "build"))
