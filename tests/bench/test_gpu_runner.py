"""Rows of GPU files, made on the CPU with a device that only keeps time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from bench import plot, report
from bench.cases import Accuracy, Candidate, Case, Context, OpBench, load_op
from bench.gpu import gemm_int4, gemm_int4_int8, gemm_int8, suite
from bench.gpu.device import Monitor
from bench.gpu.runner import DeviceLost, GpuRunner, make_context
from bench.gpu.timing import GpuProtocol
from bench.results_file import ROW_KEYS, load, save
from bench.table import comparison_tables, make_printer, not_timed_lines, row_tables
from tests.bench.gpu_fake import FakeDevice
from tests.reference import gemm as reference

CASES = [Case("gemm_int8", "cpu", m, 48, 80, "bf16") for m in (1, 24)]
QUICK = GpuProtocol(samples=30, warm_up_s=1e-5, replay_s=1e-5)


class OnCpu:
    """The GPU's candidates, on CPU tensors."""

    name, dtypes, groups, devices = "gemm_int8", ("bf16",), (), ("cpu",)

    def peers_on(self, device: str) -> tuple[str, ...]:
        return gemm_int8.PEERS

    def candidates(self, case: Case, context: Context) -> list[Candidate]:
        return gemm_int8.candidates(case, context)


def make_runner(op: OpBench | None = None, device: FakeDevice | None = None, **more: object) -> GpuRunner:
    context = make_context(3 * 48 * 80, ["torch"], (), hot=False)
    runner = GpuRunner(op or OnCpu(), context, QUICK, device or FakeDevice(), **more)  # type: ignore[arg-type]
    runner.measure_ceilings("cpu", nbytes=1 << 16, extent=64)
    return runner


@pytest.fixture(scope="module")
def result_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gpu") / "gemm_int8.json"
    runner = make_runner()
    assert suite.run_cases(runner, CASES, path, seconds=1e9) == 0
    return path


def test_rows_have_the_schema_and_both_protocols(result_path: Path) -> None:
    rows = load(result_path).rows
    assert {row["impl"] for row in rows} == {"lamina", *gemm_int8.PEERS}
    for row in rows:
        assert tuple(row) == ROW_KEYS
        assert row["case"]["protocol"] in ("do_bench", "graph")
        if row["median_us"] is None:
            assert (row["impl"], row["case"]["m"]) == ("torch_int_mm", 1)
            assert row["case"]["not_timed"] == "torch._int_mm needs m > 16 on CUDA"
            continue
        assert row["gb_per_s"] == pytest.approx(row["case"]["bytes"] / row["median_us"] / 1e3)
        assert row["ops_per_s"] == pytest.approx(row["case"]["ops"] / row["median_us"] * 1e6)
        assert row["roofline_fraction"] > 0
        assert row["case"]["clocks"] == {"sm_mhz": 1000.0}
    graph = next(row for row in rows if row["impl"] == "lamina" and row["case"]["protocol"] == "graph")
    assert graph["case"]["copies"] == 3
    assert graph["case"]["calls_per_sample"] % 3 == 0
    assert graph["case"]["rotation_bytes"] == 3 * 48 * 80
    assert graph["error_over_bound"] <= 1


def test_the_gpu_is_described(result_path: Path) -> None:
    machine = load(result_path).machine
    assert machine["gpu"]["name"] == "fake"
    assert {read["probe"].split()[0] for read in machine["ceilings"]["read"]} == {"torch.sum", "copy_,"}
    assert set(machine["ceilings"]["gop_per_s"]) == {"int8", "bf16"}
    assert machine["clocks"][0]["after"] == "ceilings"
    assert len(machine["library_sha256"]) == 64
    assert machine["protocol"]["samples"] == 30


def test_reports_and_tables_read_it(result_path: Path, tmp_path: Path) -> None:
    for options in ([], ["--overview"]):
        done = CliRunner().invoke(report.main, [str(result_path), *options])
        assert done.exit_code == 0, done.output
        assert "protocol = graph" in done.output
        assert "fake, driver 1, limit 100 W" in done.output
    pytest.importorskip("matplotlib")
    figure = tmp_path / "figure.svg"
    done = CliRunner().invoke(plot.main, [str(result_path), "-o", str(figure), "--protocol", "graph"])
    assert done.exit_code == 0, done.output
    assert figure.exists()


@pytest.mark.parametrize("use_rich", [True, False])
def test_tables_with_and_without_rich(
    result_path: Path, use_rich: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = load(result_path).rows
    show = make_printer(use_rich=use_rich)
    for table in [*comparison_tables(rows), *row_tables(rows)]:
        show(table)
    out = capsys.readouterr().out
    assert "torch_int_mm / lamina" in out
    assert "time / lamina" in out
    assert ("┃" in out) == use_rich
    assert not_timed_lines(rows) == [
        f"not timed: gemm_int8 torch_int_mm m=1 {protocol}: torch._int_mm needs m > 16 on CUDA"
        for protocol in ("do_bench", "graph")
    ]


def test_comparison_divides_by_lamina(result_path: Path) -> None:
    rows = load(result_path).rows
    times = {"lamina": 10.0, "torch_f16": 25.0, "torch_bf16": 5.0, "torch_int_mm": 10.0}
    planted = [
        {**row, "median_us": row["median_us"] and times[row["impl"]] * (row["case"]["protocol"] == "graph")}
        for row in rows
    ]
    first, second = (cells for cells, _ in comparison_tables(planted)[0].rows)
    assert first[7:] == ["2.50 | -", "0.50 | -", "- | -"]
    assert second[7:] == ["2.50 | -", "0.50 | -", "1.00 | -"]


def test_comparison_keeps_groups_apart(result_path: Path) -> None:
    (row,) = [row for row in load(result_path).rows if row["impl"] == "lamina"][:1]
    groups: list[int | None] = [None, 32, 128]
    rows = [{**row, "median_us": 1.0 + i, "case": {**row["case"], "group": g}} for i, g in enumerate(groups)]
    del rows[0]["case"]["group"]
    cells = [line for line, _ in comparison_tables(rows)[0].rows]
    protocol = row["case"]["protocol"]
    times = [f"{1.0 + i} | -" if protocol == "graph" else f"- | {1.0 + i}" for i in range(3)]
    assert [(line[3], line[5]) for line in cells] == list(zip(["-", "32", "128"], times, strict=True))


def test_a_second_run_continues_and_a_new_library_starts_over(result_path: Path, tmp_path: Path) -> None:
    content = json.loads(result_path.read_text())
    sha = content["machine"]["library_sha256"]
    assert suite.earlier_result(result_path, sha, "fake") == content
    assert suite.earlier_result(result_path, "another", "fake") is None
    assert suite.earlier_result(result_path, sha, "another GPU") is None
    assert suite.earlier_result(tmp_path / "none.json", sha, "fake") is None

    path = tmp_path / "more.json"
    more = replace(CASES[0], m=3)
    runner = make_runner(earlier=content)
    assert [runner.is_done(case) for case in (*CASES, more)] == [True, True, False]
    assert suite.run_cases(runner, [*CASES, more], path, seconds=1e9) == 0
    continued = load(path)
    assert continued.rows[: len(content["rows"])] == content["rows"]
    assert {row["case"]["m"] for row in continued.rows} == {1, 3, 24}
    assert continued.machine["earlier_runs"][0]["ceilings"] == content["machine"]["ceilings"]


def test_no_case_starts_that_would_end_too_late(tmp_path: Path) -> None:
    path = tmp_path / "partial.json"
    ticks = iter(float(tick) for tick in range(0, 10_000, 10))
    status = suite.run_cases(make_runner(), CASES, path, seconds=15.0, clock=lambda: next(ticks))
    assert status == suite.EXIT_NO_TIME
    assert {row["case"]["m"] for row in load(path).rows} == {1}


class Planted(OnCpu):
    """lamina's candidate, changed."""

    def __init__(self, **changes: object) -> None:
        self.changes = changes

    def candidates(self, case: Case, context: Context) -> list[Candidate]:
        first, *others = super().candidates(case, context)
        return [replace(first, **self.changes), *others]  # type: ignore[arg-type]


def test_a_wrong_result_has_no_speed_and_fails_the_run(tmp_path: Path) -> None:
    path = tmp_path / "wrong.json"
    runner = make_runner(Planted(check=lambda: Accuracy(3.0, 1.5)))
    assert suite.run_cases(runner, CASES[1:], path, seconds=1e9) == suite.EXIT_FAILED
    for row in load(path).rows:
        assert (row["median_us"] is None) == (row["impl"] == "lamina")
    assert "wrong: not timed" in row_tables(load(path).rows)[0].plain()
    again = make_runner(earlier=json.loads(path.read_text()))
    assert not again.is_done(CASES[1])
    assert again.has_failed_before(CASES[1])
    assert suite.run_cases(again, CASES[1:], path, seconds=1e9) == 0
    assert len(load(path).rows) == 8, "the wrong rows are replaced"


def test_a_graph_that_computes_something_else_is_found() -> None:
    runner = make_runner(Planted(check_output=lambda out: Accuracy(3.0, 1.5)))
    runner.run_case(CASES[1])
    rows = {row["case"]["protocol"]: row for row in runner.rows() if row["impl"] == "lamina"}
    assert rows["do_bench"]["median_us"] > 0
    assert rows["graph"]["median_us"] is None
    assert rows["graph"]["case"]["not_timed"] == "the replayed graph left a wrong result"


def test_an_exception_is_a_row_and_a_lost_device_ends_the_process(tmp_path: Path) -> None:
    def broken() -> Accuracy:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nhint")

    path = tmp_path / "lost.json"
    lost = make_runner(Planted(check=broken), FakeDevice(alive=False))
    assert suite.run_cases(lost, CASES, path, seconds=1e9) == suite.EXIT_LOST
    rows = load(path).rows
    assert {row["case"]["m"] for row in rows} == {1}
    assert rows[0]["case"]["not_timed"].startswith("RuntimeError: CUDA error: an illegal memory access")
    with pytest.raises(DeviceLost):
        make_runner(Planted(check=broken), FakeDevice(alive=False)).run_case(CASES[0])

    resumed = make_runner(earlier=json.loads(path.read_text()))
    assert suite.run_cases(resumed, CASES, path, seconds=1e9) == 0
    assert [row["case"]["m"] for row in load(path).rows if row["impl"] == "lamina"] == [24, 24, 1, 1]


def test_the_check_is_exact_and_agrees_with_the_reference() -> None:
    case = replace(CASES[1], dtype="f32", values="uniform")
    inputs = gemm_int8.make_inputs(case)
    acc = inputs.a.long() @ inputs.w.long().T
    assert inputs.accuracy(acc.to(torch.int32), is_scaled=False) == Accuracy(0.0, 0.0)
    acc[23, 47] += 1
    wrong = inputs.accuracy(acc.to(torch.int32), is_scaled=False)
    assert wrong.max_error == 1.0
    assert wrong.over_bound > 1
    a, w, a_scale, w_scale = (x.numpy() for x in (inputs.a, inputs.w, inputs.a_scale, inputs.w_scale))
    expected = reference.gemm_int8(reference.accumulate(a, w), a_scale, w_scale, None, torch.float32)
    out = torch.from_numpy(expected.exact)
    out[3, 5] = float("nan")
    assert inputs.accuracy(out).over_bound == float("inf")


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_scales_along_k_are_within_their_bound_and_only_there(dtype: str) -> None:
    case = replace(CASES[1], k=300, dtype=dtype, group=128)
    inputs = gemm_int8.make_inputs(case)
    doubled = replace(inputs, a_scale=inputs.a_scale.double(), w_scale=inputs.w_scale.double())
    a, w = doubled.dequantised()
    lamina, *floats = gemm_int8.candidates(case, make_context(1, ["lamina", "torch_f16"], (), hot=False))
    assert 0 < lamina.check().over_bound <= 1
    assert [peer.impl for peer in floats] == ["torch_f16"]
    exact = a @ w.T
    assert inputs.accuracy(exact).over_bound < 1e-6
    assert inputs.accuracy(exact + 1e-2 * exact.abs()).over_bound > 1


@pytest.mark.parametrize("group", [None, 32])
@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_int4_is_within_its_bound_and_only_there(dtype: str, group: int | None) -> None:
    case = Case("gemm_int4", "cpu", 5, 48, 300, dtype, group=group)
    context = make_context(1, ["lamina", "torch"], (), hot=False)
    found = {candidate.impl: candidate for candidate in gemm_int4.candidates(case, context)}
    assert (
        set(found)
        == {"lamina", "torch_f16", "torch_bf16"}
        == set(gemm_int4.PEERS) - set(context.skipped) | {"lamina"}
    )
    for impl, candidate in found.items():
        if impl.removeprefix("torch_") in ("lamina", dtype):
            assert 0 < candidate.check().over_bound <= 1, impl
    assert "gemm_int4" in str(found["lamina"].plan)
    inputs = gemm_int4.make_inputs(case)
    exact = inputs.a.double() @ inputs.dequantised(torch.float64).T
    assert inputs.accuracy(exact.float()).over_bound < 0.1
    assert inputs.accuracy((exact + 0.1 * exact.abs().max()).float()).over_bound > 1
    with pytest.raises(RuntimeError, match="got shape"):
        inputs.accuracy(exact[:, :40])


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_int4_int8_is_within_its_bound_and_only_there(dtype: str) -> None:
    case = Case("gemm_int4_int8", "cpu", 5, 48, 300, dtype, group=32)
    lamina, *peers = gemm_int4_int8.candidates(case, make_context(1, ["lamina", "torch_f16"], (), hot=False))
    assert [lamina.impl, *(peer.impl for peer in peers)] == ["lamina", "torch_f16"]
    assert 0 < lamina.check().over_bound <= 1
    assert "gemm_int4_int8" in str(lamina.plan)
    inputs = gemm_int4.make_inputs(case)
    exact = inputs.a.double() @ inputs.dequantised(torch.float64).T
    assert gemm_int4_int8.accuracy(inputs, (exact + 0.3 * exact.abs().max()).float()).over_bound > 1


@pytest.mark.parametrize(
    ("m", "n", "k", "why"),
    [(16, 64, 64, "m > 16"), (17, 60, 64, "n % 8"), (17, 64, 60, "k % 8"), (17, 64, 64, None)],
)
def test_int_mm_restrictions(m: int, n: int, k: int, why: str | None) -> None:
    refusal = gemm_int8.int_mm_refusal(Case("gemm_int8", "cuda", m, n, k, "bf16"))
    assert (refusal is None) if why is None else why in str(refusal)


def test_quantize_on_a_device_has_no_isa() -> None:
    op = load_op("quantize_int8")
    assert op.peers_on("cuda") == ("torch_eager",)
    context = make_context(1 << 20, ["torch"], (), hot=False)
    case = Case("quantize_int8", "cpu", 3, 80, 80, "bf16")
    found = op.candidates(case, Context(context.rotation, 1, ["generic"], ["torch"]))
    assert found[0].check_output
    assert found[0].check_output(found[0].call()).over_bound <= 1
    torch.ops.lamina.set_cpu_isa("auto")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gemm_int8", "--shapes", "4096", "--json", "F"], "got '4096'; allowed: NxK"),
        (["gemm_int8", "--shapes", "ax4", "--json", "F"], "got 'ax4'; allowed: NxK"),
        (["gemm_int8", "--shapes", "8x8", "--m", "x", "--json", "F"], "got 'x'; allowed: whole numbers"),
        (["conv", "--shapes", "8x8", "--json", "F"], "invalid choice: 'conv'"),
    ],
)
def test_suite_requests(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        suite.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_without_a_gpu_the_suite_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert suite.main(["gemm_int8", "--shapes", "8x8", "--json", "F"]) == suite.EXIT_FAILED
    assert "no CUDA device that torch" in capsys.readouterr().err
    assert suite.main(["gemm_int8", "--shapes", "8x8", "--peers", "mkl", "--json", "F"]) == suite.EXIT_FAILED
    assert "gemm_int8 on cuda has torch" in capsys.readouterr().err


def test_clocks_come_from_nvidia_smi_where_nvml_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text(
        '#!/bin/sh\ncase "$*" in *clocks.sm*) echo "1980, 3201, [N/A], 41";; '
        '*) echo "580.1, 700.00, 1980, 3201, Enabled";; esac\n'
    )
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    monitor = Monitor("abc")
    assert monitor.source == "nvidia-smi"
    assert monitor.clocks() == {"sm_mhz": 1980.0, "mem_mhz": 3201.0, "temperature_c": 41.0}
    assert monitor.facts()["power_limit_w"] == 700.0
    monkeypatch.setenv("PATH", "/nonexistent")
    assert Monitor("abc").clocks() == {}
    assert Monitor("abc").facts() == {"driver": None, "power_limit_w": None}


def test_a_result_is_written_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "result.json"
    save(path, {"machine": {}, "rows": []})
    with pytest.raises(ValueError, match="JSON compliant"):
        save(path, {"machine": {"x": float("nan")}})
    assert load(path).rows == []
