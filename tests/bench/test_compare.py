"""The verdicts of bench/compare.py on two result files, and the growth of time with m."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from bench import compare
from bench.growth import growth_table
from bench.results_file import ROW_KEYS, Row

MACHINE = {"cpu": "x", "flags": ["avx2"], "cores": 2, "threads": 2, "hot": False, "isa_mask": None}


def make_row(median_us: float | None = 100.0, iqr_us: float = 0.0, impl: str = "lamina", **case: Any) -> Row:
    row: Row = dict.fromkeys(ROW_KEYS)
    shape = {"m": 1, "n": 64, "k": 64, "dtype": "f32", "isa": "avx2", **case}
    return {
        **row, "op": "gemm_int8", "impl": impl, "device": "cpu", "case": shape, "median_us": median_us,
        "iqr_us": iqr_us,
    }  # fmt: skip


def compared(tmp_path: Path, old: list[Row], new: list[Row], **changes: Any) -> Result:
    files = []
    for name, rows, machine in (("old", old, MACHINE), ("new", new, {**MACHINE, **changes})):
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(json.dumps({"machine": machine, "rows": rows}))
    return CliRunner().invoke(compare.main, [str(file) for file in files])


@pytest.mark.parametrize(
    ("iqrs", "new_us", "expected"),
    [
        pytest.param((3, 4), 110.0, "same", id="2 * sqrt(3^2 + 4^2) = 10"),
        pytest.param((3, 4), 90.0, "same", id="faster within the noise"),
        pytest.param((3, 4), 110.1, "slower", id="slower beyond the noise"),
        pytest.param((3, 4), 89.9, "faster", id="faster beyond the noise"),
        pytest.param((0, 10), 119.0, "same", id="the new iqr counts"),
        pytest.param((10, 0), 119.0, "same", id="the old iqr counts"),
        pytest.param((0, 0), 101.0, "same", id="1 % is noise although the iqr is 0"),
        pytest.param((0, 0), 101.1, "slower", id="more than 1 %"),
    ],
)
def test_a_verdict_knows_the_noise(iqrs: tuple[float, float], new_us: float, expected: str) -> None:
    assert compare.verdict(make_row(100.0, iqrs[0]), make_row(new_us, iqrs[1])) == expected


@pytest.mark.parametrize(
    ("row", "status"),
    [
        pytest.param(make_row(150.0), 1, id="lamina is slower"),
        pytest.param(make_row(50.0), 0, id="lamina is faster"),
        pytest.param(make_row(100.5), 0, id="lamina is the same"),
        pytest.param(make_row(None), 1, id="lamina has lost its time"),
        pytest.param(make_row(150.0, impl="torch_f32"), 0, id="a peer is slower"),
    ],
)
def test_the_exit_status_is_a_gate(tmp_path: Path, row: Row, status: int) -> None:
    done = compared(tmp_path, [make_row(impl=row["impl"])], [row])
    assert done.exit_code == status, done.output
    assert ("Error: lamina: gemm_int8 m=1 n=64 k=64" in done.output) == (status == 1)


@pytest.mark.parametrize(
    "other", [{"m": 2}, {"isa": "generic"}, {"values": "uniform"}, {"weight_dtype": "int4"}]
)
def test_rows_of_different_cases_do_not_match(tmp_path: Path, other: dict[str, Any]) -> None:
    done = compared(
        tmp_path, [make_row(), make_row(**other)], [make_row(), make_row(500.0, **{**other, "n": 9})]
    )
    assert done.exit_code == 0, done.output
    assert "old.json: 1 rows" in done.output.replace("\n", "")
    assert "new.json: 1 rows" in done.output.replace("\n", "")
    done = compared(tmp_path, [make_row()], [make_row(**other)])
    assert done.exit_code == 1
    assert "have no row of the same op, case and impl" in done.output


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cpu", "y"),
        ("flags", ["avx2", "avx512f"]),
        ("cores", 4),
        ("threads", 1),
        ("hot", True),
        ("gpu", {"name": "H200"}),
        ("isa_mask", {"level": "avx2"}),
    ],
)
def test_files_of_different_conditions_are_refused(tmp_path: Path, name: str, value: Any) -> None:
    done = compared(tmp_path, [make_row()], [make_row()], **{name: value})
    assert done.exit_code == 1
    assert f"Error: machine.{name}" in done.output
    assert "allowed: the same in both files" in done.output


def test_doubts_of_a_file_are_shown(tmp_path: Path) -> None:
    done = compared(tmp_path, [make_row()], [make_row()], untrusted=["m=1: lamina has 130%"])
    assert done.exit_code == 0
    assert "ceilings not to be trusted: m=1: lamina has 130%" in done.output


def test_a_file_without_rows_of_the_schema_is_refused(tmp_path: Path) -> None:
    for rows in ([{"op": "x"}], None):
        done = compared(tmp_path, rows, [make_row()])  # type: ignore[arg-type]
        assert done.exit_code == 1
        assert "not a result file of bench/run.py" in done.output


def test_growth_is_a_line_for_each_weight() -> None:
    rows = [make_row(30 + 5 * m, m=m) for m in (1, 4, 16)]
    rows += [make_row(8 + 2 * m, m=m, n=128) for m in (1, 4, 16)]
    rows += [make_row(9.0, impl="torch_f32", m=m) for m in (1, 4, 16)]
    rows += [make_row(20 - m, m=m, n=32) for m in (1, 2, 3)]
    table = growth_table(rows)
    assert table is not None
    assert [cells for cells, _ in table.rows] == [
        ["gemm_int8 n=64 k=64 dtype=f32 isa=avx2", "30.0", "5.000", "6.0", "0%"],
        ["gemm_int8 n=128 k=64 dtype=f32 isa=avx2", "8.0", "2.000", "4.0", "0%"],
        ["gemm_int8 n=32 k=64 dtype=f32 isa=avx2", "20.0", "-1.000", "-", "0%"],
    ]


def test_growth_weighs_relative_errors_and_shows_the_largest() -> None:
    m, us = np.array([1, 2, 4]), np.array([10.0, 20.0, 20.0])
    slope, fixed = np.polyfit(m, us, 1, w=1 / us)
    table = growth_table([make_row(float(t), m=int(rows)) for rows, t in zip(m, us, strict=True)])
    assert table is not None
    error = np.abs((fixed + slope * m) / us - 1).max()
    assert table.rows[0][0][1:] == [f"{fixed:.1f}", f"{slope:.3f}", f"{fixed / slope:.1f}", f"{error:.0%}"]


def test_growth_needs_three_sizes() -> None:
    assert growth_table([make_row(1.0 * m, m=m) for m in (1, 2, 2)]) is None
    assert growth_table([make_row(None, m=m) for m in (1, 2, 4)]) is None
