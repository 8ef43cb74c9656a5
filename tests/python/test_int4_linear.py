"""lamina.nn.Int4Linear: values, shapes, state dicts, errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lamina
from lamina.nn import Int4Linear
from lamina.quant import QuantizedInt4, quantize_weight_int4
from tests.python.test_int8_linear import DTYPES, make_linear, seeded
from tests.reference.gemm import TINY, U_OUT, Expected, U
from tests.reference.quantize import quantize_int8
from tests.support.compare import assert_equal, assert_within
from tests.support.state import WAYS, reloaded

ACTIVATIONS = ("float", "int8")


def make(k: int = 100, n: int = 37, *, bias: bool = True, **options: Any) -> Int4Linear:
    return Int4Linear.from_linear(make_linear(k, n, bias=bias), **{"group": 32, **options})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("activations", ACTIVATIONS)
@pytest.mark.parametrize(("m", "n", "k", "group"), [(1, 1, 1, 16), (7, 33, 65, -1), (20, 48, 300, 128)])
def test_values_are_within_the_documented_bound(
    m: int, n: int, k: int, group: int, activations: str, symmetric: bool, dtype: torch.dtype
) -> None:
    """W4A8 has a coarser bound here than gemm_int4_int8 gives: without groups, 2^-18 of the sum of sizes."""
    linear = make_linear(k, n, dtype=dtype)
    x = seeded(m, k, seed=3).to(dtype)
    w = quantize_weight_int4(linear.weight.detach(), group, symmetric=symmetric)
    a = x.double().numpy()
    if activations == "int8":
        quantized = quantize_int8(x.float().numpy())
        a = quantized.q.astype(np.float64) * quantized.scale.astype(np.float64)
    steps = w.scale.double()[torch.arange(k) // w.group].T.numpy()
    zero = np.full_like(steps, 8.0)
    if w.zero_point is not None:
        zero = w.zero_point.double()[torch.arange(k) // w.group].T.numpy()
    q = w.q.double().numpy()
    assert linear.bias is not None
    exact = a @ ((q - zero) * steps).T + linear.bias.detach().double().numpy()
    size = np.abs(a) @ ((np.abs(q - zero) + (0 if symmetric else zero)) * steps).T
    first = U * (3 + min(k, 1024) + -(-k // 1024)) if activations == "float" else 2.0**-18
    bound = first * size + 4 * (U + U_OUT[dtype]) * (size + np.abs(exact)) + TINY[dtype]
    options = {"symmetric": symmetric, "activations": activations, "search": False}
    module = Int4Linear.from_linear(linear, group=group, **options)
    assert_within(module(x), Expected(exact, bound), dtype)


@pytest.mark.parametrize("activations", ACTIVATIONS)
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
def test_it_is_the_op(symmetric: bool, activations: str) -> None:
    linear, x = make_linear(100, 37), seeded(5, 100)
    w = quantize_weight_int4(linear.weight.detach(), 32, symmetric=symmetric, search=True)
    product = lamina.gemm_int4 if activations == "float" else lamina.gemm_int4_int8
    packed = lamina.pack_int4(w.q, "int4_rows")
    want = product(x, packed, w.scale, group=32, w_zero_point=w.zero_point, bias=linear.bias.detach())
    options = {"symmetric": symmetric, "activations": activations}
    module = Int4Linear.from_linear(linear, group=32, **options)
    assert_equal(module(x), want)
    assert_equal(Int4Linear.from_quantized(w, linear.bias, activations=activations)(x), want)
    assert_equal(module.dequantize_weight(), w.dequantize())


@pytest.mark.parametrize("shape", [(3,), (0, 3), (4, 3), (2, 0, 3), (2, 5, 3), (2, 1, 5, 3)], ids=str)
@pytest.mark.parametrize("activations", ACTIVATIONS)
def test_any_leading_dimensions(activations: str, shape: tuple[int, ...]) -> None:
    module, x = make(3, 18, activations=activations), seeded(*shape)
    out = module(x)
    assert out.shape == (*shape[:-1], 18)
    assert torch.equal(out.reshape(-1, 18), module(x.reshape(-1, 3)))


def test_strided_and_transposed_inputs() -> None:
    module, wide, turned = make(40, 9), seeded(6, 100), seeded(40, 6)
    assert torch.equal(module(wide[:, 7:47]), module(wide[:, 7:47].contiguous()))
    assert torch.equal(module(turned.T), module(turned.T.contiguous()))


def test_activations_may_be_set() -> None:
    module, x = make(), seeded(4, 100)
    header, want = module.weight_format.clone(), make(activations="int8")
    first = module.weight_format
    module.activations = "int8"
    assert torch.equal(module(x), want(x))
    assert_equal(module.weight_format, want.weight_format)
    assert_equal(first, header)
    with pytest.raises(ValueError, match="activations = 'int4'; allowed"):
        module.activations = "int4"


def test_no_features() -> None:
    assert torch.equal(Int4Linear(0, 3)(torch.zeros(2, 0)), torch.zeros(2, 3))
    assert Int4Linear(3, 0)(torch.ones(2, 3)).shape == (2, 0)
    assert make(0, 3, bias=False)(torch.zeros(2, 0)).tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
def test_a_new_module_is_zero(symmetric: bool) -> None:
    module = Int4Linear(70, 5, symmetric=symmetric, dtype=torch.bfloat16)
    assert module.bias is not None
    assert module.bias.dtype is module.weight_scale.dtype is torch.bfloat16
    assert torch.equal(module(seeded(2, 70)), torch.zeros(2, 5))


def test_a_group_of_k_or_more_is_all_of_k() -> None:
    assert [make(100, 3, group=group).group for group in (-1, 96, 112, 4096)] == [-1, 96, -1, -1]
    assert torch.equal(make(100, 3, group=4096)(seeded(2, 100)), make(100, 3, group=-1)(seeded(2, 100)))


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"symmetric": False, "group": 16},
        {"activations": "int8", "scale_dtype": torch.float16},
        {"symmetric": False, "group": -1},
    ],
    ids=str,
)
def test_state_dict_round_trip(options: dict[str, Any], how: str) -> None:
    """The state dict decides, whatever the new module was."""
    module, x = make(**options), seeded(4, 100)
    fresh = reloaded(module, how, lambda device: Int4Linear(100, 37, symmetric=how == "copy", device=device))
    assert repr(fresh) == repr(module)
    assert fresh.state_dict().keys() == module.state_dict().keys()
    for name, tensor in module.state_dict().items():
        assert_equal(fresh.state_dict()[name], tensor)
    assert torch.equal(fresh(x), module(x))


def changed_header(index: int, value: int, **options: Any) -> dict[str, Any]:
    state = make(65, 17, **options).state_dict()
    state["weight_format"] = state["weight_format"].clone()
    state["weight_format"][index] = value
    return state


def without(name: str, **options: Any) -> dict[str, Any]:
    state = make(65, 17, **options).state_dict()
    del state[name]
    return state


def replaced(name: str, value: object) -> dict[str, Any]:
    return {**make(65, 17, symmetric=False).state_dict(), name: value}


BAD_STATES: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "format": (lambda: changed_header(0, 1), r"weight_format is 1; this module reads 3 \(int4_rows\)"),
    "of int8": (
        lambda: lamina.nn.Int8Linear.from_linear(make_linear(65, 17)).state_dict(),
        r"weight_format is 1; this module reads 3 \(int4_rows\)",
    ),
    "version": (lambda: changed_header(1, 2), "int4_rows has version 2; this lamina reads version 1"),
    "shape": (lambda: changed_header(3, 100), r"the weight is \[17, 100\]; this module is \[17, 65\]"),
    "group": (lambda: changed_header(4, 24), r"\(group\) must be a positive multiple of 16, or -1, got 24"),
    "another group": (lambda: changed_header(4, 16), r"weight_scale must be \[5, 17\], got \[3, 17\]"),
    "symmetric": (lambda: changed_header(5, 2), r"weight_format\[5\] \(symmetric\) must be 0 or 1, got 2"),
    "activations": (lambda: changed_header(6, 2), r"\[6\] \(activations\) must be 0 or 1, got 2"),
    "no zero point": (lambda: changed_header(5, 0), "weight_zero_point is missing, and .* is 0"),
    "a zero point": (lambda: changed_header(5, 1, symmetric=False), "weight_zero_point is there, and .* 1"),
    "perm": (lambda: changed_header(7, 2), r"\[7\] \(perm\) must be 0 or 1, got 2"),
    "no perm": (lambda: changed_header(7, 1), r"perm is missing, and weight_format\[7\] \(perm\) is 1"),
    "a perm": (lambda: replaced("perm", torch.arange(65).int()), "perm is there, and .* is 0"),
    "no header": (lambda: without("weight_format"), "weight_format is missing"),
    "no scale": (lambda: without("weight_scale"), "weight_scale is missing"),
    "short header": (lambda: replaced("weight_format", torch.tensor([3, 1])), r"int64 \[8\]"),
    "scalar header": (lambda: replaced("weight_format", torch.tensor(3)), r"int64 \[8\]"),
    "wide weight": (
        lambda: replaced("weight_packed", torch.zeros(2, 2, 512, dtype=torch.int32)),
        "weight_packed must be uint8, got torch.int32",
    ),
    "a tile short": (
        lambda: replaced("weight_packed", torch.zeros(2, 1, 512, dtype=torch.uint8)),
        r"weight_packed must be \[2, 2, 512\], got \[2, 1, 512\]",
    ),
    "f64 scale": (
        lambda: replaced("weight_scale", torch.ones(3, 17).double()),
        "weight_scale must be float32 or float16 or bfloat16, got torch.float64",
    ),
    "zero point int8": (
        lambda: replaced("weight_zero_point", torch.ones(3, 17).char()),
        "must be uint8 or float32",
    ),
    "float": (lambda: make_linear(65, 17).state_dict(), "float weight; .* lamina.compress"),
}


@pytest.mark.parametrize("case", BAD_STATES)
def test_a_wrong_state_dict_is_refused_and_changes_nothing(case: str) -> None:
    make_state, message = BAD_STATES[case]
    module = make(65, 17, group=48)
    before = module(seeded(2, 65))
    with pytest.raises(RuntimeError, match=message):
        module.load_state_dict(make_state())
    assert torch.equal(module(seeded(2, 65)), before)


def test_scales_keep_their_dtype() -> None:
    for dtype in DTYPES:
        module = make(scale_dtype=dtype)
        scale = module.weight_scale.clone()
        module.to(torch.bfloat16).half()
        assert_equal(module.weight_scale, scale)
        assert scale.dtype is dtype
        assert module.bias is not None
        assert module.bias.dtype is torch.float16
        assert module.to("meta").weight_scale.is_meta


@pytest.mark.parametrize("activations", ACTIVATIONS)
def test_compiles_in_one_graph_and_exports_with_a_dynamic_batch(activations: str) -> None:
    module = make(40, 24, activations=activations, symmetric=False).eval()
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="eager")
    batch = torch.export.Dim("batch", min=2, max=4096)
    program = torch.export.export(module, (seeded(3, 5, 40),), dynamic_shapes=({0: batch},))
    with torch.inference_mode():
        for size in (2, 9):
            x = seeded(size, 5, 40)
            assert torch.equal(compiled(x), module(x))
            assert torch.equal(program.module()(x), module(x))


def test_gradients_of_inputs_flow_through_float_activations_only() -> None:
    module, x = make(40, 24, symmetric=False), seeded(2, 3, 40).requires_grad_()
    pull = seeded(2, 3, 24)
    module(x).backward(pull)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, pull @ module.dequantize_weight())
    module = make(8, 4, activations="int8")
    with pytest.raises(RuntimeError, match=r"nn\.Int4Linear has no backward pass.*torch\.inference_mode"):
        module(seeded(2, 8).requires_grad_())
    with torch.no_grad():
        module(seeded(2, 8).requires_grad_())


def test_bytes_and_repr() -> None:
    module = make(symmetric=False, scale_dtype=torch.float16)
    assert module.nbytes == 3 * 2 * 512 + 4 * 37 * (2 + 1) + 37 * 4 + 8 * 8
    text = "in_features=100, out_features=37, bias=True, group=32, symmetric=False, activations=float"
    assert text in repr(module)
    blank = Int4Linear(100, 37, group=32, symmetric=False, device="meta", dtype=torch.float16)
    assert blank.nbytes == module.nbytes - 37 * 2


def test_a_memory_format_does_not_touch_the_packed_weight() -> None:
    module, x = make(), seeded(3, 100)
    expected = module(x)
    module.to(memory_format=torch.channels_last)
    assert torch.equal(module(x), expected)


CODES = torch.zeros(3, 40, dtype=torch.uint8)
BAD_CALLS: dict[str, tuple[Callable[[], object], str]] = {
    "group": (lambda: Int4Linear(4, 3, group=24), "group = 24; must be a positive multiple of 16"),
    "activations": (lambda: Int4Linear(4, 3, activations="int4"), 'activations = .int4.; allowed: "float"'),
    "negative": (lambda: Int4Linear(-1, 3), "in_features = -1"),
    "meta weight": (
        lambda: Int4Linear.from_linear(nn.Linear(3, 3, device="meta")),
        "meta device; load the model first",
    ),
    "NaN": (lambda: make(3, 3).from_linear(make_linear(3, 3).apply(plant_nan)), r"first at \[1, 2\]"),
    "columns": (lambda: Int4Linear(4, 3)(torch.ones(2, 5)), r"k = 4, got \[2, 5\]"),
    "f64 input": (lambda: Int4Linear(4, 3)(torch.ones(2, 4).double()), "gemm_int4: a must be float32"),
    "q 1-D": (lambda: quantized(q=CODES[0]), r"q must be 2-D \[n, k\], got 1-D \[40\]"),
    "a code of five bits": (lambda: quantized(q=CODES + 16), r"q\[0, 0\] = 16; allowed: 0 to 15"),
    "scales turned": (lambda: quantized(scale=torch.ones(3, 2)), r"weight_scale must be \[2, 3\]"),
    "scales f64": (lambda: quantized(scale=torch.ones(2, 3).double()), "weight_scale must be float32 or"),
    "zero points": (
        lambda: quantized(zero_point=torch.ones(2, 3).char()),
        "weight_zero_point must be uint8 or float32 or float16 or bfloat16, got torch.int8",
    ),
    "group of 20": (lambda: quantized(group=20), "group = 20; must be"),
    "bias": (
        lambda: Int4Linear.from_quantized(QuantizedInt4(CODES, torch.ones(2, 3), None, 32), torch.ones(2)),
        r"bias must be \[n\] with n = 3, got \[2\]",
    ),
}


def plant_nan(module: nn.Module) -> None:
    with torch.no_grad():
        module.get_parameter("weight")[1, 2] = torch.nan


def quantized(**changed: Any) -> Int4Linear:
    return Int4Linear.from_quantized(QuantizedInt4(CODES, torch.ones(2, 3), None, 32)._replace(**changed))


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_calls_say_what_is_wrong(case: str) -> None:
    call, message = BAD_CALLS[case]
    with pytest.raises(ValueError, match=message):
        call()
