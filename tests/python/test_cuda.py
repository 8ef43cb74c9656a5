"""Packing, modules, compress and the doctor on a CUDA device, or on one that is pretended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lamina
from lamina import devices, ops, quant
from lamina.devices import CudaDevice, cuda_problem
from lamina.doctor import run as doctor
from lamina.nn import Int4Linear, Int8Linear
from tests.python.pretend_cuda import pretend_cuda
from tests.python.test_act_order import checkpoint
from tests.support.backends import emu_ops

SCHEMES = ("w8a8", "w8a8_asymmetric")
H200 = {"compute_capability": 90, "sm_count": 132, "smem_per_block": 232448, "l2_bytes": 62914560}


@pytest.fixture(params=["pretended", pytest.param("real", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    if request.param == "real":
        request.getfixturevalue("working_gpu")
        yield torch.device("cuda", 0)
        return
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    if emu_ops() is None:
        pytest.skip("this build has no emulator")
    with pretend_cuda() as pretended:
        yield pretended


def weight(n: int, k: int) -> Tensor:
    return torch.randint(-128, 128, (n, k), dtype=torch.int8, generator=torch.Generator().manual_seed(n + k))


def make_model() -> nn.Sequential:
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(100, 70), nn.ReLU(), nn.Linear(70, 33, bias=False)).eval()


def assert_same_tensors(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor.cpu(), right[name].cpu()), name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
def test_work_goes_to_the_stream_that_torch_is_on() -> None:
    stream = torch.cuda.Stream()
    assert torch.ops.lamina.current_cuda_stream(0) == torch.cuda.current_stream(0).cuda_stream
    with torch.cuda.stream(stream):
        assert torch.ops.lamina.current_cuda_stream(0) == stream.cuda_stream != 0


def test_the_device_refuses_to_mix(device: torch.device) -> None:
    with pytest.raises(RuntimeError, match=r"cuda:0.* cpu|cpu.* cuda:0"):
        torch.ones(3).to(device) + torch.ones(3)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (33, 70), (16, 64), (0, 5)])
def test_a_weight_is_packed_where_it_is_with_the_same_bytes(n: int, k: int, device: torch.device) -> None:
    w = weight(n, k)
    expected = lamina.pack_int8(w)
    packed = lamina.pack_int8(w.to(device))
    assert packed.device == packed.column_sums.device == device
    assert torch.equal(packed.data.cpu(), expected.data)
    assert torch.equal(packed.column_sums.cpu(), expected.column_sums)
    assert packed.unpack().device == device
    assert torch.equal(packed.unpack().cpu(), w)
    there_and_back = packed.cpu().cuda(device).cpu()
    assert there_and_back.device.type == "cpu"
    assert torch.equal(there_and_back.unpack(), w)


def test_rows_of_any_stride_are_packed(device: torch.device) -> None:
    wide = weight(20, 90)
    packed = lamina.pack_int8(wide.to(device)[:, 5:75])
    assert torch.equal(packed.data.cpu(), lamina.pack_int8(wide[:, 5:75]).data)


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
def test_a_linear_becomes_int8_where_it_is(
    bias: bool, symmetric: bool, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(3)
    linear = nn.Linear(70, 33, bias=bias)
    x = torch.randn(5, 70)
    expected = Int8Linear.from_linear(linear, symmetric=symmetric)
    devices_seen = []
    quantize = ops.quantize_int8

    def spy(w: Tensor) -> ops.QuantizedInt8:
        devices_seen.append(w.device.type)
        return quantize(w)

    monkeypatch.setattr("lamina.quant.int8.quantize_int8", spy)
    module = Int8Linear.from_linear(linear.to(device), symmetric=symmetric)
    assert devices_seen == ["cpu"]
    assert {buffer.device for buffer in module.buffers()} == {device}
    assert_same_tensors(dict(module.named_buffers()), dict(expected.named_buffers()))
    assert torch.equal(module.dequantize_weight().cpu(), expected.dequantize_weight())
    with torch.no_grad():
        out = module(x.to(device))
        assert out.device == device
        assert torch.equal(out.cpu(), expected(x))


def test_a_module_moves_and_a_state_dict_crosses_devices(device: torch.device) -> None:
    torch.manual_seed(4)
    on_cpu = Int8Linear.from_linear(nn.Linear(70, 33), symmetric=False)
    x = torch.randn(3, 70)
    expected = on_cpu(x)
    moved = Int8Linear.from_linear(nn.Linear(70, 33)).to(device)
    moved.load_state_dict(on_cpu.state_dict())
    assert {buffer.device for buffer in moved.buffers()} == {device}
    assert torch.equal(moved(x.to(device)).cpu(), expected)
    back = Int8Linear(70, 33)
    back.load_state_dict(moved.state_dict())
    assert torch.equal(back(x), expected)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_compress_leaves_a_model_on_its_device(scheme: str, device: torch.device) -> None:
    on_cpu, model = make_model(), make_model().to(device)
    report_on_cpu, report = lamina.compress(on_cpu, scheme), lamina.compress(model, scheme)
    assert report == report_on_cpu
    assert len(report.compressed) == 2
    assert {tensor.device for tensor in model.state_dict().values()} == {device}
    assert_same_tensors(model.state_dict(), on_cpu.state_dict())
    x = torch.randn(9, 100)
    with torch.no_grad():
        assert torch.equal(model(x.to(device)).cpu(), on_cpu(x))


INT4_KINDS = pytest.mark.parametrize("kind", ["symmetric", "zero_points", "act_order"])


def make_int4(kind: str) -> Int4Linear:
    torch.manual_seed(5)
    w, bias = torch.randn(33, 140).half(), torch.randn(33).half()
    quantized = quant.quantize_weight_int4(w, 32, symmetric=kind == "symmetric")
    if kind == "act_order":
        quantized = quantized._replace(g_idx=torch.randperm(140).int() // 32)
    return Int4Linear.from_quantized(quantized, bias)


@INT4_KINDS
def test_an_int4_module_is_repacked_where_it_goes(kind: str, device: torch.device) -> None:
    module = make_int4(kind)
    x = torch.randn(5, 140).half()
    with torch.no_grad():
        expected, weight = module(x), module.dequantize_weight()
        before = {name: buffer.clone() for name, buffer in module.named_buffers()}
        module.to(device)
        assert {buffer.device for buffer in module.buffers()} == {device}
        assert module.packed_weight.layout == "int4_tile" and int(module.weight_format[0]) == 2
        assert torch.equal(module.dequantize_weight().cpu(), weight)
        out = module(x.to(device))
        assert out.device == device and out.dtype == torch.float16
        torch.testing.assert_close(out.cpu(), expected, rtol=4e-3, atol=4e-2)
        assert torch.equal(
            module(x.bfloat16().to(device)).cpu(), make_int4(kind).to(device)(x.bfloat16().to(device)).cpu()
        )
        module.cpu()
        assert_same_tensors(dict(module.named_buffers()), before)
        assert torch.equal(module(x), expected)


@INT4_KINDS
def test_an_int4_module_with_int8_activations_gives_the_bits_of_the_cpu(
    kind: str, device: torch.device
) -> None:
    module, x = make_int4(kind), torch.randn(5, 140)
    module.activations = "int8"
    with torch.no_grad():
        expected = module(x)
        assert torch.equal(module.to(device)(x.to(device)).cpu(), expected)


def test_bytes_that_moved_without_the_module_are_not_misread(device: torch.device) -> None:
    module, x = make_int4("symmetric"), torch.randn(5, 140).half()
    with torch.no_grad():
        expected = module.to(device)(x.to(device)).cpu()
        for name, buffer in list(module._buffers.items()):
            module._buffers[name] = None if buffer is None else buffer.cpu()
        with pytest.raises(ValueError, match='w has layout "int4_tile"; allowed on cpu'):
            module(x)
        assert torch.equal(module.cpu()(x), make_int4("symmetric")(x))
        assert torch.equal(module.to(device)(x.to(device)).cpu(), expected)


def test_a_move_that_fails_leaves_the_module_as_it_was() -> None:
    module, x = make_int4("zero_points"), torch.randn(5, 140)
    expected = module(x)

    def fail(_tensor: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("planted")

    with pytest.raises(torch.OutOfMemoryError, match="planted"):
        module._apply(fail)
    assert torch.equal(module(x), expected)


@INT4_KINDS
def test_an_int4_state_dict_crosses_devices(kind: str, device: torch.device) -> None:
    on_cpu = make_int4(kind)
    on_device = make_int4(kind).to(device)
    for source, target in ((on_cpu, on_device), (on_device, on_cpu)):
        state = {name: entry.clone() for name, entry in source.state_dict().items()}
        fresh = Int4Linear(140, 33, device=target.weight_packed.device)
        fresh.load_state_dict(state)
        assert_same_tensors(dict(fresh.named_buffers()), dict(target.named_buffers()))
        assert {buffer.device for buffer in fresh.buffers()} == {target.weight_packed.device}
        assigned = Int4Linear(140, 33, device="meta")
        assigned.load_state_dict(state, assign=True)
        assert_same_tensors(dict(assigned.named_buffers()), dict(source.named_buffers()))


def test_compress_to_int4_on_the_device(device: torch.device) -> None:
    on_cpu, model = make_model().half(), make_model().half().to(device)
    assert lamina.compress(model, "w4a16", group=32) == lamina.compress(on_cpu, "w4a16", group=32)
    assert {tensor.device for tensor in model.state_dict().values()} == {device}
    assert_same_tensors(model.cpu().state_dict(), on_cpu.state_dict())


def test_a_nan_on_the_device_is_named(device: torch.device) -> None:
    model = make_model()
    with torch.no_grad():
        model.get_parameter("2.weight")[5, 7] = torch.nan
    with pytest.raises(ValueError, match=r"weight of layer '2' holds 1 NaN or Inf, the first at \[5, 7\]"):
        lamina.compress(model.to(device))


@pytest.mark.gpu
@pytest.mark.usefixtures("working_gpu")
def test_an_input_on_the_cpu_is_refused_by_a_module_on_cuda() -> None:
    module = Int8Linear.from_linear(nn.Linear(70, 33).cuda())
    with pytest.raises(ValueError, match="both must be on one device"):
        module(torch.ones(2, 70))


@pytest.mark.parametrize("op", doctor.CHECKS)
def test_the_doctor_passes_on_the_device(
    op: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not torch.cuda.is_available():  # each draw is a block, and 20,000 take the emulator minutes
        monkeypatch.setattr("lamina.doctor.sample.DRAWS", 400)
    check = doctor.run_check(op, str(device), doctor.CHECKS[op], device)
    assert check.passed, [check.error, check.worst]
    on_cpu = doctor.run_check(op, "cpu", doctor.CHECKS[op], doctor.CPU)
    cases = [outcome.case for outcome in check.outcomes]
    refused_on_cuda = ("gemm_int4", "matmul_sparse24", "paged_attention")
    left_out = "float32" if op in refused_on_cuda else "nothing"
    assert cases == [outcome.case for outcome in on_cpu.outcomes if left_out not in outcome.case]


def test_the_device_gives_the_bits_of_the_cpu(device: torch.device) -> None:
    check = doctor.run_check("gemm_int8", "both", doctor.check_same_bits_as_cpu, device)
    assert check.passed, check.error
    assert [outcome.case for outcome in check.outcomes] == ["against the cpu", "rows one by one"]


def test_a_device_that_differs_from_the_cpu_is_noticed(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = ops.gemm_int8

    def gemm(a: Tensor, *args: Any, **options: Any) -> Tensor:
        out = right(a, *args, **options)
        if a.is_cuda:
            out[-1, -1] += 2.0**-20 * out[-1, -1].abs()
        return out

    monkeypatch.setattr(ops, "gemm_int8", gemm)
    assert not doctor.run_check("gemm_int8", "both", doctor.check_same_bits_as_cpu, device).passed


def test_the_doctor_visits_every_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(_: torch.device) -> Iterator[doctor.Outcome]:
        yield doctor.Outcome("nothing", 0.0)

    monkeypatch.setattr(doctor, "cuda_problem", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(doctor, "CHECKS", dict.fromkeys(doctor.CHECKS, nothing))
    monkeypatch.setattr(doctor, "check_same_bits_as_cpu", nothing)
    checks = list(doctor.run_checks())
    assert len(checks) == doctor.count_checks()
    on_cuda = [(check.op, check.backend) for check in checks if "cuda" in check.backend]
    assert on_cuda == [
        pair
        for name in ("cuda:0", "cuda:1")
        for pair in [*((op, name) for op in doctor.CHECKS), ("gemm_int8", f"{name} and cpu")]
    ]


def raises(error: Exception) -> Callable[..., Any]:
    def call(*_: Any, **__: Any) -> Any:
        raise error

    return call


def test_what_keeps_cuda_from_working_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "torch finds no CUDA device" in str(cuda_problem())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(devices, "runtime_devices", lambda: None)
    assert "built without CUDA" in str(cuda_problem())
    monkeypatch.setattr(devices, "runtime_devices", lambda: [])
    assert "the driver may be too old" in str(cuda_problem())
    monkeypatch.setattr(devices, "runtime_devices", lambda: [CudaDevice(0, **H200)])
    on_cpu = torch.zeros(1, 1)
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: on_cpu)
    assert cuda_problem() is None
    monkeypatch.setattr(devices, "quantize_int8", raises(RuntimeError("no kernel image\nmore")))
    assert cuda_problem() == "no kernel image"


def test_devices_as_text() -> None:
    assert str(CudaDevice(1, **H200)) == (
        "1: compute capability 9.0, 132 SMs, 227 KiB shared memory a block, 60 MiB L2"
    )


@pytest.mark.parametrize("kind", [Int8Linear, Int4Linear])
def test_the_weight_of_a_layer_is_where_the_layer_is(
    kind: type[Int8Linear | Int4Linear], device: torch.device
) -> None:
    module = kind.from_linear(make_model()[0])
    want = module.weight.clone()
    weight: Any = module.to(device).weight
    assert (weight.device, weight.dtype, weight.shape) == (device, torch.float32, want.shape)
    assert torch.equal(weight.dequantize().cpu(), want)


@pytest.mark.parametrize("has_g_idx", [True, False])
def test_a_checkpoint_s_layer_is_made_where_its_tensors_are(has_g_idx: bool, device: torch.device) -> None:
    layer = checkpoint(24, 96, 32, order="desc_act" if has_g_idx else "plain")
    tensors = {name: layer[name] for name in ("qweight", "qzeros", "scales", "g_idx")}
    want = Int4Linear.from_gptq(**tensors)
    moved = {name: tensor.to(device) for name, tensor in tensors.items()}
    module = Int4Linear.from_gptq(**moved if has_g_idx else {**moved, "g_idx": None})
    assert module.weight_packed.device == device
    assert_same_tensors(module.cpu().state_dict(), want.state_dict())
