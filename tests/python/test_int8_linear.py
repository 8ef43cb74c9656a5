"""lamina.nn.Int8Linear and lamina.quant: values, shapes, state dicts, errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lamina.nn import Int8Linear
from lamina.quant import quantize_weight_int8
from tests.reference.gemm import accumulate, gemm_int8
from tests.reference.quantize import quantize_int8
from tests.support.compare import assert_within
from tests.support.state import WAYS, reloaded

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def seeded(*shape: int, seed: int = 0) -> Tensor:
    """Neither symmetric nor centred: an exchanged row or a lost zero point cannot cancel."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2 + 0.5


def make_linear(k: int, n: int, *, bias: bool = True, dtype: torch.dtype = torch.float32) -> nn.Linear:
    linear = nn.Linear(k, n, bias=bias, dtype=dtype)
    with torch.no_grad():
        linear.weight.copy_(seeded(n, k, seed=1))
        if bias:
            linear.bias.copy_(seeded(n, seed=2))
    return linear.eval()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (7, 33, 65), (20, 48, 300)])
def test_values_are_within_the_documented_bound(
    m: int, n: int, k: int, bias: bool, symmetric: bool, dtype: torch.dtype
) -> None:
    linear = make_linear(k, n, bias=bias, dtype=dtype)
    x = seeded(m, k, seed=3).to(dtype)
    w = quantize_int8(linear.weight.detach().float().numpy())
    a = quantize_int8(x.float().numpy(), symmetric=symmetric)
    acc = accumulate(a.q, w.q, a.zero_point)
    b = linear.bias.detach().float().numpy() if bias else None
    expected = gemm_int8(acc, a.scale, w.scale, b, dtype)
    module = Int8Linear.from_linear(linear, symmetric=symmetric)
    assert_within(module(x), expected, dtype)


@pytest.mark.parametrize("shape", [(3,), (0, 3), (4, 3), (2, 0, 3), (2, 5, 3), (2, 1, 5, 3)], ids=str)
def test_leading_dimensions_are_kept(shape: tuple[int, ...]) -> None:
    linear = make_linear(3, 18)
    x = seeded(*shape)
    module = Int8Linear.from_linear(linear)
    out = module(x)
    assert out.shape == (*shape[:-1], 18)
    assert torch.equal(out.reshape(-1, 18), module(x.reshape(-1, 3)))


def test_strided_and_transposed_inputs() -> None:
    module = Int8Linear.from_linear(make_linear(40, 9))
    wide, turned = seeded(6, 100), seeded(40, 6)
    assert torch.equal(module(wide[:, 7:47]), module(wide[:, 7:47].contiguous()))
    assert torch.equal(module(turned.T), module(turned.T.contiguous()))


def test_no_features() -> None:
    empty = Int8Linear(0, 3)
    assert torch.equal(empty(torch.zeros(2, 0)), torch.zeros(2, 3))
    assert Int8Linear(3, 0)(torch.ones(2, 3)).shape == (2, 0)


def test_a_new_module_is_zero() -> None:
    module = Int8Linear(70, 5, dtype=torch.bfloat16)
    assert module.bias is not None
    assert module.bias.dtype is torch.bfloat16
    assert torch.equal(module(seeded(2, 70)), torch.zeros(2, 5))


def test_nan_stays_in_its_row() -> None:
    module = Int8Linear.from_linear(make_linear(20, 6))
    x = seeded(3, 20)
    clean = module(x)
    x[1, 4] = torch.nan
    out = module(x)
    assert torch.isnan(out[1]).all()
    assert torch.equal(out[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("how", WAYS)
def test_state_dict_round_trip(how: str, symmetric: bool) -> None:
    module = Int8Linear.from_linear(make_linear(100, 37), symmetric=symmetric)
    x = seeded(4, 100)
    fresh = reloaded(module, how, lambda device: Int8Linear(100, 37, device=device))
    assert fresh.symmetric == symmetric
    assert torch.equal(fresh(x), module(x))


def changed_header(index: int, value: int) -> dict[str, Any]:
    state = Int8Linear.from_linear(make_linear(65, 17)).state_dict()
    state["weight_format"] = state["weight_format"].clone()
    state["weight_format"][index] = value
    return state


def without(name: str) -> dict[str, Any]:
    state = Int8Linear.from_linear(make_linear(65, 17)).state_dict()
    del state[name]
    return state


def retyped(name: str, dtype: torch.dtype) -> dict[str, Any]:
    state = Int8Linear.from_linear(make_linear(65, 17)).state_dict()
    return {**state, name: state[name].to(dtype)}


BAD_STATES: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "format": (lambda: changed_header(0, 7), r"weight_format is 7; this module reads 1 \(int8_tile\)"),
    "version": (lambda: changed_header(1, 2), "version 2; this lamina reads version 1"),
    # 65 and 100 input features pack into the same shape: only the header knows.
    "shape": (lambda: changed_header(3, 100), r"the weight is \[17, 100\]; this module is \[17, 65\]"),
    "symmetric": (lambda: changed_header(4, 2), "must be 0 or 1, got 2"),
    "no header": (lambda: without("weight_format"), "weight_format is missing"),
    "no scale": (lambda: without("weight_scale"), "Missing key.*weight_scale"),
    "short header": (
        lambda: {**without("weight_format"), "weight_format": torch.tensor([1])},
        r"int64 \[5\]",
    ),
    "wide weight": (
        lambda: retyped("weight_packed", torch.int32),
        "weight_packed must be int8, got torch.int32",
    ),
    "half scale": (lambda: retyped("weight_scale", torch.float16), "weight_scale must be float32"),
    "list": (
        lambda: {**without("weight_packed"), "weight_packed": [1, 2]},
        "weight_packed must be.*got list",
    ),
    "header of a list": (
        lambda: {**without("weight_format"), "weight_format": [1, 1, 17, 65, 1]},
        r"weight_format must be a torch\.Tensor, got list",
    ),
    "number for a bias": (lambda: {**without("bias"), "bias": 0.5}, "bias must be a torch.Tensor, got float"),
    "float": (lambda: make_linear(65, 17).state_dict(), "float weight; .* lamina.compress"),
}


@pytest.mark.parametrize("case", BAD_STATES)
def test_a_wrong_state_dict_is_refused_and_changes_nothing(case: str) -> None:
    make, message = BAD_STATES[case]
    module = Int8Linear.from_linear(make_linear(65, 17))
    before = module(seeded(2, 65))
    with pytest.raises(RuntimeError, match=message):
        module.load_state_dict(make())
    assert torch.equal(module(seeded(2, 65)), before)


def test_the_error_names_the_layer() -> None:
    model = nn.Sequential(Int8Linear(65, 17))
    state = {f"0.{name}": value for name, value in changed_header(1, 9).items()}
    with pytest.raises(RuntimeError, match="0: weight format int8_tile has version 9"):
        model.load_state_dict(state)


def test_the_scale_stays_f32() -> None:
    module = Int8Linear.from_linear(make_linear(30, 8))
    scale = module.weight_scale.clone()
    module.to(torch.bfloat16).half()
    assert torch.equal(module.weight_scale, scale)
    assert module.weight_scale.dtype is torch.float32
    assert module.bias is not None
    assert module.bias.dtype is torch.float16
    assert module.to("meta").weight_scale.is_meta


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
def test_compiles_in_one_graph_for_any_batch(symmetric: bool) -> None:
    module = Int8Linear.from_linear(make_linear(40, 24), symmetric=symmetric)
    graphs = 0

    def count(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        nonlocal graphs
        graphs += 1
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=count)
    with torch.inference_mode():
        for batch in (2, 3, 17):
            x = seeded(batch, 5, 40)
            assert torch.equal(compiled(x), module(x))
    assert graphs == 1


def test_backward_is_refused() -> None:
    module = Int8Linear.from_linear(make_linear(8, 4))
    x = seeded(2, 8).requires_grad_()
    with pytest.raises(RuntimeError, match=r"no backward pass.*torch\.inference_mode"):
        module(x)
    with torch.no_grad():
        module(x)
    with torch.inference_mode():
        module(x)


def test_dequantized_weight_and_bytes() -> None:
    linear = make_linear(100, 37)
    module = Int8Linear.from_linear(linear)
    error = (module.dequantize_weight() - linear.weight).abs()
    assert (error <= module.weight_scale[:, None] * (0.5 + 2.0**-14)).all()
    assert module.nbytes == 3 * 2 * 1024 + 3 * 37 * 4 + 5 * 8
    assert "in_features=100, out_features=37, bias=True, activations=symmetric" in repr(module)


def test_quantize_weight_is_per_channel() -> None:
    w = seeded(9, 50)
    w[3] *= 100
    q, scale = quantize_weight_int8(w)
    expected = quantize_int8(w.numpy())
    assert np.array_equal(q.numpy(), expected.q)
    assert np.array_equal(scale.numpy(), expected.scale.ravel())
    turned, _ = quantize_weight_int8(w.T.contiguous().T)
    assert torch.equal(turned, q)


BAD_CALLS: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "1-D weight": (lambda: quantize_weight_int8(torch.ones(3)), ValueError, r"2-D \[n, k\], got 1-D \[3\]"),
    "f64 weight": (lambda: quantize_weight_int8(torch.ones(3, 3).double()), ValueError, "torch.float64"),
    "NaN weight": (
        lambda: quantize_weight_int8(torch.tensor([[1.0, 2.0], [torch.nan, torch.inf]])),
        ValueError,
        r"holds 2 NaN or Inf, the first at \[1, 0\] \(nan\)",
    ),
    "meta weight": (
        lambda: Int8Linear.from_linear(nn.Linear(3, 3, device="meta")),
        ValueError,
        "meta device; load the model first",
    ),
    "negative": (lambda: Int8Linear(-1, 3), ValueError, "in_features = -1"),
    "columns": (lambda: Int8Linear(4, 3)(torch.ones(2, 5)), ValueError, r"k = 4, got \[2, 5\]"),
    "scalar": (lambda: Int8Linear(1, 3)(torch.tensor(1.0)), ValueError, r"got \[\]"),
    "f64 input": (lambda: Int8Linear(4, 3)(torch.ones(2, 4).double()), ValueError, "quantize_int8: x"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_calls_say_what_is_wrong(case: str) -> None:
    call, error, message = BAD_CALLS[case]
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("shape", [(3, 40), (3, 4, 40)], ids=str)
def test_exports_with_a_dynamic_batch(shape: tuple[int, ...]) -> None:
    module = Int8Linear.from_linear(make_linear(40, 24)).eval()
    batch = torch.export.Dim("batch", min=2, max=4096)
    program = torch.export.export(module, (seeded(*shape),), dynamic_shapes=({0: batch},))
    x = seeded(9, *shape[1:])
    assert torch.equal(program.module()(x), module(x))


def test_memory_format_does_not_touch_the_packed_weight() -> None:
    module = Int8Linear.from_linear(make_linear(40, 24))
    x = seeded(3, 40)
    expected = module(x)
    module.to(memory_format=torch.channels_last)
    module.to(memory_format=torch.channels_last_3d)
    assert torch.equal(module(x), expected)
