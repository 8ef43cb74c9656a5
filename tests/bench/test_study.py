"""bench.study: the model of the time of a step, runs that go on, and the page, which shows the files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

import lamina  # noqa: E402
from bench.growth import Line  # noqa: E402
from bench.models import Model  # noqa: E402
from bench.study import decode, formats, kernels, page, results  # noqa: E402
from bench.study.atlas import counted_rows  # noqa: E402
from bench.study.decode import Cell  # noqa: E402
from bench.study.step_time import Attention, Linear, StepTime, best_gain, interpolated  # noqa: E402
from lamina.integrations.transformers import accelerate  # noqa: E402

TINY = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}


def tiny(names: tuple[str, ...]) -> dict[str, Any]:
    torch.manual_seed(1)
    config = transformers.LlamaConfig(**TINY, vocab_size=60, initializer_range=0.3)
    model = transformers.LlamaForCausalLM(config).eval()
    lamina.compress(model, "w8a8", head="w8a8")
    accelerate(model)
    return dict.fromkeys(names, model)


def test_a_table_is_a_line_between_its_points() -> None:
    table = {1.0: 2.0, 4.0: 8.0}
    assert [interpolated(table, at) for at in (0, 1, 2, 4, 9)] == [2, 2, 4, 8, 8]


def test_the_rest_of_a_step_is_found_again() -> None:
    """Steps that the model made give its rest back, and the prediction of another step is then exact."""
    linear = Linear({"format": "w4a8", "rows": m, "least": 0.01 + 0.001 * m} for m in (1, 4, 16))
    queries = ({"kind": "f32/f32", "batch": b, "context": c, "queries": q, "least": 1e-6 * b * c * q}
               for b in (1, 4) for c in (100, 300) for q in (1, 8))  # fmt: skip
    model = StepTime(linear, Attention(queries), 30)
    rest = Line(0.004, 0.0005)
    points = [(m, rest.fixed + rest.each * m, 0.02) for m in (1.0, 3.0, 9.0)]
    assert Line.fit(points) == pytest.approx(rest)
    # Errors are relative: of two measurements of one row, that of the short step has four times the weight.
    assert Line.fit([(1.0, 1.0, 2.0), (1.0, 6.0, 4.0)]) == pytest.approx((2.0, 0.0))
    seconds = model._replace(rest={"w4a8": rest})("w4a8", "f32/f32", 10, 2, 200)
    assert seconds == pytest.approx(0.02 + 30 * 1e-6 * 2 * 200 * 5 + 0.009)


def test_the_budget_ends_at_the_first_step_that_is_too_long() -> None:
    linear = Linear(
        {"format": "f32", "rows": m, "least": s} for m, s in ((1, 1.0), (2, 1.05), (3, 1.2), (4, 1.0))
    )
    assert (linear.budget("f32", 1.1), linear.budget("f32", 1.5)) == (2, 4)


def test_drafts_pay_where_rows_are_cheap() -> None:
    assert best_gain({w: 1.0 for w in range(8)}, 0.5) == pytest.approx((2 - 0.5**7, 7))
    assert best_gain({w: 1.0 + w for w in range(8)}, 0.5) == (1.0, 0)
    assert best_gain({w: 1.0 for w in range(8)}, 0.5, draft_s=0.25) == pytest.approx((1.2, 1))


def test_counted_floors_favour_int8_products_in_large_batches() -> None:
    rows = {row["format"]: row["best"][0.8][0] for row in counted_rows("llama3-8b", 512, (64,))}
    assert rows["w4a16"] < rows["w4a8"] < rows["w8a8"]


def test_intervals_hold_their_mean() -> None:
    middle, low, high = results.interval([1.0, 2.0, 4.0, 5.0])
    assert low < middle == 3.0 < high
    assert results.interval([2.0, 2.0]) == (2.0, 2.0, 2.0)


def measured(cell: Cell, tokens: int, steps: int, verify_s: float, draft_s: float = 0.0) -> dict[str, Any]:
    groups = [
        {"rows": 1 + cell.width, "requests": 1, "count": steps, "verify_s": verify_s, "draft_s": draft_s}
    ]
    row = {"cell": list(cell), "round": 0, "tokens": [tokens], "steps": [steps], "context": 100.0}
    return {**row, "draft_s": [steps * draft_s], "verify_s": [steps * verify_s], "by_rows": groups}


def test_gains_and_predictions_of_known_cells() -> None:
    """Plain decoding takes 2 s for 20 tokens, 2 drafts halve that, a tree of 7 takes 3 calls of the draft."""
    plain = Cell("w4a8", "f32", "answer", 1, "none", 0)
    two, three = (plain._replace(draft="lookup", width=k) for k in (2, 3))
    tree = plain._replace(draft="tree", width=7)
    decoding = results.Decoding([measured(plain, 20, 20, 0.1), measured(two, 20, 8, 0.12, 0.005),
                                 measured(three, 20, 8, 0.2), measured(tree, 20, 5, 0.1, 0.3)])  # fmt: skip
    assert decoding.tokens_per_s(plain) == pytest.approx(10)
    assert decoding.gain(two) == pytest.approx(2.0) and decoding.tokens_a_step(two) == 2.5
    assert decoding.best(three) == two
    assert results.levels(decode.TREE) == 3 and results.levels((0, 0)) == 1
    linear = Linear({"format": "w4a8", "rows": m, "least": 0.1} for m in (1, 8))
    attention = [{"kind": kind, "batch": 1, "context": 100, "queries": 1, "least": 0.0}
                 for kind in ("f32/f32", "f32/int8")]  # fmt: skip
    model = StepTime(linear, Attention(attention), 30)
    assert results.predicted_s(model, tree, decoding.rows[tree][0]) == pytest.approx((5 * 0.4, 5 * 0.4))
    assert results.errors(model, decoding, held_out=True) == {two: pytest.approx(0.1 / 0.125 - 1)}


def test_decoding_goes_on_where_it_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plain = Cell("w8a8", "f32", "copy", 1, "none", 0)
    lookup = plain._replace(draft="lookup", width=2)
    cells = [plain, lookup, Cell("w8a8", "int8", "copy", 4, "loop", 3), plain._replace(draft="tree", width=7)]
    monkeypatch.setattr(decode, "grid", lambda: cells)
    monkeypatch.setattr(decode, "load", tiny)
    monkeypatch.setattr(decode, "ANSWER", 6)
    prompts = {"copy": [[1 + i, 2, 3, 1 + i, 2] for i in range(5)]}
    monkeypatch.setattr(decode, "tokenize", lambda texts: prompts)
    file = tmp_path / "decode.json"
    decode.measure(file, 0, 1)
    assert not file.exists()
    for rounds, rows in ((1, 4), (1, 4), (2, 8)):
        decode.measure(file, None, rounds)
        found = json.loads(file.read_text())["rows"]
        assert len({(Cell(*row["cell"]), row["round"]) for row in found}) == len(found) == rows
    of = {Cell(*row["cell"]): row for row in found}
    assert of[plain]["tokens"] == of[lookup]["tokens"] == of[plain]["steps"] == [5] * 4
    assert of[plain]["drafted"] == [0] * 4
    assert all(steps <= 5 for steps in of[lookup]["steps"]) and sum(of[lookup]["drafted"]) > 0
    for row in found:
        assert sum(group["count"] for group in row["by_rows"]) == sum(row["steps"])


def test_kernel_tables_have_all_cells(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kernels, "ROWS_OF", {"small": (1, 3)})
    monkeypatch.setattr(kernels, "SAMPLES", {"small": 2})
    monkeypatch.setattr(kernels, "ATTENTION", {"small": Model(2, 64, 48, 4, 2, 16, 96)})
    for name, cells in (("CONTEXTS", (20, 40)), ("QUERIES", (1, 3)), ("KINDS", ("f32/int8", "bf16/bf16"))):
        monkeypatch.setattr(kernels, name, {"small": cells})
    monkeypatch.setattr(kernels, "LEAST_BYTES", 1)
    monkeypatch.setattr(formats, "LAYERS", {"small": ((48, 64), (32, 64))})
    file = tmp_path / "kernels.json"
    kernels.measure(file, None, "linear")
    kernels.measure(file, None, "")
    tables = json.loads(file.read_text())["tables"]
    assert len(tables["linear small"]) == 2 * len(formats.FORMATS)
    assert len(tables["attention small"]) == 2 * 2 * 3 * 2
    assert all(row["least"] > 0 for table in tables.values() for row in table)


def test_the_grid_has_each_cell_once_in_each_round() -> None:
    grid = decode.grid()
    assert len(set(grid)) == len(grid) > 200
    for number in range(2):
        assert sorted(decode.in_turns(number)) == sorted(grid)


def test_smollm2_has_all_its_linear_layers() -> None:
    """Merged layers count once, and none is left out."""
    model = tiny(("w8a8",))["w8a8"]
    sizes = [(int(layer.in_features), int(layer.out_features)) for layer in formats.stack_of(model).layers]
    assert sorted(sizes) == sorted([(32, 96), (32, 32), (32, 96), (48, 32), (32, 60)])


def test_the_page_says_what_the_files_say() -> None:
    assert page.PAGE.read_text() == page.filled(page.PAGE.read_text())
