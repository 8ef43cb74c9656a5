"""How gpu_check.py judges kernels and tests, and in what order it runs them."""

from __future__ import annotations

import itertools
import json
import os
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.cases import Case
from bench.gpu import one_kernel, plans, run_tests, suite, tests_log, verdicts
from bench.gpu import target as targets
from bench.gpu.find import TARGET_VARIABLE
from bench.gpu.kernels import TOOL_EXIT, by_name, for_tool, judge
from bench.gpu.one_kernel import CHECKS, verdict_of
from bench.gpu.processes import end
from bench.gpu.run_tests import Run, Worker, in_order, is_about
from bench.gpu.stages import EXIT_FAILED, EXIT_NO_TIME, EXIT_NOTHING
from bench.gpu.verdicts import READY, RUNS, Verdict, mark
from bench.table import comparison_tables
from lamina._library import build_info
from tests.support.backends import cuda_kernels, emu_ops, emulated_kernels


def test_every_kernel_of_the_tests_has_a_process_and_a_check() -> None:
    kernels = targets.Target().kernels()
    assert sorted(kernels) == sorted((op, kernel) for op in CHECKS for kernel in cuda_kernels(op))
    assert all(targets.Target().backend(op, kernel).op == op for op, kernel in kernels)


@pytest.mark.slow
@pytest.mark.parametrize("op", CHECKS)
def test_every_kernel_passes_its_check_on_the_emulator(op: str) -> None:
    if emu_ops() is None:
        pytest.skip("this build has no emulator")
    for emulated, problem in itertools.product(emulated_kernels(op), targets.Target.problems):
        CHECKS[op](emulated, *problem)


@pytest.mark.parametrize(
    ("lines", "code", "verdict", "detail"),
    [
        ([mark(READY), mark(RUNS, "m = 5"), mark("right")], 0, "right", ""),
        ([mark(READY), mark("wrong", "3 of 9 elements are wrong")], 0, "wrong", "3 of 9 elements are wrong"),
        ([mark(READY), mark(RUNS, "m = 1"), mark(RUNS, "m = 5")], None, "hung", "in m = 5"),
        ([mark(READY), mark(RUNS, "m = 5"), "a trace"], -11, "crashed", "by SIGSEGV in m = 5"),
        (["ImportError: no torch"], 1, "crashed", "exit status 1 before any problem: ImportError: no torch"),
        ([], 0, "crashed", "exit status 0 before any problem: no output"),
        ([mark(RUNS, "m = 5"), mark("illegal access", "x"), "terminate called"], -6, "illegal access", "x"),
        ([mark(RUNS, "m = 5"), mark("right"), "terminate called"], -6, "crashed", "by SIGABRT in m = 5"),
        (
            ["========= Invalid __global__ read of size 4", "=========     at x", mark("right"),
             "========= ERROR SUMMARY: 2 errors"],
            TOOL_EXIT, "findings", "Invalid __global__ read of size 4; ERROR SUMMARY: 2 errors",
        ),
        (["========= Device not supported.", mark("CUDA error")], 0, "refused", "Device not supported"),
    ],
)  # fmt: skip
def test_a_process_is_judged(lines: list[str], code: int | None, verdict: str, detail: str) -> None:
    found = judge("\n".join(lines), code)
    assert found[0] == verdict
    assert detail in found[1]


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (AssertionError("3 of 9 elements are wrong"), "wrong"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "illegal access"),
        (RuntimeError("gemm_int8_sm80_m16: misaligned address"), "illegal access"),
        (RuntimeError("CUDA error: unspecified launch failure"), "CUDA error"),
        (RuntimeError("CUDA: gemm_int8_sm80_m16: no kernel image is available"), "CUDA error"),
        (RuntimeError("gemm_int8: this torch has no current CUDA stream"), "refused"),
        (RuntimeError("k: got 0; must be a multiple of 4"), "refused"),
        (ValueError("group: got 3; allowed: 16, 32"), "refused"),
        (NotImplementedError("not on CUDA"), "refused"),
        (KeyError("gemm"), "crashed"),
    ],
)
def test_an_exception_is_judged(error: Exception, verdict: str) -> None:
    assert verdict_of(error) == verdict


def test_the_time_limit_begins_once_the_context_is_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Foreign(targets.Target):
        def is_alive(self) -> bool:
            print("makes the context")
            return True

        def refusal(self, backend: Any) -> str:
            return "for another GPU"

    monkeypatch.setattr(targets, "load", Foreign)
    monkeypatch.setattr(one_kernel.faulthandler, "enable", lambda: None)
    monkeypatch.setattr("sys.argv", ["one_kernel.py", "gemm_int8", "sm80_m16"])
    assert one_kernel.main() == 0
    assert capsys.readouterr().out.splitlines()[:2] == ["makes the context", mark(READY)]


def test_a_tool_looks_at_what_is_wrong_first_and_never_at_what_hangs() -> None:
    words = (
        "right",
        "hung",
        "illegal access",
        "refused",
        "wrong",
        "not for this GPU",
        "crashed",
        "CUDA error",
    )
    smoke = [Verdict("gemm", str(i), word) for i, word in enumerate(words)]
    kernels = [
        ("gemm", str(i)) for i in range(len(words) + 1)
    ]  # the last kernel has no verdict, because time ran out
    assert for_tool(kernels, by_name(smoke)) == [("gemm", name) for name in "246708"]


def test_verdicts_are_written_and_read(tmp_path: Path) -> None:
    found = [Verdict("gemm", "a", "right", "", 1.5), Verdict("gemm", "b", "hung", "after: x", 20.0)]
    verdicts.write(tmp_path / "v.json", found)
    assert verdicts.load(tmp_path / "v.json") == found
    assert verdicts.load(tmp_path / "none.json") == verdicts.load(None) == []
    (tmp_path / "v.json").write_text('{"kernels": [{"unknown": 1}]}')
    assert verdicts.load(tmp_path / "v.json") == []
    assert [v.name for v in verdicts.worst_first(found)] == ["gemm_b", "gemm_a"]


A, B = ("gemm_int8", "sm80_m16"), ("gemm_int8_grouped", "sm80_m16")


@pytest.mark.parametrize(
    ("test", "kernel", "op"),
    [
        ("tests/ops/test_gemm_int4_int8_cuda.py::test_x[y]", None, "gemm_int4_int8"),
        ("tests/ops/test_gemm_int4_cuda.py::test_x[y]", None, "gemm_int4"),
        ("tests/ops/test_shapes.py::test_x[y]", A, "gemm_int8"),
        ("tests/ops/test_gemm_int4.py::test_x[y]", B, "gemm_int8"),
    ],
)
def test_tests_of_one_op(test: str, kernel: tuple[str, str] | None, op: str) -> None:
    assert [name for name in CHECKS if is_about(test, kernel, name)] == [op]
    assert is_about(test, kernel, None)


def test_the_order_of_tests() -> None:
    collected = [("a1", A), ("a2", A), ("a3", A), ("b1", B), ("b2", B), ("n1", None), ("c1", ("x", "bad"))]
    assert in_order(collected, {}, {("x", "bad")}) == ["a1", "b1", "n1", "a2", "b2", "a3", "c1"]
    outcomes = {
        "a1": "passed",
        "a2": "failed",
        "b1": "hung",
        "b2": "skipped",
        "n1": "started",
        "c1": "stopped",
    }
    earlier: dict[str, Any] = {test: {"outcome": outcome} for test, outcome in outcomes.items()}
    assert in_order(collected, earlier, {("x", "bad")}) == ["a3", "b2", "c1", "a2", "b1", "n1"]


def make_run(tmp_path: Path, kernels: dict[str, Any]) -> Run:
    run = Run(tmp_path / "tests.jsonl", None, set(), limit_s=0.0, earlier={}, kernels=kernels)
    run.waiting = deque(kernels)
    return run


def test_after_a_hang_the_other_tests_of_the_kernel_are_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path, {"a1": A, "a2": A, "b1": B, "n1": None, "n2": None})
    hangs = Worker(*[None] * 3, test=run.next())  # type: ignore[list-item]
    assert run.is_overdue(hangs)
    assert not run.is_overdue(hangs), "nothing runs in it any more"
    assert run.next() == "b1"
    for test in ("n1", "n2"):  # tests without a kernel do not count for each other
        assert run.next() == test
        assert run.is_overdue(Worker(*[None] * 3, test=test))  # type: ignore[list-item]
    outcomes = {test: entry["outcome"] for test, entry in tests_log.read(run.log).items()}
    assert outcomes == {"a1": "hung", "a2": "left out", "n1": "hung", "n2": "hung"}


def test_a_process_of_tests_has_no_plugin_but_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin that happens to be installed may need what it does not find there."""
    (tmp_path / "bad_plugin.py").write_text("raise RuntimeError('a planted plugin')")
    about = tmp_path / "bad_plugin-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: bad-plugin\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[pytest11]\nbad = bad_plugin\n")
    (tmp_path / "test_it.py").write_text("import pytest\n@pytest.mark.gpu\ndef test_it() -> None: ...\n")
    path = os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", "")))
    monkeypatch.setenv("PYTHONPATH", path)
    with (tmp_path / "log").open("wb") as log:
        worker = Worker.start(["--rootdir", str(tmp_path), str(tmp_path / "test_it.py")], log)
        os.set_blocking(worker.answers.fileno(), True)
        said = worker.lines()
        end(worker.process, ask=False)
        worker.close()
    assert said is not None, (tmp_path / "log").read_text()
    assert [test for test, _ in said[0]["collected"]] == ["test_it.py::test_it"]


def test_the_log_of_tests_survives_a_kill(tmp_path: Path) -> None:
    log = tmp_path / "tests.jsonl"
    assert tests_log.read(log) == {}
    tests_log.append(log, test="a", outcome="started")
    tests_log.append(log, test="a", outcome="passed", seconds=1.0)
    tests_log.append(log, test="b", outcome="started")
    with log.open("a") as file:
        file.write('{"test": "b", "outco')
    entries = tests_log.read(log)
    assert {test: entry["outcome"] for test, entry in entries.items()} == {"a": "passed", "b": "started"}
    assert tests_log.described(entries) == "2 tests: 1 passed, 1 started"


@pytest.mark.parametrize(
    ("outcomes", "status"),
    [
        ({"a": "passed", "b": "skipped"}, 0),
        ({"a": "passed", "b": "failed"}, EXIT_FAILED),
        ({"a": "passed", "b": "hung"}, EXIT_FAILED),
        ({"a": "passed", "tests/no.py": "error"}, EXIT_FAILED),
        ({"a": "passed", "b": "stopped"}, EXIT_NO_TIME),
        ({"a": "passed", "b": "left out"}, EXIT_NO_TIME),
        ({"a": "passed", "b": "started"}, EXIT_NO_TIME),
        ({"a": "passed"}, EXIT_NO_TIME),
        ({"a": "skipped", "b": "skipped"}, EXIT_NOTHING),
        (None, EXIT_FAILED),
    ],
    ids=str,
)
def test_the_exit_status_of_the_tests(
    outcomes: dict[str, str] | None, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def go(run: Run, *_: object) -> None:
        if outcomes is not None:
            errors = [{"test": name, "outcome": word} for name, word in outcomes.items() if word == "error"]
            run.collect({"errors": errors, "collected": [["a", None], ["b", None]]})
            for name, word in outcomes.items():
                run.write(name, word)

    monkeypatch.setattr(Run, "go", go)
    assert run_tests.main(["--log", str(tmp_path / "tests.jsonl")]) == status


@pytest.fixture
def rehearsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TARGET_VARIABLE, "bench.gpu.rehearsal")


SUITE = ("gemm_int8", "--m", "1,3", "--shapes", "40x48", "--peers", "none", "--json")


@pytest.mark.usefixtures("rehearsed")
def test_a_case_in_which_the_process_ended_has_rows_and_goes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "gemm_int8.json"
    right = suite.GpuRunner.run_case

    def killed(runner: suite.GpuRunner, case: Case) -> None:
        before = json.loads(path.read_text())
        assert before["running"] == case.to_json(), "the file names the case before it begins"
        (tmp_path / "killed.json").write_text(json.dumps(before))
        right(runner, case)

    monkeypatch.setattr(suite.GpuRunner, "run_case", killed)
    assert suite.main([*SUITE, str(path)]) == 0
    assert "running" not in json.loads(path.read_text())
    monkeypatch.setattr(suite.GpuRunner, "run_case", lambda *_: None)
    killed_in_second = json.loads((tmp_path / "killed.json").read_text())
    assert killed_in_second["running"]["m"] == 3
    path.write_text(json.dumps(killed_in_second))
    assert suite.main([*SUITE, str(path), "--seconds", "0"]) == suite.EXIT_FAILED
    (why,) = {
        row["case"]["not_timed"] for row in json.loads(path.read_text())["rows"] if row["case"]["m"] == 3
    }
    assert why == "an earlier run ended in this case: it hung, or the time was over"
    monkeypatch.setattr(suite.GpuRunner, "run_case", right)
    capsys.readouterr()
    assert suite.main([*SUITE[:2], "3,2", *SUITE[3:], str(path)]) == 0
    begun = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.endswith("...")]
    assert begun == ["m=2", "m=3"]
    rows = json.loads(path.read_text())["rows"]
    assert sorted(row["case"]["m"] for row in rows) == [1, 1, 2, 2, 3, 3]
    assert all(row["median_us"] for row in rows)


@pytest.mark.usefixtures("rehearsed")
def test_cases_of_kernels_that_are_not_right_go_last_or_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        suite, "kernel_of", lambda case: "gemm_int8_small" if case.m == 1 else "gemm_int8_large"
    )
    small, large = (Verdict("gemm_int8", name, "wrong") for name in ("small", "large"))
    smoke, path = tmp_path / "smoke.json", tmp_path / "result.json"
    verdicts.write(smoke, [small, replace(large, verdict="right")])
    assert suite.main([*SUITE, str(path), "--smoke", str(smoke)]) == 0
    begun = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.endswith("...")]
    assert begun == ["m=3", "m=1"]
    verdicts.write(smoke, [small, large, Verdict("quantize_int8", "rows", "right")])
    assert suite.main([*SUITE, str(path), "--smoke", str(smoke)]) == suite.EXIT_NOTHING
    assert "no kernel of gemm_int8 is right: gemm_int8_small is wrong" in capsys.readouterr().out


ATTENTION = "batch=3 context=40 heads=4/2 head_dim=16 tokens=5 page=7"


@pytest.mark.usefixtures("rehearsed")
def test_attention_is_timed_beside_its_peers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = f"scenario=decode {ATTENTION}; scenario=verify {ATTENTION}; scenario=skewed {ATTENTION}"
    path = tmp_path / "paged_attention.json"
    assert suite.main(["paged_attention", "--cases", cases, "--json", str(path)]) == 0
    rows = json.loads(path.read_text())["rows"]
    lamina = [row for row in rows if row["impl"] == "lamina"]
    by_case = [(row["case"]["scenario"], row["case"].get("tree"), row["case"]["protocol"]) for row in lamina]
    assert sorted(by_case, key=str) == sorted(
        [
            (scenario, tree, protocol)
            for scenario, tree in (("decode", None), ("verify", False), ("verify", True), ("skewed", None))
            for protocol in ("graph", "do_bench")
        ],
        key=str,
    )
    assert all(row["median_us"] and 0 < row["error_over_bound"] <= 1 for row in lamina)
    missing = {row["impl"]: row["case"]["not_timed"] for row in rows if not row["median_us"]}
    assert missing == {name: f"{name} needs a CUDA device" for name in ("torch_varlen", "fa3", "flashinfer")}
    assert {row["impl"] for row in rows} == {"lamina", "torch_sdpa", *missing}
    (table,) = [made.plain() for made in comparison_tables(rows)]
    assert "skewed" in table
    assert len(table.splitlines()) == 3 + 4
    capsys.readouterr()
    assert suite.main(["paged_attention", "--cases", cases, "--json", str(path)]) == 0
    assert "every case is in the file already" in capsys.readouterr().out


@pytest.mark.usefixtures("rehearsed")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("paged_attention", "--cases", "scenario=decode size=4"),
            "--cases: got 'size=4'; allowed: NAME=VALUE",
        ),
        (("paged_attention", "--cases", "page=many"), "--cases: got 'page=many'; allowed: NAME=VALUE"),
        (("paged_attention", "--cases", "scenario=dream"), "--scenario: got 'dream'; allowed: decode"),
        (("paged_attention", "--shapes", "8x8"), "paged_attention has --cases; the other ops have --shapes"),
        (("gemm_int8", "--cases", "page=8"), "paged_attention has --cases; the other ops have --shapes"),
    ],
)
def test_cases_of_attention_are_checked(
    arguments: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert suite.main([*arguments, "--json", str(tmp_path / "F")]) == suite.EXIT_FAILED
    assert message in capsys.readouterr().err


@pytest.mark.skipif(not build_info()["cuda_archs"], reason="lamina is built without CUDA")
def test_the_plan_names_the_kernel_of_a_case(monkeypatch: pytest.MonkeyPatch) -> None:
    class H200:
        major, minor, multi_processor_count = 9, 0, 132

    monkeypatch.setattr(plans.torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(plans.torch.cuda, "get_device_properties", lambda _: H200)
    for op, group in (("gemm_int8", None), ("gemm_int4", 128), ("gemm_int4_int8", 128)):
        found = plans.kernel_of(Case(op, "cuda", 64, 4096, 4096, "bf16", group))
        assert found.removeprefix(f"{op}_") in cuda_kernels(op)
    assert plans.kernel_of(Case("quantize_int8", "cuda", 64, 4096, 4096, "bf16")) == ""
