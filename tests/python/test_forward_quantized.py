"""Layers that share activations which were quantised once: quantizes, quantize, forward_quantized."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import lamina
from lamina.nn import (
    Int4Linear,
    Int8Linear,
    PackedLinear,
    RMSNorm,
    Sparse24Int4Linear,
    Sparse24Int8Linear,
    Sparse24Linear,
)
from tests.support.cases import FLOAT_DTYPES, dtype_name, generator
from tests.support.compare import assert_equal

N, K = 37, 72


def linear(name: str = "layer") -> torch.nn.Linear:
    g = generator(name)
    made = torch.nn.Linear(K, N)
    with torch.no_grad():
        made.weight.copy_(torch.randn(N, K, generator=g))
        made.bias.copy_(torch.randn(N, generator=g))
    return made


def static(symmetric: bool) -> Int8Linear:
    zero_point = None if symmetric else torch.tensor([-7], dtype=torch.int8)
    q = torch.randint(-127, 128, (N, K), generator=generator("static")).to(torch.int8)
    return Int8Linear.from_quantized(
        q,
        torch.rand(N) + 0.1,
        symmetric=symmetric,
        input_scale=torch.tensor([0.03]),
        input_zero_point=zero_point,
    )


def act_order() -> Int4Linear:
    w = torch.randn(N, K, generator=generator("act order"))
    quantized = lamina.quant.quantize_weight_int4(w, 16, symmetric=False)
    g_idx = (torch.randperm(K, generator=generator("order")) // 16).int()
    return Int4Linear.from_quantized(quantized._replace(g_idx=g_idx), activations="int8")


LAYERS: dict[str, tuple[Callable[[], PackedLinear], str]] = {
    "w8a8": (lambda: Int8Linear.from_linear(linear()), "symmetric"),
    "w8a8 asymmetric": (lambda: Int8Linear.from_linear(linear(), symmetric=False), "asymmetric"),
    "w8a8 static": (lambda: static(True), "static"),
    "w8a8 static asymmetric": (lambda: static(False), "static"),
    "w4a8": (lambda: Int4Linear.from_linear(linear(), group=16, activations="int8"), "symmetric"),
    "w4a8 asymmetric": (
        lambda: Int4Linear.from_linear(linear(), symmetric=False, activations="int8"),
        "symmetric",
    ),
    "w4a8 act order": (act_order, "symmetric"),
    "sparse24 int8": (lambda: Sparse24Int8Linear.from_linear(linear()), "symmetric"),
    "sparse24 w4a8": (
        lambda: Sparse24Int4Linear.from_linear(linear(), group=16, activations="int8"),
        "symmetric",
    ),
}
FLOAT_LAYERS: dict[str, Callable[[], PackedLinear]] = {
    "w4a16": lambda: Int4Linear.from_linear(linear()),
    "sparse24": lambda: Sparse24Linear.from_linear(linear()),
    "sparse24 w4a16": lambda: Sparse24Int4Linear.from_linear(linear()),
}


@torch.no_grad()
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=dtype_name)
@pytest.mark.parametrize("kind", LAYERS)
def test_quantised_activations_give_the_bits_of_forward(kind: str, dtype: torch.dtype) -> None:
    make, quantizes = LAYERS[kind]
    layer = make()
    x = (torch.randn(5, K, generator=generator("x")) + 0.3).to(dtype)
    x[3, 2] = torch.nan
    assert layer.quantizes == quantizes
    a = layer.quantize(x)
    assert_equal(layer.forward_quantized(a, dtype), layer(x), kind)
    assert layer.forward_quantized(a, torch.float32).dtype == torch.float32
    assert layer.forward_quantized(layer.quantize(x[:0]), dtype).shape == (0, N)


@torch.no_grad()
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=dtype_name)
@pytest.mark.parametrize("kind", [*LAYERS, *FLOAT_LAYERS])
def test_a_residual_is_added_before_the_one_rounding(kind: str, dtype: torch.dtype) -> None:
    layer = LAYERS[kind][0]() if kind in LAYERS else FLOAT_LAYERS[kind]()
    x, residual = torch.randn(5, K, generator=generator("x")), torch.randn(5, N, generator=generator("r"))
    residual = residual.to(dtype)
    if kind in LAYERS:
        a = layer.quantize(x)
        want = (layer.forward_quantized(a, torch.float32) + residual).to(dtype)
        assert_equal(layer.forward_quantized(a, dtype, residual), want, kind)
        assert_equal(layer.multiply(a, dtype, residual), want, kind)
    assert_equal(layer.multiply(x, torch.float32, residual), layer(x) + residual, kind)


@torch.no_grad()
@pytest.mark.parametrize("kind", LAYERS)
def test_an_asymmetric_input_is_taken_by_every_layer(kind: str) -> None:
    layer = LAYERS[kind][0]()
    a = lamina.quantize_int8(torch.rand(4, K, generator=generator("a")) + 1, symmetric=False)
    got = layer.forward_quantized(a, torch.float32)
    assert a.zero_point is not None
    x = (a.q.double() - a.zero_point) * a.scale.double()
    bias = 0 if layer.bias is None else layer.bias.double()
    want = x @ layer.dequantize_weight().double().T + bias
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-4)


@torch.no_grad()
def test_layers_share_the_output_of_a_norm() -> None:
    """q, k and v of a block: one quantisation, and the bits of the layers alone."""
    layers = [Int8Linear.from_linear(linear(name)) for name in "qk"]
    layers.append(Int4Linear.from_linear(linear("v"), group=16, activations="int8"))  # type: ignore[arg-type]
    norm = RMSNorm(K, 1e-5, dtype=torch.bfloat16)
    x, residual = torch.randn(2, 2, 3, K, generator=generator("block")).bfloat16()
    assert {layer.quantizes for layer in layers} == {"symmetric"}
    a, added = norm.forward_quantized(x, residual)
    normed, want_added = norm(x, residual)
    assert_equal(added, want_added)
    for layer in layers:
        assert_equal(layer.forward_quantized(a, x.dtype).view(2, 3, N), layer(normed))


@pytest.mark.parametrize("kind", FLOAT_LAYERS)
def test_layers_on_floats_refuse(kind: str) -> None:
    layer, x = FLOAT_LAYERS[kind](), torch.ones(2, K)
    assert layer.quantizes is None
    for call in (
        lambda: layer.quantize(x),
        lambda: layer.forward_quantized(lamina.quantize_int8(x), torch.float32),
    ):
        with pytest.raises(ValueError, match=f"{type(layer).__name__}: this layer multiplies floats"):
            call()


@pytest.mark.parametrize("shape", [(2, K + 1), (2, K - 8), (K,), (1, 2, K)], ids=str)
def test_activations_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    layer = Int8Linear.from_linear(linear())
    a = lamina.QuantizedInt8(torch.zeros(shape, dtype=torch.int8), torch.ones(2, 1), None)
    with pytest.raises(ValueError, match=rf"a.q must be \[m, k\] with k = {K}, got \[{shape[0]}"):
        layer.forward_quantized(a, torch.float32)
