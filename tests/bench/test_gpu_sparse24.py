"""The suite of the products with 2:4 weights, on CPU tensors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench.cases import Case
from bench.gpu import matmul_sparse24, suite
from bench.gpu.find import REHEARSAL, TARGET_VARIABLE
from bench.gpu.runner import make_context

KINDS = ("int8", "int4", "int4_int8", "bf16", "f16")


@pytest.mark.parametrize("kind", KINDS)
def test_candidates_are_within_their_bounds_and_only_there(kind: str) -> None:
    case = Case("matmul_sparse24", "cpu", 5, 48, 132, "bf16", weight_dtype=kind)
    context = make_context(1, ["lamina-dense", "torch"], (), hot=True)
    found = {candidate.impl: candidate for candidate in matmul_sparse24.candidates(case, context)}
    dense = set() if kind in ("bf16", "f16") else {"lamina-dense"}
    assert found.keys() == {"lamina", "torch_linear", *dense}
    assert context.skipped.keys() == set(matmul_sparse24.PEERS) - found.keys()
    for impl in ("lamina", *dense):
        out = found[impl].call()
        assert isinstance(out, torch.Tensor) and found[impl].check().over_bound <= 1, impl
        out[3, 7] += 0.05 * out.abs().max()
        check = found["lamina"].check_output
        assert check is not None and check(out).over_bound > 1
    plan = found["lamina"].plan or ""
    assert plan.startswith("matmul_sparse24" if kind in ("bf16", "f16") else f"matmul_sparse24_{kind}")


def test_the_suite_runs_each_type_of_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TARGET_VARIABLE, REHEARSAL)
    path = tmp_path / "matmul_sparse24.json"
    arguments = ["matmul_sparse24", "--m", "3", "--shapes", "48x80", "--json", str(path), "--peers", "none"]
    assert suite.main([*arguments, "--weight-dtypes", "int4,bf16"]) == 0
    rows = json.loads(path.read_text())["rows"]
    assert {row["case"]["weight_dtype"] for row in rows} == {"int4", "bf16"}
    assert all(row["median_us"] for row in rows)
    assert suite.main([*arguments, "--weight-dtypes", "int3"]) == 1
