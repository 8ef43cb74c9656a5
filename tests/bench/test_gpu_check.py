"""gpu_check.py: what it finds on a machine, prepares for a machine and plans to run; its error messages."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import gpu_check
from bench.gpu import prepare, stage_list
from bench.gpu.find import Gpu, cuda_tool, find_gpu
from bench.gpu.library import library_path, needed_glibc, own_glibc
from bench.gpu.prepare import PrepareError
from bench.gpu.stage_list import SUITES, library_file, make_stages
from bench.gpu.stages import Stage
from bench.gpu_check import main, parser
from tests.support.backends import ROOT

PYTHON = sys.executable
GPU = Gpu("fake", "sm_90a")
WORK = Path("/tmp/work")


def wanted(*arguments: str) -> Any:
    return parser().parse_args(["--out", "/tmp/out", *arguments])


def stages_by_name(*arguments: str, gpu: Gpu = GPU) -> dict[str, Stage]:
    return {made.name: made for made in make_stages(wanted(*arguments), gpu, WORK)}


@pytest.fixture
def prebuilt(tmp_path: Path) -> Path:
    """A folder with three bytes in place of the library."""
    library = tmp_path / "prebuilt" / "python" / "lamina" / "_C.abi3.so"
    library.parent.mkdir(parents=True)
    library.write_bytes(b"one")
    library.with_name("_emu.abi3.so").touch()
    return tmp_path / "prebuilt"


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Pretends that this machine has certain CUDA tools."""
    found = {"nvcc": "/tools/nvcc", "compute-sanitizer": "/tools/compute-sanitizer"}
    for module in (stage_list, prepare):
        monkeypatch.setattr(module, "cuda_tool", found.get)
    return found


@pytest.mark.usefixtures("tools")
def test_the_stages_in_the_order_of_their_value(prebuilt: Path) -> None:
    stages = stages_by_name("--prebuilt", str(prebuilt))
    assert list(stages) == [
        *("library", "smoke", "gpu_tests", "device_vectors", "memcheck"),
        *(f"bench_{op}" for op in SUITES),
        *("host_time", "racecheck"),
        *(f"more_{op}" for op in SUITES),
    ]
    assert [made.name for made in stages.values() if made.skip] == []
    assert [made.name for made in stages.values() if made.advises] == ["racecheck"]
    assert list(stages_by_name("--build"))[:2] == ["build", "library"]
    # The command of every stage that may run for long gets a time limit.
    untold = [made.name for made in stages.values() if "{seconds}" not in made.commands[-1]]
    assert untold == ["library", "device_vectors", "host_time"]


def test_the_readme_lists_the_stages_in_their_order(prebuilt: Path) -> None:
    section = (ROOT / "bench" / "README.md").read_text().partition("## gpu_check.py")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| `(\w+?)_?(?:<op>)?` \|", section, flags=re.MULTILINE)
    stages = stages_by_name("--prebuilt", str(prebuilt))
    kinds = [re.sub(f"_({'|'.join(SUITES)})$", "", name) for name in stages]
    assert listed == list(dict.fromkeys(kinds))


@pytest.mark.usefixtures("tools")
def test_only_goes_into_every_stage(prebuilt: Path) -> None:
    stages = stages_by_name("--prebuilt", str(prebuilt), "--only", "gemm_int4")
    assert list(stages) == [
        *("library", "smoke_gemm_int4", "gpu_tests_gemm_int4", "device_vectors", "memcheck_gemm_int4"),
        *("bench_gemm_int4", "host_time", "racecheck_gemm_int4", "more_gemm_int4"),
    ]
    for name in ("smoke_gemm_int4", "gpu_tests_gemm_int4", "memcheck_gemm_int4", "racecheck_gemm_int4"):
        command = stages[name].commands[0]
        assert command[command.index("--only") + 1] == "gemm_int4"


def test_what_a_machine_lacks_is_named(tools: dict[str, str], prebuilt: Path) -> None:
    tools.clear()
    assert {name: made.skip for name, made in stages_by_name().items() if made.skip} == {
        "device_vectors": "nvcc not found",
        "memcheck": "compute-sanitizer not found",
        "racecheck": "compute-sanitizer not found",
    }
    carried = stages_by_name("--prebuilt", str(prebuilt))["device_vectors"]
    assert carried.skip == "no vectors_sm_90a in --prebuilt and no nvcc"
    bare = replace(GPU, missing=("numpy", "pytest", "hypothesis"))
    skips = {name: made.skip for name, made in stages_by_name(gpu=bare).items()}
    assert skips["library"] == ""
    assert skips["smoke"] == skips["memcheck"] == "numpy and pytest not installed"
    assert skips["gpu_tests"] == "numpy and pytest and hypothesis not installed"
    assert skips["bench_gemm_int8"] == "numpy not installed"


@pytest.mark.usefixtures("tools")
def test_a_prebuilt_library_and_its_vectors_are_used(prebuilt: Path) -> None:
    (prebuilt / "vectors_sm_90a").write_text("#!/bin/sh\n")
    stages = stages_by_name("--prebuilt", str(prebuilt))
    assert stages["library"].env["PYTHONPATH"].split(os.pathsep)[0] == str(prebuilt / "python")
    assert stages["device_vectors"].commands == ((str(prebuilt / "vectors_sm_90a"),),)
    assert os.access(prebuilt / "vectors_sm_90a", os.X_OK), "what carried it may drop the mode"
    built = stages_by_name("--prebuilt", str(prebuilt), gpu=Gpu("older", "sm_86"))["device_vectors"]
    assert built.commands[0][0] == "/tools/nvcc"
    (prebuilt / "vectors_sm_80").write_text("#!/bin/sh\n")
    older = stages_by_name("--prebuilt", str(prebuilt), gpu=Gpu("older", "sm_86"))["device_vectors"]
    assert older.commands == ((str(prebuilt / "vectors_sm_80"),),), "8.0's code runs on every 8.x"
    before = gpu_check.made_with(prebuilt, GPU)
    (prebuilt / "python" / "lamina" / "_C.abi3.so").write_bytes(b"two")
    assert gpu_check.made_with(prebuilt, GPU) != before


def test_the_vectors_of_an_arch() -> None:
    hopper = prepare.vectors_command("sm_90a", Path("p"), "nvcc")
    assert {"arch=compute_90a,code=sm_90a", "-cudart", "static", *prepare.HOPPER_VECTORS} <= set(hopper)
    older = prepare.vectors_command("sm_80", Path("p"), "nvcc")
    assert "arch=compute_80,code=sm_80" in older
    assert not set(prepare.HOPPER_VECTORS) & set(older)
    assert all((ROOT / part).is_file() for part in hopper if part.endswith(".cc"))


def test_preparing_without_nvcc_says_so(tools: dict[str, str], tmp_path: Path) -> None:
    tools.clear()
    with pytest.raises(PrepareError, match="nvcc not found: put CUDA's bin folder on the PATH"):
        prepare.prepare(tmp_path, build=False)


def test_a_library_older_than_its_sources_is_not_prepared(
    tools: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library, source = tmp_path / "python" / "lamina" / "_C.abi3.so", tmp_path / "csrc" / "base" / "a.cc"
    for path in (source, library):
        path.parent.mkdir(parents=True)
        path.write_text("")
    os.utime(source, (1000, 1000))
    os.utime(library, (2000, 2000))
    assert prepare.newer_source(tmp_path, library) is None
    os.utime(source, (3000, 3000))
    monkeypatch.setattr(prepare, "ROOT", tmp_path)
    with pytest.raises(PrepareError, match=r"csrc/base/a.cc is newer than .*: build it anew with --build"):
        prepare.prepare(tmp_path / "out", build=False)
    assert tools["nvcc"]


@pytest.mark.skipif(cuda_tool("nvcc") is None, reason="nvcc not found")
def test_what_is_prepared_runs_on_older_machines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        prepare, "newer_source", lambda *_: None
    )  # sources may be newer than the library here
    built = json.loads(torch.ops.lamina.build_info())["cuda_archs"]
    if "90a" not in built:
        with pytest.raises(PrepareError, match="has no code for sm_90a: build it anew with --build"):
            prepare.prepare(tmp_path, build=False, archs=("sm_90a",))
        return
    prepare.prepare(tmp_path, build=False, archs=("sm_90a",))
    said = capsys.readouterr().out
    assert f"use it with --prebuilt {tmp_path}" in said
    assert "NEWER" not in said
    package = tmp_path / "python" / "lamina"
    carried = package / "_C.abi3.so"
    assert carried.stat().st_size <= library_file(None).stat().st_size
    assert "90a" in prepare.cuda_archs(package.parent)  # it loads
    assert (package / "__init__.py").is_file()
    program = tmp_path / "vectors_sm_90a"
    assert (0,) < needed_glibc(program) <= prepare.GLIBC
    if not torch.cuda.is_available():  # the program contains the CUDA runtime, but there is no driver
        done = subprocess.run([program], capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert "CUDA" in done.stdout + done.stderr


def test_the_glibc_that_a_file_needs(tmp_path: Path) -> None:
    path = tmp_path / "library.so"
    path.write_bytes(b"\x7fELF\0GLIBC_2.9\0GLIBC_2.17\0GLIBCXX_3.4.29\0GLIBC_2.2.5\0")
    assert needed_glibc(path) == (2, 17)
    path.write_bytes(b"\x7fELF\0")
    assert needed_glibc(path) == (0,)
    library = library_path()
    assert library is not None
    assert (0,) < needed_glibc(library) <= own_glibc() or own_glibc() == (0,)


@pytest.mark.parametrize(
    ("stdout", "expected"),
    [
        (
            '{"torch": "2", "cuda": "13.0", "name": "H", "compute_capability": [9, 0], "missing": ["rich"]}',
            Gpu("H", "sm_90a", ("rich",)),
        ),
        (
            '{"torch": "2", "cuda": "13.0", "name": "A", "compute_capability": [8, 6], "missing": []}',
            Gpu("A", "sm_86"),
        ),
        ('{"torch": "2", "cuda": null}', "torch 2 (built without CUDA) sees no CUDA device"),
        ('{"torch": "2", "cuda": "13.0"}', "torch 2 (built for CUDA 13.0) sees no CUDA device"),
        ('{"error": "ImportError: No module"}', "torch does not work: ImportError: No module"),
        ("", "torch could not be asked for its GPU: list index out of range"),
    ],
)
def test_what_torch_says_of_the_gpu(stdout: str, expected: Gpu | str) -> None:
    found = find_gpu(lambda *_args, **_options: subprocess.CompletedProcess([], 0, stdout, ""))
    assert found == expected
    if isinstance(found, Gpu) and isinstance(expected, Gpu):
        assert found.missing == expected.missing


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    command = [PYTHON, str(ROOT / "bench" / "gpu_check.py"), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert done.stderr.startswith("no GPU: torch ")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --out DIR (run) or --prepare DIR"),
        (["--out", "/tmp/out", "--prepare", "/tmp/p"], "give either --out DIR (run) or --prepare DIR"),
        (["--out", "/tmp/out", "--minutes", "0"], "--minutes: got 0"),
        (["--out", "/tmp/out", "--prebuilt", "/none"], "--prebuilt: /none has no python/lamina/_C.abi3.so"),
        (["--out", "/tmp/out", "--prebuilt", "/none", "--build"], "--build: not allowed with --prebuilt"),
        (["--out", "/tmp/out", "--resume", "/none"], "--resume: /none is not a file"),
        (["--out", "/tmp/out", "--resume", __file__, "--fresh"], "--fresh: not allowed with --resume"),
        (["--out", "/tmp/out", "--dry-run", "--resume", __file__], "is not an archive of gpu_check.py"),
    ],
)
def test_bad_requests(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def pretended(name: str, code: str) -> Stage:
    return Stage(name, ((PYTHON, "-S", "-c", code),), 1.0)


ROW = {
    **dict.fromkeys(("iqr_us", "gb_per_s", "ops_per_s", "error_over_bound"), 0.5),
    **{"op": "gemm_int8", "impl": "lamina", "device": "cuda", "median_us": 12.5, "roofline_fraction": 0.8},
    "case": {"m": 16, "n": 64, "k": 64, "dtype": "bf16", "protocol": "graph"},
}


def test_a_run_without_rich_leaves_two_files_and_a_second_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tests = ["print('2 failed'); raise SystemExit(1)"]

    def made(request: Any, gpu: Gpu, work: Path) -> list[Stage]:
        (work / "gemm_int8.json").write_text(json.dumps({"machine": {}, "rows": [ROW]}))
        return [pretended("library", "print('loaded')"), pretended("gpu_tests", tests[0])]

    monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.setattr(gpu_check, "find_gpu", lambda: GPU)
    monkeypatch.setattr(gpu_check, "make_stages", made)
    out = tmp_path / "out"
    assert main(["--out", str(out)]) == 1
    said = capsys.readouterr().out
    assert "2 failed" in said
    assert "12.5 | -" in said.splitlines()[-2]
    summary = json.loads((out / "summary.json").read_text())
    assert [(entry["name"], entry["status"]) for entry in summary["stages"]] == [
        ("library", "passed"),
        ("gpu_tests", "failed"),
    ]
    assert summary["benchmarks"]["gemm_int8"]["rows"] == 1
    assert sorted(path.name for path in out.iterdir()) == ["gpu_check.tar.gz", "summary.json"]

    tests[0] = "print('2 passed')"
    assert main(["--out", str(out)]) == 0
    assert "passed (earlier run)" in capsys.readouterr().out
    monkeypatch.setattr(gpu_check, "find_gpu", lambda: Gpu("another", "sm_90a"))
    assert main(["--out", str(out)]) == 0
    assert "is not resumed: its gpu is fake, this run's is another" in capsys.readouterr().out


def test_a_run_that_is_asked_to_end_leaves_what_it_has(tmp_path: Path) -> None:
    """A time limit ends the run with SIGTERM."""
    code = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from bench import gpu_check
from bench.gpu.find import Gpu
from bench.gpu.stages import Stage
gpu_check.find_gpu = lambda: Gpu("fake", "sm_90a")
python = (sys.executable, "-S", "-c")
slow = Stage("b", ((*python, "import time; time.sleep(60)"),), 1)
gpu_check.make_stages = lambda *_: [Stage("a", ((*python, ""),), 1), slow]
raise SystemExit(gpu_check.main(["--out", {str(tmp_path)!r}]))
"""
    run = subprocess.Popen([PYTHON, "-c", code], stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "summary.json").is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    run.send_signal(signal.SIGTERM)
    said = run.communicate(timeout=60)[0]
    assert run.returncode == 128 + signal.SIGTERM
    assert "--resume goes on with it" in said
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [entry["name"] for entry in summary["stages"]] == ["a"]
