"""Layers of which some blocks of rows are dense, and lamina.compress(dense_rows=True), which makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lamina
from lamina.compression.budget import OutputError, common_limit
from lamina.nn import Int4Linear, Int8Linear, Sparse24Int4Linear, Sparse24Int8Linear
from lamina.quant import gptq, hessian, prune_sparse24_int8, quantize_weight_int8
from tests.python.test_int8_linear import seeded
from tests.support.compare import assert_equal

Sparse24 = Sparse24Int8Linear | Sparse24Int4Linear


def model() -> nn.Sequential:
    """Layers whose rows differ in how much 2:4 costs them."""
    torch.manual_seed(11)
    layers = nn.Linear(48, 256), nn.GELU(), nn.Linear(256, 192), nn.GELU(), nn.Linear(192, 70)
    with torch.no_grad():
        layers[0].weight[64:128] *= 5
        layers[2].weight[128:] *= 3
    return nn.Sequential(*layers).eval()


BATCHES = [seeded(200, 48, seed=seed) for seed in (1, 2)]
SCHEMES = ("sparse24-w8a8", "sparse24-w8a8_asymmetric", "sparse24-w4a16_asymmetric", "sparse24-w4a8")


def rows_of(compressed: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: m.dense_rows for name, m in compressed.named_modules() if isinstance(m, Sparse24)}


@pytest.mark.parametrize("calibration", [None, BATCHES], ids=["magnitude", "sparsegpt"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_rows_with_the_largest_errors_are_dense(scheme: str, calibration: Any) -> None:
    whole, mixed, dense = model(), model(), model()
    options: dict[str, Any] = {"calibration": calibration} | ({"group": 16} if "w4" in scheme else {})
    errors = {row.name: row.reason for row in lamina.compress(whole, scheme, **options).rows}
    report = lamina.compress(mixed, scheme, max_layer_error=0.25, dense_rows=True, **options)
    if "w8a8" in scheme:
        options.pop("calibration")
    lamina.compress(dense, scheme.removeprefix("sparse24-"), **options)
    rows = rows_of(mixed)
    assert rows["0"][:2] and rows["0"][0] <= 64 and rows["0"][1] >= 128, (rows, errors)
    for name, bounds in rows.items():
        got, parts = mixed.get_submodule(name), [m.get_submodule(name) for m in (whole, dense)]
        is_dense = torch.zeros(got.out_features, dtype=torch.bool)  # type: ignore[arg-type]
        if bounds:
            is_dense[slice(*bounds)] = True
        sparse_w, dense_w = (part.dequantize_weight() for part in parts)  # type: ignore[operator]
        want = torch.where(is_dense[:, None], dense_w, sparse_w)
        assert_equal(got.dequantize_weight(), want, name)  # type: ignore[operator]
        row = next(row for row in report.rows if row.name == name)
        assert not bounds or row.reason.startswith(
            f"2:4 but for rows {bounds[0]} to {bounds[1]}, output error 0."
        )
        if row.reason:
            assert float(row.reason.rpartition(" ")[2]) <= 0.25
    assert report.bytes_after == sum(buffer.nbytes for buffer in mixed.buffers())


def test_the_output_of_a_row_is_that_of_its_layer() -> None:
    layer, x = nn.Linear(96, 200), seeded(9, 96)
    w = layer.weight.detach()
    pruned, (q, scale) = prune_sparse24_int8(w), quantize_weight_int8(w)
    rows = pruned._replace(q=pruned.q.clone(), scale=pruned.scale.clone())
    rows.q[64:200], rows.scale[64:200] = q[64:200], scale[64:200]
    for symmetric in (True, False):
        got = Sparse24Int8Linear.from_pruned(layer, rows, symmetric=symmetric, dense_rows=(64, 200))
        sparse = Sparse24Int8Linear.from_pruned(layer, pruned, symmetric=symmetric)
        dense = Int8Linear.from_linear(layer, symmetric=symmetric)
        with torch.inference_mode():
            want = torch.cat([sparse(x)[:, :64], dense(x)[:, 64:]], 1)
            assert_equal(got(x), want)
            assert_equal(torch.compile(got, fullgraph=True)(x), want)


@pytest.mark.parametrize("fraction", [0.4, 0.7, 0.95])
def test_a_fraction_gives_all_layers_one_error(fraction: float) -> None:
    mixed = model()
    lamina.compress(mixed, "sparse24-w8a8", sparse24_fraction=fraction, dense_rows=True, calibration=BATCHES)
    counts = {
        name: (module.out_features - sum(rows_of(mixed).get(name, (0, module.out_features))[1::2])
               + sum(rows_of(mixed).get(name, (0, module.out_features))[::2])) * module.in_features
        for name, module in mixed.named_modules() if isinstance(module, Int8Linear)
    }  # fmt: skip
    total = 48 * 256 + 256 * 192 + 192 * 70
    assert fraction - 64 * 256 / total <= sum(counts.values()) / total <= fraction


def test_the_smallest_block_of_rows_is_found() -> None:
    w = torch.ones(320, 8)
    change = torch.zeros(320, 8)
    change[64:192], change[256:300] = 0.2, 0.25
    error = OutputError(w, w + change, None)
    squares = (128 * 0.04, 44 * 0.0625)
    assert error.without() == pytest.approx((sum(squares) / 320) ** 0.5)
    assert error.dense_rows(error.without() * 1.001) == ()
    assert error.dense_rows((squares[1] / 320) ** 0.5 * 1.001) == (64, 192)
    assert error.without((64, 192)) == pytest.approx((squares[1] / 320) ** 0.5)
    assert error.dense_rows((squares[0] / 320) ** 0.5 * 1.001) in ((64, 128), (128, 192), (256, 320))
    assert error.dense_rows(0.0) == (64, 320)
    flat = OutputError(w[:100], w[:100] * 1.1, None)
    assert (flat.dense_rows(0.05), flat.count_sparse(0.05)) == ((0, 100), 0)
    errors, features = {"a": error, "b": flat}, {"a": 8, "b": 8}
    limit = common_limit(errors, features, 0.5)
    assert sum(e.count_sparse(limit) for e in errors.values()) <= 210
    assert common_limit(errors, features, 1.0) >= error.without()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_save_and_load(scheme: str, tmp_path: Path) -> None:
    saved = model()
    lamina.compress(saved, scheme, calibration=BATCHES, max_layer_error=0.25, dense_rows=True)
    assert any(rows_of(saved).values())
    lamina.save_compressed(saved, tmp_path)
    with torch.device("meta"):
        loaded = model()
    lamina.load_compressed(loaded, tmp_path)
    assert rows_of(loaded) == rows_of(saved)
    with torch.inference_mode():
        assert_equal(loaded(BATCHES[0]), saved(BATCHES[0]))


def mixed_layer() -> Sparse24Int8Linear:
    layer = nn.Linear(128, 192)
    return Sparse24Int8Linear.from_pruned(
        layer, prune_sparse24_int8(layer.weight.detach()), dense_rows=(64, 128)
    )


def test_shards_and_tied_layers_keep_the_rows() -> None:
    whole, x = mixed_layer(), seeded(3, 128)
    with torch.inference_mode():
        parts = [whole.shard(n=cut) for cut in ((0, 64), (64, 192))]
        assert [part.dense_rows for part in parts] == [(), (0, 64)]
        assert_equal(torch.cat([part(x) for part in parts], 1), whole(x))
        tied = Sparse24Int8Linear(128, 192)
        tied.share_weight(whole)
        tied.bias = whole.bias
        assert_equal(tied(x), whole(x))
        assert_equal(whole.to(memory_format=torch.channels_last)(x), tied(x))


def test_a_state_dict_sets_the_rows_or_is_refused() -> None:
    full, x = mixed_layer(), seeded(3, 128)
    fresh = Sparse24Int8Linear(128, 192)
    fresh.load_state_dict(full.state_dict())
    with torch.inference_mode():
        assert_equal(fresh(x), full(x))
    plain = Sparse24Int8Linear.from_linear(nn.Linear(128, 192))
    fresh.load_state_dict(plain.state_dict())
    assert fresh.dense_rows == () and fresh.weight_dense is None
    state = full.state_dict()
    header = state["weight_format"].tolist()
    for name, value, message in (
        (
            "weight_format",
            [*header[:-1], 100],
            r"\[5:\] \(blocks of dense rows\) has no such blocks: \[64, 100\]",
        ),
        ("weight_format", header[:-1], r"has no such blocks: \[64\]"),
        ("weight_format", header[:-2], "weight_dense is there, and weight_format has .* rows \\[\\]"),
        ("weight_format", header[:4], r"weight_format must be int64 \[5\], got torch.int64 \[4\]"),
        ("weight_format", [*header[:-2], 0, 128], r"weight_dense must be \[8, 2, 1024\], got \[4, 2, 1024\]"),
        ("weight_dense", None, r"weight_dense is missing, and weight_format has .* rows \[64, 128\]"),
        ("weight_packed", None, "weight_packed is missing"),
        ("weight_packed", [0], r"weight_packed must be \[8, 2, 640\], got \[1\]"),
    ):
        wrong = {key: entry for key, entry in state.items() if key != name or value is not None}
        with pytest.raises(RuntimeError, match=message):
            if value is not None:
                wrong[name] = torch.tensor(value, dtype=state[name].dtype)
            Sparse24Int8Linear(128, 192).load_state_dict(wrong)


def test_bad_options() -> None:
    for scheme, message in (
        (
            "sparse24-bf16",
            "dense_rows was given with scheme sparse24-bf16, which has no product of dense rows",
        ),
        ("w8a8", "dense_rows or dense was given with scheme w8a8; allowed with sparse24-w8a8"),
    ):
        with pytest.raises(ValueError, match=message):
            lamina.compress(model(), scheme, dense_rows=True)


def test_dense_rows_of_int4_are_those_of_gptq() -> None:
    mixed, plain = model(), model()
    lamina.compress(
        mixed, "sparse24-w4a16", group=16, calibration=BATCHES, max_layer_error=0.25, dense_rows=True
    )
    first = mixed[0]
    assert isinstance(first, Sparse24Int4Linear) and first.dense_rows
    want = Int4Linear.from_quantized(gptq(plain[0].weight.detach(), hessian(BATCHES), 16))
    rows = slice(*first.dense_rows)
    assert_equal(first.dequantize_weight()[rows], want.dequantize_weight()[rows])
