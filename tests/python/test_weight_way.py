"""The way of a weight: packed once, on the device and in the layout of the kernels that will read it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lamina
from lamina.nn import Int4Linear
from lamina.ops.gemm_int4 import gradient_of_a
from lamina.quant import quantize_weight_int4
from tests.python.pretend_cuda import pretend_cuda, recorded
from tests.python.test_act_order import checkpoint
from tests.support.backends import emu_ops


@pytest.fixture
def device() -> Iterator[torch.device]:
    """A pretended device: a real one does not show what crosses to it."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    if emu_ops() is None:
        pytest.skip("this build has no emulator")
    with pretend_cuda() as pretended:
        yield pretended


def linear(device: torch.device, seed: int = 1) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(96, 32).half().to(device)


def model(device: torch.device) -> nn.Sequential:
    """Three layers and two weights."""
    made = nn.Sequential(*(linear(device, seed) for seed in (1, 2)), nn.Linear(96, 32).half().to(device))
    made[2].weight = made[0].weight
    return made


def packed_of(tensors: list[Tensor]) -> list[Tensor]:
    """Those that have the shape of a packed int4 weight."""
    return [t for t in tensors if t.dtype == torch.uint8 and t.dim() == 3]


def from_linear(device: torch.device) -> list[Int4Linear]:
    return [Int4Linear.from_linear(linear(device), group=32)]


def from_quantized(device: torch.device) -> list[Int4Linear]:
    return [Int4Linear.from_quantized(quantize_weight_int4(linear(device).weight, 32))]


def from_gptq(device: torch.device) -> list[Int4Linear]:
    layer = checkpoint(24, 96, 32, order="desc_act")
    tensors = {name: layer[name].to(device) for name in ("qweight", "qzeros", "scales", "g_idx")}
    return [Int4Linear.from_gptq(**tensors)]


def calibrated(device: torch.device) -> list[Int4Linear]:
    made = nn.Sequential(linear(device))
    x = torch.randn(40, 96, generator=torch.Generator().manual_seed(3)).half().to(device)
    lamina.compress(made, "w4a16", group=32, calibration=[x])
    return list(made)  # type: ignore[arg-type]


def compressed(device: torch.device) -> list[Int4Linear]:
    made = model(device)
    lamina.compress(made, "w4a8", group=32)
    assert made[2].weight_packed is made[0].weight_packed
    return list(made)  # type: ignore[arg-type]


MAKERS = pytest.mark.parametrize("make", [from_linear, from_quantized, from_gptq, compressed, calibrated])


@MAKERS
@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_each_weight_is_packed_once_where_it_will_run(
    where: str, make: Callable[[torch.device], list[Int4Linear]], device: torch.device
) -> None:
    with recorded() as traffic:
        layers = make(device if where == "cuda" else torch.device("cpu"))
    weights = {id(layer.weight_packed) for layer in layers}
    assert traffic.packed() == [where] * len(weights)
    assert packed_of(traffic.crossed) == []
    for layer in layers:
        assert layer.weight_packed.device.type == where
        assert layer.packed_weight.layout == {"cpu": "int4_rows", "cuda": "int4_tile"}[where]


@pytest.mark.parametrize("source", ["cpu", "cuda"])
def test_a_saved_weight_is_packed_anew_only_for_another_device(
    source: str, device: torch.device, tmp_path: Path
) -> None:
    saved = model(device if source == "cuda" else torch.device("cpu"))
    lamina.compress(saved, "w4a8", group=32)
    lamina.save_compressed(saved, tmp_path)
    for target in (torch.device("cpu"), device):
        with recorded() as traffic:
            loaded = lamina.load_compressed(model(torch.device("cpu")), tmp_path, device=target)
        assert traffic.packed() == ([] if source == target.type else [target.type] * 2)
        assert loaded[2].weight_packed is loaded[0].weight_packed
        for layer, want in zip(loaded, saved, strict=True):
            assert layer.weight_packed.device.type == target.type
            assert torch.equal(layer.packed_weight.unpack().cpu(), want.packed_weight.unpack().cpu())


def test_a_move_packs_a_weight_once(device: torch.device) -> None:
    layer = Int4Linear.from_linear(linear(torch.device("cpu")), group=32)
    with recorded() as traffic:
        layer.to(device)
    assert traffic.packed() == ["cuda"]
    with recorded() as traffic:
        layer.to(device)
    assert traffic.calls == [] and traffic.crossed == []


def test_an_int8_weight_is_packed_once(device: torch.device) -> None:
    """On the CPU, for every device: it has one layout, and CUDA has no kernel that packs it."""
    made = model(device)
    with recorded() as traffic:
        lamina.compress(made, "w8a8")
    assert [call for call in traffic.calls if "pack" in call[0]] == [("pack_int8", "cpu")] * 2


@pytest.mark.parametrize("act_order", [False, True])
def test_a_gradient_unpacks_the_weight_where_it_is(act_order: bool, device: torch.device) -> None:
    quantized = quantize_weight_int4(linear(torch.device("cpu")).weight, 32, symmetric=False)
    if act_order:
        quantized = quantized._replace(g_idx=torch.arange(96).flip(0).int() // 32)
    layer = Int4Linear.from_quantized(quantized)
    grad = torch.randn(5, 32, generator=torch.Generator().manual_seed(2)).half()
    want = gradient(layer, grad)
    assert torch.equal(want, grad.float() @ layer.dequantize_weight())
    layer.to(device)
    grad = grad.to(device)
    with recorded() as traffic:
        got = gradient(layer, grad)
    assert traffic.calls == [("unpack_int4", "cuda")]
    assert traffic.crossed == []
    assert torch.equal(got.cpu(), want)


def gradient(layer: Int4Linear, grad: Tensor) -> Tensor:
    return gradient_of_a(
        grad, layer.weight_packed, layer.weight_scale, layer.group,
        layer.weight_zero_point, layer.perm, layer.in_features,
    )  # fmt: skip
