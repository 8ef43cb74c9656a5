"""Packed layers in the place of nn.Linear: autocast, inference mode, jagged inputs, torch.fx, devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lamina
from lamina.nn import Int4Linear, Int8Linear
from lamina.quant import act_order, gptq, hessian, quantize_weight_int4, quantize_weight_int8
from tests.python.test_act_order import checkpoint, load
from tests.python.test_int8_linear import make_linear, seeded
from tests.python.test_packed_weight import EVERY_KIND, KINDS, make
from tests.support.compare import assert_equal

LOW = (torch.bfloat16, torch.float16)


@EVERY_KIND
@pytest.mark.parametrize("low", LOW, ids=str)
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_casts_the_input_as_it_does_for_nn_linear(
    kind: str, given: torch.dtype, low: torch.dtype
) -> None:
    module, linear, x = make(kind), make_linear(100, 37), seeded(4, 100).to(given)
    with torch.no_grad(), torch.autocast("cpu", low):
        out = module(x)
        assert out.dtype is linear(x).dtype is low
    assert_equal(out, module(x.to(low)))
    with torch.autocast("cpu", low, enabled=False):
        assert module(x).dtype is given


def test_autocast_leaves_what_nn_linear_would_refuse() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        for x in (seeded(2, 100).double(), torch.ones(2, 100, dtype=torch.int64)):
            with pytest.raises(ValueError, match="must be float32, float16 or bfloat16"):
                make("int8")(x)
        assert make("int8").to("meta")(torch.ones(2, 100, device="meta")).dtype is torch.float32


def test_autocast_has_gradients_and_compiles() -> None:
    module, x, pull = make("int4"), seeded(4, 100).requires_grad_(), seeded(4, 37)
    with torch.autocast("cpu", torch.bfloat16):
        module(x).float().backward(pull)
    assert x.grad is not None
    want = pull.bfloat16().float() @ module.dequantize_weight()
    assert_equal(x.grad, want.bfloat16().float())
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert_equal(compiled(x), module(x))
    assert compiled(x).dtype is torch.float32


def loaded(module: Int4Linear) -> Int4Linear:
    fresh = Int4Linear(100, 37, device="meta")
    fresh.load_state_dict(module.state_dict(), assign=True)
    other = Int4Linear(100, 37)
    other.load_state_dict(fresh.state_dict())
    return other


IN_INFERENCE_MODE: dict[str, Callable[[], Int4Linear]] = {
    "from_linear": lambda: Int4Linear.from_linear(make_linear(100, 37), group=32),
    "of its own weight": lambda: Int4Linear.from_linear(nn.Linear(100, 37), symmetric=False),
    "from_quantized": lambda: Int4Linear.from_quantized(quantize_weight_int4(seeded(37, 100), 32)),
    "from_gptq": lambda: load(checkpoint(40, 104, 32)),
    "load_state_dict": lambda: loaded(Int4Linear.from_linear(make_linear(100, 37), group=48)),
}


@pytest.mark.parametrize("how", IN_INFERENCE_MODE)
def test_what_inference_mode_makes_is_ordinary(how: str) -> None:
    with torch.inference_mode():
        module = IN_INFERENCE_MODE[how]()
        module.activations = "float"
    assert [name for name, buffer in module.named_buffers() if buffer.is_inference()] == []
    x = seeded(3, module.in_features).requires_grad_()
    module(x).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad[0], module.dequantize_weight().sum(0))
    module.load_state_dict(module.state_dict())


@pytest.mark.parametrize("calibrated", [False, True], ids=["nearest", "calibrated"])
@pytest.mark.parametrize("scheme", ["w8a8", "w4a16_asymmetric"])
def test_a_model_compressed_in_inference_mode_is_ordinary(scheme: str, calibrated: bool) -> None:
    if scheme == "w8a8" and calibrated:
        return
    model = nn.Sequential(make_linear(100, 48), nn.GELU(), make_linear(48, 100))
    options = {"calibration": [seeded(60, 100)], "group": 16} if calibrated else {}
    with torch.inference_mode():
        lamina.compress(model, scheme=scheme, **options)  # type: ignore[arg-type]
    assert not any(buffer.is_inference() for buffer in model.buffers())
    if scheme != "w8a8":
        x = seeded(3, 100).requires_grad_()
        model(x).sum().backward()
        assert x.grad is not None


def jagged(*lengths: int, width: tuple[int, ...] = (100,)) -> Tensor:
    parts = [seeded(length, *width, seed=length) for length in lengths]
    return torch.nested.nested_tensor(parts, layout=torch.jagged)


@EVERY_KIND
@pytest.mark.parametrize("width", [(100,), (3, 100)], ids=str)
def test_jagged_inputs_give_the_rows_of_plain_ones(kind: str, width: tuple[int, ...]) -> None:
    module, x = make(kind), jagged(2, 5, 1, width=width)
    out = module(x)
    assert out.is_nested
    assert out.layout is torch.jagged
    for got, rows in zip(out.unbind(), x.unbind(), strict=True):
        assert_equal(got, module(rows))
    assert_equal((out + out).values(), 2 * out.values())
    square = KINDS[kind](make_linear(100, 100))
    assert_equal(
        (x + square(x)).values(), x.values() + square(x.values())
    )  # torch adds them only if their ragged sizes match


def test_jagged_inputs_with_gradients_transposed_with_holes_and_compiled() -> None:
    module, x = make("int4"), jagged(2, 5, width=(3, 100)).requires_grad_()
    module(x).values().sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad.values(), module.weight.sum(0).expand(7, 3, 100))
    turned = x.detach().transpose(1, 2)  # [b, 3, ragged, 100]
    for got, rows in zip(module(turned).unbind(), turned.unbind(), strict=True):
        assert_equal(got, module(rows))
    rows = seeded(10, 100)
    offsets, lengths = torch.tensor([0, 4, 10]), torch.tensor([3, 5])
    holes = torch.nested.nested_tensor_from_jagged(rows, offsets, lengths)
    assert [part.shape[0] for part in module(holes).unbind()] == [3, 5]


def test_jagged_inputs_go_on_to_attention_and_compile() -> None:
    module = KINDS["int4"](make_linear(64, 64))

    def attend(x: Tensor) -> Tensor:
        heads = module(x).unflatten(-1, [2, 32]).transpose(1, 2)
        out: Tensor = nn.functional.scaled_dot_product_attention(heads, heads, heads)
        return out.transpose(1, 2).flatten(-2)

    x: Any = jagged(2, 5, width=(64,))
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        want = torch.cat([attend(rows[None])[0] for rows in x.unbind()])
        torch.testing.assert_close(attend(x).values(), want, rtol=1e-4, atol=1e-4)
        assert_equal(compiled(x).values(), module(x).values())
    assert x._get_max_seqlen() == 5
    out: Any = module(x)
    assert out._maybe_max_seqlen == 5  # a graph of attention needs the stored value, not a look-up


def test_nested_inputs_that_cannot_work_are_refused() -> None:
    module = make("int8")
    parts = [seeded(2, 100), seeded(5, 100)]
    with pytest.raises(
        ValueError, match=r"Int8Linear: x is a nested .* torch.strided; allowed: torch.jagged"
    ):
        module(torch.nested.nested_tensor(parts, layout=torch.strided))
    with pytest.raises(ValueError, match=r"x must be \[\.\.\., k\] with k = 100, got a ragged k"):
        module(jagged(2, 5).transpose(1, 2))
    with pytest.raises(ValueError, match=r"k = 100, got \[7, 90\]"):
        module(jagged(2, 5, width=(90,)))
    with pytest.raises(RuntimeError, match="has no backward pass"):
        module(jagged(2, 5).requires_grad_())


@EVERY_KIND
def test_fx_sees_a_leaf(kind: str) -> None:
    model = nn.Sequential(make(kind), nn.ReLU(), nn.Sequential(KINDS[kind](make_linear(37, 20))))
    traced = torch.fx.symbolic_trace(model)
    calls = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    assert calls == ["0", "1", "2.0"]
    assert {node.op for node in traced.graph.nodes} == {"placeholder", "call_module", "output"}
    assert traced.get_submodule("2.0") is model[2][0]
    for rows in (1, 6):
        x = seeded(rows, 100)
        assert_equal(traced(x), model(x))


def test_what_is_no_tensor_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"Int4Linear is a leaf for torch\.fx: trace a module that holds it"):
        torch.fx.symbolic_trace(make("int4"))
    with pytest.raises(TypeError, match=r"Int8Linear: x must be a torch\.Tensor, got list"):
        make("int8")([1.0])  # type: ignore[arg-type]


def test_the_input_has_the_name_that_nn_linear_gives_it() -> None:
    module, x = make("int4"), seeded(2, 100)
    assert_equal(module(input=x), module(x))


@contextmanager
def default_device(how: str) -> Iterator[None]:
    if how == "context":
        with torch.device("meta"):
            yield
        return
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


def assigned(module: Int4Linear) -> Int4Linear:
    fresh = Int4Linear(module.in_features, module.out_features, device="meta")
    fresh.load_state_dict(module.state_dict(), assign=True)
    return fresh


def calibrated_model(linear: nn.Linear, x: Tensor) -> Any:
    model = nn.Sequential(linear)
    lamina.compress(model, "w4a16_asymmetric", group=16, calibration=[x, x.numpy()])
    return model[0].dequantize_weight()


X, LAYER, LINEAR = seeded(60, 104), checkpoint(40, 104, 32), make_linear(104, 40)
SHORT = {
    **LAYER,
    "qweight": LAYER["qweight"][:5],
    "g_idx": LAYER["g_idx"][:40],
}  # its perm has unused places, which hold -1
PLAIN, INT4 = checkpoint(40, 128, 32, order="plain"), Int4Linear.from_linear(LINEAR)
MADE: dict[str, Callable[[], Any]] = {
    "act_order": lambda: act_order(LAYER["g_idx"]),
    "act_order of a slice": lambda: act_order(SHORT["g_idx"]),
    "from_gptq": lambda: load(LAYER)(X),
    "from_gptq of a slice": lambda: load(SHORT)(X[:, :40]),
    "from_gptq without g_idx": lambda: load(PLAIN | {"g_idx": None}).weight + 0,
    "gptq": lambda: gptq(LINEAR.weight, hessian(X), 16, act_order=True, static_groups=False),
    "quantize_weight_int4": lambda: quantize_weight_int4(LINEAR.weight, 32, symmetric=False, search=True),
    "quantize_weight_int8": lambda: quantize_weight_int8(LINEAR.weight),
    "pack": lambda: lamina.pack_int4(
        torch.zeros_like(LINEAR.weight, dtype=torch.uint8), "int4_rows"
    ).unpack(),
    "int8": lambda: Int8Linear.from_linear(LINEAR, symmetric=False)(X),
    "int4": lambda: Int4Linear.from_linear(LINEAR, group=32, activations="int8")(X),
    "load": lambda: assigned(INT4)(X),
    "backward": lambda: torch.autograd.grad(
        load(SHORT)(leaf := X[:, :40].clone().requires_grad_()).sum(), leaf
    ),
    "compress": lambda: calibrated_model(LINEAR, X),
}


@pytest.mark.parametrize("made", MADE)
@pytest.mark.parametrize("how", ["context", "default"])
def test_nothing_is_made_on_the_default_device(how: str, made: str) -> None:
    want = MADE[made]()
    with default_device(how):
        got = MADE[made]()
    for left, right in zip(*(torch.utils._pytree.tree_leaves(tree) for tree in (got, want)), strict=True):
        if isinstance(left, Tensor):
            assert_equal(left, right)
        else:
            assert left == right
