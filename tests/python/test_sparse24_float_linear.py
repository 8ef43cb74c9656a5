"""Sparse24Linear, and lamina.compress with the scheme sparse24-bf16 that makes it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import lamina
from lamina.nn import Sparse24Linear
from lamina.quant import hessian, prune_sparse24
from tests.python.test_int8_linear import seeded
from tests.python.test_sparse24_linear import BATCHES, DTYPES, linear, model
from tests.support.compare import assert_equal

UNIT = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


@pytest.mark.parametrize("of_x", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "k"), [(1, 4), (40, 64), (33, 100)])
def test_it_is_the_product_with_zeros(n: int, k: int, dtype: torch.dtype, of_x: torch.dtype) -> None:
    layer, x = linear(n, k), seeded(5, k).to(of_x)
    got = Sparse24Linear.from_linear(layer, dtype=dtype)
    weight = prune_sparse24(layer.weight.detach().to(dtype)).weight
    assert_equal(got.dequantize_weight(), weight.float())
    assert got.weight.dtype is torch.float32
    with torch.inference_mode():
        y = got(x)
    assert y.dtype is of_x
    a, w = x.to(dtype).double(), weight.double()
    bias = layer.bias.detach().double()
    exact, size = a @ w.T + bias, a.abs() @ w.abs().T + bias.abs()
    bound = size * 2.0**-24 * (4 + k / 2) + exact.abs() * UNIT[of_x] + 1e-7
    assert bool(((y.double() - exact).abs() <= bound).all())


def test_a_new_layer_is_zero_and_loads_a_state_dict_of_another_dtype() -> None:
    full = Sparse24Linear.from_linear(linear(), dtype=torch.bfloat16)
    fresh = Sparse24Linear(64, 40)
    assert not fresh.dequantize_weight().any()
    fresh.load_state_dict(full.state_dict())
    with torch.inference_mode():
        assert_equal(fresh(seeded(5, 64)), full(seeded(5, 64)))
    assert_equal(full.half().dequantize_weight(), fresh.dequantize_weight())


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="Sparse24Linear: in_features = 30; must be a multiple of 4"):
        Sparse24Linear(30, 8)
    with pytest.raises(ValueError, match=r"dtype must be f32, f16 or bf16, got torch.float64"):
        Sparse24Linear(64, 8, dtype=torch.float64)
    state = Sparse24Linear.from_linear(linear()).state_dict()
    for name, value, message in (
        ("weight_format", torch.tensor([6, 1, 40, 64, 9]), r"weight_format\[4\] \(dtype\) must be below 3"),
        ("weight_packed", torch.zeros(1, 1, 4, dtype=torch.uint8), r"weight_packed must be \[3, 1, 2176\]"),
    ):
        with pytest.raises(RuntimeError, match=message):
            Sparse24Linear(64, 40).load_state_dict(state | {name: value})


def test_compress_save_and_load(tmp_path: Path) -> None:
    plain, compressed = model(), model()
    report = lamina.compress(compressed, "sparse24-bf16", calibration=BATCHES, max_layer_error=1.0)
    assert report.bytes_after == sum(b.nbytes for b in compressed.buffers())
    for at in (0, 2, 4):
        h = hessian([plain[:at](x) for x in BATCHES])
        want = prune_sparse24(plain[at].weight.detach().bfloat16(), h).weight
        assert_equal(compressed[at].dequantize_weight(), want.float())  # type: ignore[operator]
    lamina.save_compressed(compressed, tmp_path)
    with torch.device("meta"):
        loaded = model()
    lamina.load_compressed(loaded, tmp_path)
    with torch.inference_mode():
        assert_equal(loaded(BATCHES[0]), compressed(BATCHES[0]))


def test_layers_that_stay_dense_stay_float() -> None:
    mixed = model()
    report = lamina.compress(mixed, "sparse24-bf16", dense="2")
    assert [type(mixed[at]) for at in (0, 2, 4)] == [Sparse24Linear, nn.Linear, Sparse24Linear]
    assert (report.rows[1].action, report.rows[1].reason) == ("skip", "dense: pattern '2'")
    assert lamina.plan_sparse24(model(), 1, "sparse24-bf16").layers[0].dense_us
