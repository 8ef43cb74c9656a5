"""bench/host_time.py: rows in the shape of all results, and that calls are what they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import host_time, instructions
from bench.results_file import load


@pytest.fixture(autouse=True)
def few_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_time, "CALLS", 8)
    # More than are called: none is met twice.
    monkeypatch.setattr(host_time, "OTHERS", 1024)
    monkeypatch.setattr(host_time, "ALIGNMENT", 16)


def test_rows_say_what_each_way_of_calling_makes(tmp_path: Path) -> None:
    path = tmp_path / "host_time.json"
    sizes = ["--n", "40", "--k", "128", "--m", "3", "--samples", "30"]
    assert host_time.main(["--device", "emulator", *sizes, "--json", str(path)]) == 0
    result = load(path)
    assert result.machine["protocol"]["samples"] == 30
    by_key = {(row["op"], row["case"]["way"]): row for row in result.rows}
    assert {op for op, _ in by_key} == {host_time.DISPATCH, *host_time.OPS}
    for (op, way), row in by_key.items():
        assert row["median_us"] >= row["case"]["fastest_us"] > 0
        assert row["device"] == "emulator"
        assert (row["case"]["beside_torch_us"] is None) == (op == host_time.DISPATCH)
        assert row["case"]["plans"] == (way == "other plan"), (op, way)
        if way == "other weight":
            assert row["case"]["tensor_maps"] >= 1, op


def test_too_few_samples_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert host_time.main(["--device", "emulator", "--samples", "5"]) == 2
    assert "--samples: got 5; a median needs at least 30" in capsys.readouterr().err


def test_instructions_of_a_gpu_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert host_time.main(["--device", "cuda", "--instructions"]) == 2
    assert "--instructions: not allowed with --device cuda" in capsys.readouterr().err


def test_counts_are_read_by_the_names_of_marks(tmp_path: Path) -> None:
    path = tmp_path / "counts.1"
    path.write_text(
        "desc: Timerange: x\ndesc: Trigger: Client Request: gemm_int8, same again\nsummary: 4200\nfn=(1) f\n"
    )
    assert instructions._read(path) == ("gemm_int8, same again", 4200)
    path.write_text("desc: Trigger: Program termination\nsummary: 7\n")
    assert instructions._read(path)[0] == ""
