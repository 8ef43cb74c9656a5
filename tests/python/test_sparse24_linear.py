"""Sparse24Int8Linear, and lamina.compress with the schemes that make it."""

from __future__ import annotations

import copy
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lamina
from lamina.compression import sparse24_plan
from lamina.compression.budget import dense_layers
from lamina.nn import Int8Linear, Sparse24Int8Linear
from lamina.quant import hessian, prune_sparse24, prune_sparse24_int8
from tests.python.test_int8_linear import seeded
from tests.support.compare import assert_equal

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def linear(n: int = 40, k: int = 64, bias: bool = True, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(n + k)
    return nn.Linear(k, n, bias=bias, dtype=dtype).eval()


def model() -> nn.Sequential:
    torch.manual_seed(3)
    layers = (nn.Linear(48, 96), nn.GELU(), nn.Linear(96, 128), nn.GELU(), nn.Linear(128, 33))
    return nn.Sequential(*layers).eval()


def pruned_linear(layer: nn.Linear) -> nn.Linear:
    """A copy that is 2:4 by magnitude."""
    result = copy.deepcopy(layer)
    with torch.no_grad():
        result.weight.copy_(prune_sparse24(layer.weight).weight)
    return result


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "k"), [(1, 4), (40, 64), (33, 100)])
def test_it_has_the_bits_of_int8_linear_with_zeros(
    n: int, k: int, dtype: torch.dtype, symmetric: bool
) -> None:
    layer = linear(n, k, dtype=dtype)
    x = seeded(5, k).to(dtype)
    got = Sparse24Int8Linear.from_linear(layer, symmetric=symmetric)
    want = Int8Linear.from_linear(pruned_linear(layer), symmetric=symmetric)
    with torch.inference_mode():
        assert_equal(got(x), want(x))
    assert_equal(got.dequantize_weight(), want.dequantize_weight())
    assert got.weight.dtype is dtype


def test_it_takes_fewer_bytes() -> None:
    layer = linear(512, 1024, bias=False)
    sparse, dense = Sparse24Int8Linear.from_linear(layer), Int8Linear.from_linear(layer)
    assert sparse.weight_packed.nbytes * 8 == dense.weight_packed.nbytes * 5


def test_a_new_layer_is_zero_and_loads_a_state_dict() -> None:
    full = Sparse24Int8Linear.from_linear(linear(), symmetric=False)
    fresh = Sparse24Int8Linear(64, 40)
    assert not fresh.dequantize_weight().any()
    assert_equal(fresh(seeded(2, 64)), torch.zeros(2, 40))
    fresh.load_state_dict(full.state_dict())
    assert fresh.symmetric is False
    with torch.inference_mode():
        assert_equal(fresh(seeded(5, 64)), full(seeded(5, 64)))
    with pytest.raises(RuntimeError, match=r"weight_format is 4; this module reads 1 \(int8_tile\)"):
        Int8Linear(64, 40).load_state_dict(full.state_dict())


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="Sparse24Int8Linear: in_features = 30; must be a multiple of 4"):
        Sparse24Int8Linear(30, 8)
    pruned = prune_sparse24_int8(torch.ones(8, 64))
    with pytest.raises(ValueError, match=r"pruned must be \[40, 64\] like linear, got \[8, 64\]"):
        Sparse24Int8Linear.from_pruned(linear(), pruned)
    with pytest.raises(ValueError, match="the weight is on the meta device"):
        Sparse24Int8Linear.from_linear(nn.Linear(64, 8, device="meta"))


def layers(compressed: nn.Module) -> dict[str, str]:
    return {name: type(m).__name__ for name, m in compressed.named_modules() if isinstance(m, Int8Linear)}


def test_compress_without_calibration_prunes_by_magnitude() -> None:
    plain, compressed = model(), model()
    report = lamina.compress(compressed, "sparse24-w8a8")
    assert set(layers(compressed).values()) == {"Sparse24Int8Linear"}
    assert [row.action for row in report.rows] == ["compress"] * 3
    assert report.bytes_after == sum(b.nbytes for b in compressed.buffers())
    for name in layers(compressed):
        want = Int8Linear.from_linear(pruned_linear(plain.get_submodule(name)))  # type: ignore[arg-type]
        assert_equal(compressed.get_submodule(name).dequantize_weight(), want.dequantize_weight())  # type: ignore[operator]


BATCHES = [seeded(60, 48, seed=seed) * torch.logspace(0, -2, 48) for seed in (1, 2)]


def test_compress_with_calibration_is_sparsegpt_of_each_layer() -> None:
    plain, compressed = model(), model()
    report = lamina.compress(compressed, "sparse24-w8a8_asymmetric", calibration=BATCHES)
    for at in (0, 2, 4):
        weight = plain[at].weight.detach()
        h = hessian([plain[:at](x) for x in BATCHES])
        made = prune_sparse24_int8(weight, h)
        got = compressed[at]
        assert isinstance(got, Sparse24Int8Linear) and got.symmetric is False
        assert_equal(got.dequantize_weight(), made.q * made.scale[:, None])
        change = (made.q * made.scale[:, None] - weight).double()
        squares = [((part @ h.double()) * part).sum() for part in (change, weight.double())]
        error = float((squares[0] / squares[1]).sqrt())
        assert report.rows[at // 2].reason == f"2:4, output error {error:.4f}"


def test_a_weight_that_is_2_4_keeps_its_zeros() -> None:
    compressed = model()
    lamina.prune(compressed, calibration=BATCHES)
    masks = {at: compressed[at].weight != 0 for at in (0, 2, 4)}
    lamina.compress(compressed, "sparse24-w8a8", calibration=BATCHES)
    for at, mask in masks.items():
        assert not compressed[at].dequantize_weight()[~mask].any()  # type: ignore[operator]


@pytest.mark.parametrize("calibration", [None, BATCHES], ids=["magnitude", "sparsegpt"])
def test_a_budget_keeps_the_layers_of_the_largest_error_dense(calibration: Any) -> None:
    reports = lamina.prune(model(), calibration=calibration).layers
    errors = {layer.name: layer.error or 0.0 for layer in reports}
    worst = max(errors, key=lambda name: errors[name])
    limit = sum(sorted(errors.values())[1:]) / 2
    limited, shared = model(), model()
    report = lamina.compress(limited, "sparse24-w8a8", calibration=calibration, max_layer_error=limit)
    kinds = layers(limited)
    assert [name for name, kind in kinds.items() if kind == "Int8Linear"] == [worst]
    assert report.bytes_after == sum(b.nbytes for b in limited.buffers())
    row = next(row for row in report.rows if row.name == worst)
    assert row.action == "compress" and row.reason.startswith("dense: its output error as 2:4, ")
    lamina.compress(shared, "sparse24-w8a8", calibration=calibration, sparse24_fraction=0.6)
    sizes = {
        name: module.weight.numel()
        for name, module in model().named_modules()
        if isinstance(module, nn.Linear)
    }
    sparse = [name for name, kind in layers(shared).items() if kind == "Sparse24Int8Linear"]
    assert 0 < sum(sizes[name] for name in sparse) <= 0.6 * sum(sizes.values())
    nothing = model()
    lamina.compress(nothing, "sparse24-w8a8", calibration=calibration, sparse24_fraction=0)
    assert set(layers(nothing).values()) == {"Int8Linear"}


def test_a_budget_takes_the_smallest_errors_first() -> None:
    errors, elements = {"a": 0.3, "b": 0.1, "c": 0.2}, {"a": 10, "b": 10, "c": 10}
    assert set(dense_layers(errors, elements, 2 / 3, None)) == {"a"}
    assert set(dense_layers(errors, elements, 1 / 3, None)) == {"a", "c"}
    assert set(dense_layers(errors, elements, 1.0, 0.2)) == {"a"}


def test_layers_that_are_named_stay_dense() -> None:
    compressed = model()
    report = lamina.compress(compressed, "sparse24-w8a8", dense=["0", "4"], max_layer_error=1.0)
    assert list(layers(compressed).values()) == ["Int8Linear", "Sparse24Int8Linear", "Int8Linear"]
    assert report.rows[0].reason == "dense: pattern '0'"
    with pytest.warns(UserWarning, match="dense pattern '9' matches no nn.Linear or Conv1D to pack"):
        lamina.compress(model(), "sparse24-w8a8", dense="9")


def test_a_plan_picks_what_was_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = lamina.plan_sparse24(model(), tokens=2, skip="4")
    assert [layer.name for layer in plan.layers] == ["0", "2", "4"]
    for layer in plan.layers[:2]:
        assert layer.dense_us and layer.sparse24_us
        assert layer.pays == (layer.sparse24_us * 1.05 <= layer.dense_us)
        assert layer.reason == (
            f"{layer.dense_us:.1f} us dense, {layer.sparse24_us:.1f} us 2:4, "
            f"{layer.dense_us / layer.sparse24_us:.2f}x"
        )
    assert (plan.layers[2].pays, plan.layers[2].reason) == (False, "skip pattern '4'")
    times = iter([(100.0, 90.0), (100.0, 97.0), (100.0, 120.0)])
    monkeypatch.setattr(sparse24_plan, "_measured", lambda *_: sparse24_plan._Times(*next(times)))
    plan = lamina.plan_sparse24(model(), tokens=1)
    assert [layer.pays for layer in plan.layers] == [True, False, False]
    assert plan.dense == ["2", "4"]
    assert str(plan).endswith("sparse24-w8a8, 1 tokens: 2:4 pays for 1 of 3 layers")
    compressed = model()
    lamina.compress(compressed, "sparse24-w8a8", dense=plan.dense)
    assert list(layers(compressed).values()) == ["Sparse24Int8Linear", "Int8Linear", "Int8Linear"]


def test_a_plan_measures_both_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sample calls one dense and one 2:4 layer, with as many tokens as were asked for."""
    calls: list[tuple[str, tuple[int, ...]]] = []

    def call(layer: nn.Module, x: Tensor) -> float:
        calls.append((type(layer).__name__, tuple(x.shape)))
        return {"Int8Linear": 4e-6, "Sparse24Int8Linear": 3e-6}[type(layer).__name__]

    monkeypatch.setattr(sparse24_plan, "_seconds", call)
    (layer,) = lamina.plan_sparse24(nn.Sequential(linear(512, 1024)), tokens=3).layers
    assert (layer.pays, layer.dense_us, layer.sparse24_us) == (True, pytest.approx(4), pytest.approx(3))
    assert calls == [("Int8Linear", (3, 1024)), ("Sparse24Int8Linear", (3, 1024))] * 31


def test_bad_plans() -> None:
    with pytest.raises(ValueError, match="plan_sparse24: tokens = 0; must be at least 1"):
        lamina.plan_sparse24(model(), 0)
    with pytest.raises(ValueError, match=r"scheme must be one of sparse24-w8a8, .*, got 'w8a8'"):
        lamina.plan_sparse24(model(), 1, "w8a8")
    with pytest.raises(TypeError, match="plan_sparse24: tokens must be an int, got str '1'"):
        lamina.plan_sparse24(model(), "1")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got int"):
        lamina.plan_sparse24(3, 1)  # type: ignore[arg-type]


def test_layers_that_cannot_be_2_4_are_left() -> None:
    odd = nn.Sequential(OrderedDict(odd=nn.Linear(30, 64), even=nn.Linear(64, 64)))
    report = lamina.compress(odd, "sparse24-w8a8")
    assert [(row.action, row.reason) for row in report.rows] == [
        ("skip", "its k = 30 is no multiple of 4"), ("compress", ""),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"scheme": "w8a8", "sparse24_fraction": 0.5},
            "was given with scheme w8a8; allowed with sparse24-w8a8",
        ),
        (
            {"scheme": "sparse24-w8a8", "sparse24_fraction": 1.5},
            r"sparse24_fraction = 1\.5; must be from 0 to 1",
        ),
        (
            {"scheme": "sparse24-w8a8", "max_layer_error": -1.0},
            r"max_layer_error = -1\.0; must be None or at",
        ),
        (
            {"scheme": "sparse24-w8a8", "group": 64},
            "group was given with scheme sparse24-w8a8; allowed with w4a16",
        ),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lamina.compress(model(), **options)


def test_save_and_load(tmp_path: Path) -> None:
    saved = model()
    lamina.compress(saved, "sparse24-w8a8", calibration=BATCHES, sparse24_fraction=0.6)
    lamina.save_compressed(saved, tmp_path)
    with torch.device("meta"):
        loaded = model()
    lamina.load_compressed(loaded, tmp_path)
    assert layers(loaded) == layers(saved)
    with torch.inference_mode():
        assert_equal(loaded(BATCHES[0]), saved(BATCHES[0]))


def test_it_compiles_and_has_no_gradient() -> None:
    layer = Sparse24Int8Linear.from_linear(linear())
    x: Tensor = seeded(5, 64)
    with torch.inference_mode():
        assert_equal(torch.compile(layer, fullgraph=True)(x), layer(x))
    with pytest.raises(RuntimeError, match="Sparse24Int8Linear has no backward pass"):
        layer(x.requires_grad_())
