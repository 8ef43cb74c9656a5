"""Result files: the schema that docs read, requests that cannot be met, and the reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from bench import report, run
from bench.cases import Accuracy, Candidate, Case, Context, load_op, op_names
from bench.ops import gemm_int8
from bench.results_file import ROW_KEYS, load

pytestmark = pytest.mark.usefixtures("short_runs")
SMALL = ["--m", "1,3", "--n", "48", "--k", "80", "--rotate-mib", "1", "--peers", "torch"]


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(run.main, list(arguments))


# A scenario of paged_attention takes the place of m, n and k: test_paged_attention.py.
@pytest.fixture(scope="module", params=[name for name in op_names() if name != "paged_attention"])
def result_path(
    short_runs: None, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("bench") / "result.json"
    done = invoke(request.param, *SMALL, "--json", str(path))
    assert done.exit_code == 0, done.output
    return path


def test_every_row_has_the_schema(result_path: Path) -> None:
    rows = load(result_path).rows
    assert {row["case"]["m"] for row in rows} == {1, 3}
    assert {row["impl"] for row in rows} > {"lamina"}
    for row in rows:
        assert tuple(row) == ROW_KEYS
        for key in ("median_us", "gb_per_s", "ops_per_s", "roofline_fraction"):
            assert row[key] > 0, key
        assert row["gb_per_s"] == pytest.approx(row["case"]["bytes"] / row["median_us"] / 1e3)
        assert row["ops_per_s"] == pytest.approx(row["case"]["ops"] / row["median_us"] * 1e6)
        if row["impl"] == "lamina":
            assert row["error_over_bound"] <= 1
            assert row["case"]["isa"]


def test_the_machine_is_described(result_path: Path) -> None:
    machine = load(result_path).machine
    for key in ("cpu", "cores", "flags", "caches_bytes", "versions", "git_sha", "date", "threads", "hot"):
        assert key in machine, key
    assert machine["isa_mask"] is None
    assert machine["rotation_target_bytes"] == 1 << 20
    assert machine["ceilings"]["read"][0]["gb_per_s"] > 0
    assert machine["ceilings"]["gop_per_s"]["int8"]
    assert machine["protocol"]["samples"] >= 30


@pytest.mark.parametrize("options", [[], ["--overview"]])
def test_report_draws_tables(result_path: Path, options: list[str]) -> None:
    done = CliRunner().invoke(report.main, [str(result_path), *options])
    assert done.exit_code == 0, done.output
    assert "| lamina (" in done.output
    widths = {line.count("|") for line in done.output.splitlines() if line.startswith("|")}
    assert len(widths) == 1, "ragged table"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["conv"], f"op: got 'conv'; allowed: {', '.join(op_names())}"),
        (
            ["gemm_int8", "--device", "cuda", "--isa", "avx2"],
            "--isa: of the CPU; not allowed with --device cuda",
        ),
        (["gemm_int8", "--device", "tpu"], "--device: got 'tpu'; allowed: cpu, cuda"),
        (["gemm_int8", "--peers", "mkl"], "--peers: got 'mkl'"),
        (["gemm_int8", "--dtype", "f64"], "--dtype: got 'f64'; gemm_int8 allows f32, bf16, f16"),
        (["gemm_int8", "--group", "32"], "gemm_int8 allows 128"),
        (["gemm_int8", "--m", "0"], "--m: got 0"),
        (["gemm_int8", "--m", "a"], "got 'a'; allowed: whole numbers, ranges such as 1:512, comma separated"),
        (["gemm_int8", "--m", "5:7"], "got '5:7'; allowed: a range that holds a power of two"),
        (
            ["gemm_int8", "--model", "gpt2"],
            "--model: got 'gpt2'; allowed: llama3-8b, llama3-70b, qwen3-8b, ",
        ),
        (
            ["gemm_int8", "--model", "smollm2", "--k", "64"],
            "--k: got 64 with --model smollm2; allowed: --model, or --n and --k",
        ),
        (
            ["quantize_int8", "--model", "smollm2"],
            "--model: got 'smollm2' with quantize_int8; allowed with the matrix products gemm_int4, ",
        ),
        (["paged_attention", "--model", "smollm2"], "--model: of products; not an option of paged_attention"),
        (
            ["gemm_int8", "--plot", "figure.gif"],
            "--plot: got 'figure.gif'; allowed: a file that ends with .s",
        ),
        (["gemm_int8", "--isa", "mmx"], "--isa: got 'mmx'; allowed here: generic"),
        (["gemm_int8", "--samples", "5"], "5 is not in the range"),
    ],
)
def test_a_request_that_cannot_be_met_says_what_is_allowed(arguments: list[str], message: str) -> None:
    done = invoke(*arguments)
    assert done.exit_code != 0
    assert message in done.output


def test_a_wrong_result_has_no_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = gemm_int8.BENCH.candidates

    def planted(_self: object, case: Case, context: Context) -> list[Candidate]:
        found = honest(case, context)
        found[0].check = lambda: Accuracy(3.0, 1.5)
        return found

    monkeypatch.setattr(gemm_int8.GemmInt8Bench, "candidates", planted)
    path = tmp_path / "result.json"
    done = invoke("gemm_int8", *SMALL, "--m", "1", "--json", str(path))
    assert done.exit_code == 1
    assert "wrong: not timed" in done.output
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"]
    assert [row["median_us"] is None for row in rows] == [row["impl"] == "lamina" for row in rows]
    assert rows[0]["error_over_bound"] == 1.5


@pytest.mark.parametrize("case", [Case("gemm_int8", "cpu", 3, 48, 80, "f32")])
def test_the_gemm_check_notices_one_unit(case: Case) -> None:
    inputs = gemm_int8.make_inputs(case)
    acc = inputs.a.astype("int64") @ inputs.w.astype("int64").T
    assert inputs.accuracy_of_integers(acc) == Accuracy(0.0, 0.0)
    acc[2, 47] += 1
    wrong = inputs.accuracy_of_integers(acc)
    assert wrong.max_error == 1.0
    assert wrong.over_bound > 1


def test_scales_along_k_beside_the_peers_that_have_them(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    options = ["--group", "128", "--peers", "torch_f32,onnxruntime", "--json", str(path)]
    done = invoke("gemm_int8", "--n", "48", "--k", "300", "--m", "3", *options)
    assert done.exit_code == 0, done.output
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"]
    assert {row["impl"] for row in rows} == {"lamina", "torch_f32"}
    assert all(row["case"]["group"] == 128 for row in rows)
    assert all(row["error_over_bound"] <= 1 for row in rows if row["impl"] == "lamina")


def test_every_op_declares_what_the_command_line_needs() -> None:
    for name in op_names():
        bench_op = load_op(name)
        assert bench_op.name == name
        assert bench_op.dtypes
        assert "cpu" in bench_op.devices
