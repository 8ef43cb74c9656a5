"""Layers with 2:4 weights on a CUDA device, or on one that is pretended."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import lamina
from lamina.nn import Sparse24Int4Linear, Sparse24Int8Linear, Sparse24Linear
from lamina.nn.packed_linear import PackedLinear
from lamina.quant import prune_sparse24_int4, prune_sparse24_int8
from tests.python.pretend_cuda import recorded
from tests.python.test_cuda import assert_same_tensors, device  # noqa: F401
from tests.python.test_sparse24_linear import linear

KINDS = ("int8", "int8_asymmetric", "int4", "int4_zeros", "int4_int8", "bf16", "int8_rows", "int4_rows")
EXACT = ("int8", "int8_asymmetric", "int4_int8", "int8_rows")  # the bits of the CPU
N, K, ROWS = 150, 100, (64, 128)


def made(kind: str, layer: nn.Linear) -> PackedLinear:
    """A 2:4 layer with the weight of `layer`, where that is."""
    w = layer.weight.detach().cpu()
    if kind == "bf16":
        return Sparse24Linear.from_linear(layer, dtype=torch.bfloat16)
    if kind == "int8_rows":
        return Sparse24Int8Linear.from_pruned(layer, _dense_int8(w), dense_rows=ROWS)
    if kind.startswith("int8"):
        return Sparse24Int8Linear.from_linear(layer, symmetric=kind == "int8")
    if kind == "int4_rows":
        pruned = prune_sparse24_int4(w, group=32)
        codes = pruned.quantized.q.clone()
        codes[ROWS[0] : ROWS[1]] = torch.arange(K, dtype=torch.uint8) % 16
        rows = pruned._replace(quantized=pruned.quantized._replace(q=codes))
        return Sparse24Int4Linear.from_pruned(layer, rows, dense_rows=ROWS)
    activations = "int8" if kind == "int4_int8" else "float"
    options = {"group": 32, "symmetric": kind != "int4_zeros", "activations": activations}
    return Sparse24Int4Linear.from_linear(layer, **options)


def _dense_int8(w: Tensor) -> lamina.quant.PrunedInt8:
    pruned = prune_sparse24_int8(w)
    q = pruned.q.clone()
    q[ROWS[0] : ROWS[1]] = (torch.arange(K) % 255 - 127).to(torch.int8)
    return pruned._replace(q=q)


def x_for(kind: str) -> Tensor:
    x = torch.randn(5, K, generator=torch.Generator().manual_seed(5))
    return x if kind in EXACT else x.bfloat16()


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_is_packed_once_for_the_device_that_it_is_on(
    kind: str,
    device: torch.device,  # noqa: F811
) -> None:
    dtype = torch.float32 if kind in EXACT else torch.bfloat16
    layer, x = linear(N, K).to(dtype), x_for(kind)
    on_cpu = made(kind, layer)
    with recorded() as traffic:
        module = made(kind, layer.to(device))
    if device.type == "cuda" and traffic.calls:
        assert [op for op, _ in traffic.calls].count("pack_sparse24") == 1
    assert {buffer.device for buffer in module.buffers()} == {device}
    assert module._layout == "sparse24_tile" != on_cpu._layout
    assert int(module.weight_format[0]) == int(on_cpu.weight_format[0]) + 3
    assert torch.equal(module.dequantize_weight().cpu(), on_cpu.dequantize_weight())
    with torch.no_grad():
        got, want = module(x.to(device)).cpu(), on_cpu(x)
    if kind in EXACT:
        assert torch.equal(got, want)
        return
    size = x.float().abs() @ on_cpu.dequantize_weight().abs().T + 1
    assert bool(((got.float() - want.float()).abs() <= 2.0**-7 * size).all())
    assert got.dtype == x.dtype


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_moves_and_a_state_dict_crosses_devices(kind: str, device: torch.device) -> None:  # noqa: F811
    layer, x = linear(N, K).bfloat16(), x_for(kind)
    on_cpu, moved = made(kind, layer), made(kind, layer)
    before = {name: buffer.clone() for name, buffer in on_cpu.named_buffers()}
    with torch.no_grad():
        expected = on_cpu(x)
        moved.to(device)
        there = {name: buffer.clone() for name, buffer in moved.named_buffers()}
        assert not torch.equal(there["weight_packed"].cpu(), before["weight_packed"])
        assert torch.equal(moved.dequantize_weight().cpu(), on_cpu.dequantize_weight())
        for source, place in ((on_cpu, device), (moved, torch.device("cpu"))):
            fresh = type(on_cpu)(K, N, device=place, dtype=torch.bfloat16)
            fresh.load_state_dict(source.state_dict())
            assert {buffer.device for buffer in fresh.buffers()} == {place}
            assert_same_tensors(dict(fresh.named_buffers()), there if place == device else before)
        moved.cpu()
        assert_same_tensors(dict(moved.named_buffers()), before)
        assert torch.equal(moved(x), expected)


@pytest.mark.parametrize(
    "scheme", ["sparse24-w8a8", "sparse24-w4a16_asymmetric", "sparse24-w4a8", "sparse24-bf16"]
)
def test_compress_packs_for_the_device(scheme: str, device: torch.device) -> None:  # noqa: F811
    def stack() -> nn.Sequential:
        torch.manual_seed(7)
        return nn.Sequential(nn.Linear(100, 128), nn.ReLU(), nn.Linear(128, 64, bias=False)).bfloat16()

    on_cpu, model = stack(), stack().to(device)
    assert lamina.compress(model, scheme) == lamina.compress(on_cpu, scheme)
    assert {tensor.device for tensor in model.state_dict().values()} == {device}
    assert_same_tensors(model.cpu().state_dict(), on_cpu.state_dict())


def test_f32_weights_stay_on_the_cpu(device: torch.device) -> None:  # noqa: F811
    module = Sparse24Linear.from_linear(linear(N, K))
    before = module.weight_packed
    for call in (lambda: module.to(device), lambda: Sparse24Linear.from_linear(linear(N, K).to(device))):
        with pytest.raises(ValueError, match="the weight is f32, which CUDA kernels do not multiply"):
            call()
    assert module.weight_packed is before or torch.equal(module.weight_packed, before)


def test_a_plan_measures_on_the_device(
    device: torch.device,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    def seconds(layer: nn.Module, x: Tensor) -> float:
        seen.append((type(layer).__name__, x.device, x.dtype))
        return {"Int8Linear": 4e-6, "Sparse24Int8Linear": 3e-6}[type(layer).__name__]

    monkeypatch.setattr("lamina.compression.sparse24_plan._seconds", seconds)
    (layer,) = lamina.plan_sparse24(nn.Sequential(linear(64, 128).bfloat16().to(device)), tokens=3).layers
    assert layer.pays and layer.reason == "4.0 us dense, 3.0 us 2:4, 1.33x"
    kinds = ("Int8Linear", "Sparse24Int8Linear")
    assert set(seen) == {(kind, device, torch.bfloat16) for kind in kinds}
