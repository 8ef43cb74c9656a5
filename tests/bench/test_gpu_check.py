"""The stages of gpu_check.py with commands that only pretend, and what it says where there is no GPU."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import gpu_check
from bench.gpu.stages import Outcome, Stage, limits, load_outcomes, run_command, run_stage, run_stages
from bench.gpu_check import Gpu, find_gpu, main, make_stages, parser

PYTHON = sys.executable
GPU = Gpu("fake", "sm_90a")


def py(code: str) -> tuple[str, ...]:
    return (PYTHON, "-c", code)


def stage(name: str, *codes: str, **more: Any) -> Stage:
    return Stage(name, tuple(py(code) for code in codes), more.pop("share", 1.0), **more)


@pytest.mark.parametrize(
    ("made", "status", "detail"),
    [
        (stage("good", "print('3 passed')"), "passed", "3 passed"),
        (stage("bad", "print('1 failed'); raise SystemExit(1)"), "failed", "1 failed"),
        (stage("none", "raise SystemExit(5)", codes={5: "no tests"}), "no tests", ""),
        (stage("stops", "raise SystemExit(2)", "print('never')"), "failed", ""),
        (Stage("missing", (("/nonexistent/tool",),), 1), "failed", "No such file"),
        (stage("env", "import os; print(os.environ['FAKE'])", env={"FAKE": "yes"}), "passed", "yes"),
        (stage("told", "import sys; print(sys.argv[1])"), "passed", "{seconds}"),
    ],
    ids=lambda value: value.name if isinstance(value, Stage) else "",
)
def test_a_stage_has_a_status_and_a_log(made: Stage, status: str, detail: str, tmp_path: Path) -> None:
    if made.name == "told":
        made = Stage("told", ((*made.commands[0], "{seconds}"),), 1)
        detail = "45"
    outcome = run_stage(made, 60, tmp_path / "logs" / "x.log", tmp_path, clock=lambda: 0.0)
    assert outcome.status == status
    assert detail in outcome.detail
    text = (tmp_path / "logs" / outcome.log).read_text()
    assert text.startswith("$ ")
    assert "never" not in outcome.detail


def state_of(stat: Path) -> str:
    """Z or X: it has ended."""
    try:
        return stat.read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def test_a_command_over_its_limit_is_ended_with_its_children(tmp_path: Path) -> None:
    slow = Stage("slow", (("sh", "-c", "sleep 60 & echo $!; wait"),), 1)
    outcome = run_stage(slow, 1.0, tmp_path / "slow.log", tmp_path)
    assert outcome.status == "timed out"
    assert outcome.detail.startswith("stopped after 1 s: ")
    child = Path("/proc") / outcome.detail.split()[-1] / "stat"
    deadline = time.monotonic() + 10
    while (state := state_of(child)) not in "ZX" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert state in "ZX"


def test_a_lost_device_is_tried_again(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; p = Path('count'); n = int(p.read_text()) if p.exists() else 0; "
        "p.write_text(str(n + 1)); raise SystemExit(3 if n < {} else 0)"
    )
    twice = stage("twice", code.format(2), retry_code=3)
    assert run_stage(twice, 60, tmp_path / "a.log", tmp_path).status == "passed"
    (tmp_path / "count").unlink()
    always = stage("always", code.format(99), retry_code=3)
    assert run_stage(always, 60, tmp_path / "b.log", tmp_path).status == "failed"
    assert (tmp_path / "count").read_text() == "4"


def test_time_is_shared_and_what_is_left_over_flows_on() -> None:
    stages = [stage("a", share=1), stage("b", share=3)]
    assert limits(stages, 100) == [25, 75]
    assert limits(stages[1:], 90) == [90]
    assert limits(stages, -5) == [0, 0]


def test_failures_do_not_stop_the_rest_and_a_second_run_repeats_only_them(tmp_path: Path) -> None:
    heard: list[str] = []

    def report(event: Outcome | Stage, limit_s: float) -> None:
        heard.append(event.name if isinstance(event, Stage) else f"{event.name} {event.status}")

    stages = [
        stage("a", "print('fine')"),
        stage("b", "raise SystemExit(1)"),
        stage("c", "pass", needs="b"),
        stage("d", "pass", skip="no tool"),
        stage("e", "pass", needs="a"),
    ]
    first = run_stages(stages, tmp_path, tmp_path, 60, {}, report)
    assert [outcome.status for outcome in first] == ["passed", "failed", "skipped", "skipped", "passed"]
    assert [outcome.detail for outcome in first[2:4]] == ["needs the stage b", "no tool"]
    assert heard[:3] == ["a", "a passed", "b"]

    repaired = [stages[0], stage("b", "pass"), *stages[2:]]
    heard.clear()
    earlier = {outcome.name: outcome for outcome in first}
    second = run_stages(repaired, tmp_path, tmp_path, 60, earlier, report)
    assert [outcome.status for outcome in second] == ["passed", "passed", "passed", "skipped", "passed"]
    assert [outcome.resumed for outcome in second] == [True, False, False, False, True]
    assert [name for name in heard if " " not in name] == ["b", "c"]


def test_an_interrupt_ends_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []

    class Interrupted(subprocess.Popen[bytes]):
        def wait(self, timeout: float | None = None) -> int:
            if not ended:
                ended.append(self.pid)
                raise KeyboardInterrupt
            return super().wait(timeout)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    with (tmp_path / "log").open("wb") as log, pytest.raises(KeyboardInterrupt):
        run_command(py("import time; time.sleep(60)"), log, 60, {}, tmp_path)
    assert ended


def test_outcomes_are_of_one_library(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    outcome = Outcome("a", "passed", 1.5, "fine", "a.log", "fine\n")
    path.write_text(json.dumps({"fingerprint": "x", "stages": [outcome.to_json()]}))
    assert load_outcomes(path, "x") == {"a": outcome}
    assert load_outcomes(path, "y") == {}
    path.write_text("{}")
    assert load_outcomes(path, "x") == {}


def wanted(*arguments: str, out: Path = Path("/tmp/out")) -> Any:
    return parser().parse_args(["--out", str(out), *arguments])


def test_the_stages_and_their_order() -> None:
    names = [made.name for made in make_stages(wanted("--build"), GPU)]
    assert names == [
        *("build", "library", "gpu_tests", "device_vectors", "memcheck", "racecheck"),
        *("bench_gemm_int4", "bench_gemm_int4_int8", "bench_gemm_int8", "bench_quantize_int8"),
    ]
    only = {made.name: made for made in make_stages(wanted("--build", "--only", "gemm_int8"), GPU)}
    assert "bench_quantize_int8" not in only
    assert only["gpu_tests_gemm_int8"].commands[0][-2:] == ("-k", "gemm_int8")
    assert only["memcheck_gemm_int8"].commands[0][-1] == "(smallest or ragged) and gemm_int8"


def test_a_prebuilt_library_is_used_and_not_built(tmp_path: Path) -> None:
    library = tmp_path / "python" / "lamina" / "_C.abi3.so"
    library.parent.mkdir(parents=True)
    library.write_bytes(b"one")
    request = wanted("--prebuilt", str(tmp_path))
    stages = make_stages(request, GPU)
    assert stages[0].name == "library"
    assert stages[0].env["PYTHONPATH"].split(":")[0] == str(tmp_path / "python")
    before = gpu_check.fingerprint(tmp_path, GPU)
    library.write_bytes(b"two")
    assert gpu_check.fingerprint(tmp_path, GPU) != before


def test_the_vectors_are_built_for_the_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_check, "cuda_tool", lambda name: f"/tools/{name}")
    assert "is not there" in gpu_check._vectors(GPU, tmp_path).skip
    for source in (gpu_check.MAIN, *gpu_check.VECTORS[""], *gpu_check.VECTORS["sm_90a"]):
        (tmp_path / source).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / source).touch()
    made = gpu_check._vectors(GPU, tmp_path)
    assert not made.skip
    assert {"arch=compute_90a,code=sm_90a", "-Icsrc", "-Itests/cpp", "-fmad=false"} <= set(made.commands[0])
    assert {gpu_check.MAIN, *gpu_check.VECTORS[""], *gpu_check.VECTORS["sm_90a"]} <= set(made.commands[0])
    older = gpu_check._vectors(Gpu("older", "sm_86"), tmp_path).commands[0]
    assert set(gpu_check.VECTORS[""]) <= set(older) and not set(gpu_check.VECTORS["sm_90a"]) & set(older)
    monkeypatch.setattr(gpu_check, "cuda_tool", lambda name: None)
    assert gpu_check._vectors(GPU, tmp_path).skip == "nvcc not found"
    skipped = [made for made in make_stages(wanted("--build"), GPU) if made.skip]
    assert [made.name for made in skipped] == ["device_vectors", "memcheck", "racecheck"]


@pytest.mark.skipif(gpu_check.cuda_tool("nvcc") is None, reason="nvcc not found")
def test_the_vectors_compile(tmp_path: Path) -> None:
    (tmp_path / "build").mkdir()
    command = gpu_check._vectors(GPU, tmp_path).commands[0]
    done = subprocess.run(command, cwd=gpu_check.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("stdout", "expected"),
    [
        ('{"torch": "2", "cuda": "13.0", "name": "H", "compute_capability": [9, 0]}', Gpu("H", "sm_90a")),
        ('{"torch": "2", "cuda": "13.0", "name": "A", "compute_capability": [8, 6]}', Gpu("A", "sm_86")),
        ('{"torch": "2", "cuda": null}', "torch 2 (built without CUDA) sees no CUDA device"),
        ('{"torch": "2", "cuda": "13.0"}', "torch 2 (built for CUDA 13.0) sees no CUDA device"),
        ('{"error": "No module named torch"}', "torch is not installed: No module named torch"),
        ("", "torch could not be asked: list index out of range"),
    ],
)
def test_what_torch_says_of_the_gpu(stdout: str, expected: Gpu | str) -> None:
    assert find_gpu(lambda *_args, **_options: subprocess.CompletedProcess([], 0, stdout, "")) == expected


def run_script(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [PYTHON, str(gpu_check.ROOT / "bench" / "gpu_check.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    done = run_script("--out", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith("no GPU: torch ")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_prints_stages_and_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_check, "find_gpu", lambda: GPU)
    assert main(["--out", str(tmp_path), "--build", "--dry-run", "--minutes", "4"]) == 0
    out = capsys.readouterr().out
    for text in ("GPU: fake, sm_90a", "gpu_tests", "--tool racecheck", "suite.py gemm_int8", "28672x4096"):
        assert text in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--minutes", "0"], "--minutes: got 0"),
        (["--prebuilt", "/nonexistent"], "--prebuilt: /nonexistent has no python/lamina/_C.abi3.so"),
        (["--prebuilt", "/nonexistent", "--build"], "--build: not allowed with --prebuilt"),
    ],
)
def test_bad_requests(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", "/tmp/out", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_whole_run_writes_a_summary_and_prints_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = [
        stage("library", "print('loaded')"),
        stage("gpu_tests", "print('2 failed'); raise SystemExit(1)"),
    ]
    monkeypatch.setattr(gpu_check, "find_gpu", lambda: GPU)
    monkeypatch.setattr(gpu_check, "make_stages", lambda request, gpu: stages)
    row = {
        **dict.fromkeys(("iqr_us", "gb_per_s", "ops_per_s", "error_over_bound"), 0.5),
        **{
            "op": "gemm_int8",
            "impl": "lamina",
            "device": "cuda",
            "median_us": 12.5,
            "roofline_fraction": 0.8,
        },
        "case": {"m": 16, "n": 64, "k": 64, "dtype": "bf16", "protocol": "graph"},
    }
    (tmp_path / "gemm_int8.json").write_text(json.dumps({"machine": {}, "rows": [row]}))
    assert main(["--out", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "2 failed" in out
    assert "12.5 | -" in out
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [(entry["name"], entry["status"]) for entry in summary["stages"]] == [
        ("library", "passed"),
        ("gpu_tests", "failed"),
    ]
    assert summary["results"] == ["gemm_int8.json"]
    assert (tmp_path / "logs" / "gpu_tests.log").read_text().endswith("2 failed\n")

    stages[1] = stage("gpu_tests", "print('2 passed')")
    assert main(["--out", str(tmp_path)]) == 0
    assert "library: passed" in capsys.readouterr().out
