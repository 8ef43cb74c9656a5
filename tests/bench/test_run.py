"""A run of bench/run.py: the weights of a model, an interrupt, ceilings of a bad moment, a figure."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from bench import run, runner
from bench.cases import Candidate, Case, Context, parse_sizes, weights_of_model
from bench.gpu.runner import DeviceLost
from bench.models import MODELS, Model
from bench.ops import gemm_int8
from bench.roofline import Ceilings

pytestmark = pytest.mark.usefixtures("short_runs")
SMALL = ["gemm_int8", "--n", "48", "--k", "80", "--rotate-mib", "1"]
TINY = Model(2, 32, 48, 4, 2, 16, 60)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(run.main, list(arguments))


def content(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("1:64,100", [1, 2, 4, 8, 16, 32, 64, 100]),
        ("1:512", [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]),
        ("3:33", [4, 8, 16, 32]),
        ("8:8", [8]),
        ("7, 1:4,2", [7, 1, 2, 4]),
    ],
)
def test_ranges_of_m_are_powers_of_two(text: str, sizes: list[int]) -> None:
    assert parse_sizes(text) == sizes


@pytest.mark.parametrize(
    ("model", "weights"),
    [
        ("llama3-8b", [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (128256, 4096)]),
        ("llama3-70b", [(10240, 8192), (8192, 8192), (57344, 8192), (8192, 28672), (128256, 8192)]),
        ("qwen3-8b", [(6144, 4096), (4096, 4096), (24576, 4096), (4096, 12288), (151936, 4096)]),
        ("smollm2", [(960, 576), (576, 576), (3072, 576), (576, 1536), (49152, 576)]),
    ],
)
@pytest.mark.parametrize("op", ["gemm_int4", "gemm_int4_int8", "gemm_int8", "matmul_sparse24"])
def test_the_weights_of_a_model(op: str, model: str, weights: list[tuple[int, int]]) -> None:
    assert weights_of_model(op, model) == weights


def test_a_run_measures_the_weights_of_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "smollm2", TINY)
    copies: list[set[tuple[object, ...]]] = []
    honest = gemm_int8.GemmInt8Bench.candidates

    def watched(self: gemm_int8.GemmInt8Bench, case: Case, context: Context) -> list[Candidate]:
        found = honest(self, case, context)
        copies.append({key[1:3] for key in context.rotation._rings})
        return found

    monkeypatch.setattr(gemm_int8.GemmInt8Bench, "candidates", watched)
    path = tmp_path / "result.json"
    done = invoke("gemm_int8", "--model", "smollm2", "--m", "1", "--rotate-mib", "1", "--json", str(path))
    assert done.exit_code == 0, done.output
    weights = [(128, 32), (32, 64), (96, 32), (32, 48), (60, 32)]
    assert [(row["case"]["n"], row["case"]["k"]) for row in content(path)["rows"]] == weights
    assert copies == [{weight} for weight in weights], "copies of an earlier weight are still in memory"


def interrupt_at(monkeypatch: pytest.MonkeyPatch, m: int, before: Callable[[], None] = lambda: None) -> None:
    """The case of this m is interrupted."""
    honest = gemm_int8.GemmInt8Bench.candidates

    def planted(self: gemm_int8.GemmInt8Bench, case: Case, context: Context) -> list[Candidate]:
        if case.m == m:
            before()
            raise KeyboardInterrupt
        return honest(self, case, context)

    monkeypatch.setattr(gemm_int8.GemmInt8Bench, "candidates", planted)


def test_an_interrupt_keeps_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "result.json"
    sizes_in_file: list[int] = []

    def look() -> None:
        sizes_in_file.extend(row["case"]["m"] for row in content(path)["rows"])

    interrupt_at(monkeypatch, 4, look)
    done = invoke(*SMALL, "--m", "1:16", "--json", str(path))
    assert sizes_in_file == [1, 2], "the file was not written after each case"
    assert done.exit_code == 130
    assert "interrupted: 3 of 5 cases are missing" in done.output
    assert "m=2 n=48" in done.output and "m=4 n=48" not in done.output
    assert [row["case"]["m"] for row in content(path)["rows"]] == [1, 2]


def test_an_interrupt_of_the_first_case_leaves_an_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "result.json"
    path.write_text("old")
    interrupt_at(monkeypatch, 1)
    done = invoke(*SMALL, "--m", "1,2", "--json", str(path))
    assert done.exit_code == 130
    assert "interrupted: 2 of 2 cases are missing" in done.output
    assert path.read_text() == "old"


@pytest.mark.parametrize(
    ("bad_moments", "options", "measurements", "is_trusted"),
    [
        pytest.param(1, [], 2, True, id="only the start was bad: the sample after the case helps"),
        pytest.param(3, [], 4, True, id="the ceilings are measured again until they are right"),
        pytest.param(99, [], 5, False, id="three more measurements do not help"),
        pytest.param(99, ["--hot"], 5, True, id="a hot run may pass its roofline"),
    ],
)
def test_ceilings_of_a_bad_moment(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bad_moments: int,
    options: list[str],
    measurements: int,
    is_trusted: bool,
) -> None:
    moments = 0

    def planted(ceilings: Ceilings, *_: object) -> None:
        nonlocal moments
        moments += 1
        ops = 1.0 if moments <= bad_moments else 1e18
        ceilings.ops_per_s["int8"] = {isa: ops for isa in ("generic", "avx2", "avx512_vnni", "amx_int8")}

    monkeypatch.setattr(runner, "measure_peaks", planted)
    path = tmp_path / "result.json"
    done = invoke(*SMALL, *options, "--m", "1", "--isa", "generic", "--json", str(path))
    assert done.exit_code == 0, done.output
    assert moments == measurements
    machine = content(path)["machine"]
    again = measurements - 2
    assert machine["ceilings"]["read"][0]["samples"] == 31 + 30 * again
    assert ("ceilings not to be trusted" in done.output) is not is_trusted
    reasons = machine.get("untrusted", [])
    assert bool(reasons) is not is_trusted
    assert all("m=1 n=48 k=80" in reason and "lamina (generic)" in reason for reason in reasons)


def test_a_figure_has_a_panel_for_each_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setitem(MODELS, "smollm2", TINY)
    figure = tmp_path / "figure.svg"
    options = ["--model", "smollm2", "--m", "1,2", "--rotate-mib", "1", "--plot", str(figure)]
    done = invoke("gemm_int8", *options)
    assert done.exit_code == 0, done.output
    text = figure.read_text()
    assert text.count('id="axes_') == 5


def test_a_lost_device_ends_a_run_and_keeps_its_rows(tmp_path: Path) -> None:
    class Lost:
        cases: ClassVar[list[int]] = []

        def measure_ceilings(self) -> None: ...

        def run_case(self, case: Case) -> None:
            if case.m == 2:
                raise DeviceLost("the CUDA context is lost")
            self.cases.append(case.m)

        def to_json(self) -> dict[str, object]:
            return {"cases": self.cases}

    path = tmp_path / "result.json"
    cases = [Case("gemm_int8", "cuda", m, 48, 80, "f32") for m in (1, 2, 4)]
    stop = runner.run_cases(cast(Any, Lost()), cases, Console(), path)
    assert stop is not None and stop.exit_status == 1
    assert str(stop) == "the CUDA context is lost: 2 of 3 cases are missing"
    assert content(path) == {"cases": [1]}
