"""Sparse24Int4Linear, and lamina.compress with the int4 schemes that make it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lamina
from lamina.nn import Int4Linear, Sparse24Int4Linear
from lamina.quant import hessian, prune_sparse24, prune_sparse24_int4, quantize_weight_int4
from tests.python.test_int8_linear import seeded
from tests.python.test_sparse24_linear import BATCHES, linear, model, pruned_linear
from tests.support.compare import assert_equal

SCHEMES = ("sparse24-w4a16", "sparse24-w4a16_asymmetric", "sparse24-w4a8", "sparse24-w4a8_asymmetric")


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("activations", ["float", "int8"])
@pytest.mark.parametrize(("n", "k", "group"), [(1, 4, 16), (40, 64, 32), (33, 100, 48), (20, 96, -1)])
def test_it_is_int4_linear_with_zeros(n: int, k: int, group: int, activations: str, symmetric: bool) -> None:
    layer = linear(n, k)
    x = seeded(5, k)
    options: dict[str, Any] = {"group": group, "symmetric": symmetric, "activations": activations}
    got = Sparse24Int4Linear.from_linear(layer, **options)
    want = Int4Linear.from_linear(pruned_linear(layer), **options)
    assert_equal(got.dequantize_weight(), want.dequantize_weight())
    assert (got.group, got.symmetric, got.activations) == (want.group, symmetric, activations)
    with torch.inference_mode():
        if activations == "int8" and symmetric:
            assert_equal(got(x), want(x))
        else:  # the zero points of dropped codes are subtracted by the one, and left out by the other
            size = x.abs() @ want.dequantize_weight().abs().T + 1
            assert bool(((got(x) - want(x)).abs() <= (4e-6 if symmetric else 4e-5) * size).all())


def test_it_takes_fewer_bytes() -> None:
    layer = linear(512, 1024, bias=False)
    sparse, dense = Sparse24Int4Linear.from_linear(layer), Int4Linear.from_linear(layer)
    assert sparse.weight_packed.nbytes * 4 == dense.weight_packed.nbytes * 3


def test_a_new_layer_is_zero_and_loads_a_state_dict() -> None:
    full = Sparse24Int4Linear.from_linear(linear(), group=32, symmetric=False, activations="int8")
    fresh = Sparse24Int4Linear(64, 40)
    assert not fresh.dequantize_weight().any()
    fresh.load_state_dict(full.state_dict())
    assert (fresh.group, fresh.symmetric, fresh.activations) == (32, False, "int8")
    with torch.inference_mode():
        assert_equal(fresh(seeded(5, 64)), full(seeded(5, 64)))
    with pytest.raises(RuntimeError, match=r"weight_format is 5; this module reads 3 \(int4_rows\)"):
        Int4Linear(64, 40).load_state_dict(full.state_dict())


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="Sparse24Int4Linear: in_features = 30; must be a multiple of 4"):
        Sparse24Int4Linear(30, 8)
    dense = quantize_weight_int4(torch.randn(8, 64), 16)
    with pytest.raises(ValueError, match=r"keeps \d of the four places of row 0, group 0"):
        Sparse24Int4Linear.from_quantized(dense)
    g_idx = torch.arange(64, dtype=torch.int32).flip(0) // 16
    pruned = prune_sparse24_int4(torch.randn(8, 64), group=16).quantized
    with pytest.raises(ValueError, match="g_idx must be None: 2:4 weights have no act-order"):
        Sparse24Int4Linear.from_quantized(pruned._replace(g_idx=g_idx))
    with pytest.raises(RuntimeError, match="Sparse24Int4Linear has no backward pass"):
        Sparse24Int4Linear.from_linear(linear())(seeded(5, 64).requires_grad_())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_compress_save_and_load(scheme: str, tmp_path: Path) -> None:
    plain, compressed = model(), model()
    report = lamina.compress(compressed, scheme, group=16, calibration=BATCHES)
    assert report.bytes_after == sum(b.nbytes for b in compressed.buffers())
    for at in (0, 2, 4):
        h = hessian([plain[:at](x) for x in BATCHES])
        want = prune_sparse24_int4(plain[at].weight, h, 16, symmetric="asymmetric" not in scheme)
        got = compressed[at]
        assert isinstance(got, Sparse24Int4Linear)
        assert got.activations == ("int8" if "a8" in scheme else "float")
        assert_equal(got.dequantize_weight(), want.quantized.dequantize())
        assert report.rows[at // 2].reason.startswith("2:4, output error 0.")
    lamina.save_compressed(compressed, tmp_path)
    with torch.device("meta"):
        loaded = model()
    lamina.load_compressed(loaded, tmp_path)
    with torch.inference_mode():
        assert_equal(loaded(BATCHES[0]), compressed(BATCHES[0]))


def test_layers_that_stay_dense_are_rounded_by_gptq() -> None:
    mixed, dense = model(), model()
    lamina.compress(mixed, "sparse24-w4a8", group=32, calibration=BATCHES, dense="2")
    lamina.compress(dense, "w4a8", group=32, calibration=BATCHES)
    assert [type(mixed[at]).__name__ for at in (0, 2, 4)] == [
        "Sparse24Int4Linear", "Int4Linear", "Sparse24Int4Linear",
    ]  # fmt: skip
    assert_equal(mixed[2].dequantize_weight(), dense[2].dequantize_weight())  # type: ignore[operator]


def test_a_weight_that_is_2_4_keeps_its_zeros() -> None:
    layer: nn.Linear = linear()
    with torch.no_grad():
        layer.weight.copy_(prune_sparse24(layer.weight).weight)
    dropped = layer.weight == 0
    stack = nn.Sequential(layer)
    lamina.compress(stack, "sparse24-w4a16", calibration=[seeded(100, 64)])
    assert not stack[0].dequantize_weight()[dropped].any()  # type: ignore[operator]
