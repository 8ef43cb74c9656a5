"""The read-only `.weight` of packed layers: its dtype and shape, operations on it, refused writes."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import lamina
from lamina.nn import Int4Linear, Int8Linear
from lamina.nn.packed_linear import PackedLinear
from lamina.quant import quantize_weight_int4
from tests.python.test_int8_linear import DTYPES, make_linear, seeded
from tests.support.compare import assert_equal

KINDS: dict[str, Callable[[nn.Linear], PackedLinear]] = {
    "int8": Int8Linear.from_linear,
    "int4": lambda linear: Int4Linear.from_linear(linear, group=32),
    "int4 with int8": lambda linear: Int4Linear.from_linear(linear, group=32, activations="int8"),
}
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


def make(kind: str, dtype: torch.dtype = torch.float32, *, bias: bool = True) -> PackedLinear:
    return KINDS[kind](make_linear(100, 37, bias=bias, dtype=dtype))


@EVERY_KIND
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_facts_are_the_float_weight_s_and_cost_nothing(
    kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    linear, module = make_linear(100, 37, dtype=dtype), make(kind, dtype)
    monkeypatch.setattr(type(module), "dequantize_weight", lambda _: pytest.fail("dequantised"))
    weight, want = module.weight, linear.weight.detach()
    assert isinstance(weight, Tensor)
    for fact in ("dtype", "device", "shape", "ndim", "layout", "is_meta", "is_cuda", "is_sparse", "nbytes"):
        assert getattr(weight, fact) == getattr(want, fact), fact
    for fact in ("size", "dim", "numel", "stride", "element_size", "is_floating_point", "is_contiguous"):
        assert getattr(weight, fact)() == getattr(want, fact)(), fact
    assert (len(weight), weight.requires_grad, weight.grad, weight.is_leaf) == (37, False, None, True)
    assert (weight.data.dtype, weight.detach().shape) == (dtype, want.shape)
    assert "PackedWeight([37, 100]" in repr(weight)


@EVERY_KIND
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_are_the_dequantised_ones(kind: str, dtype: torch.dtype) -> None:
    module = make(kind, dtype)
    want, x = module.dequantize_weight().to(dtype), seeded(5, 100).to(dtype)
    weight = module.weight
    assert torch.equal(weight, want)
    assert_equal(functional.linear(x, weight), functional.linear(x, want))
    assert_equal(x @ weight.t(), x @ want.t())
    assert_equal(torch.cat([weight, want]), torch.cat([want, want]))
    assert_equal(weight.float(), want.float())
    assert_equal(weight.data[3:5].clone(), want[3:5])
    assert_equal(weight.abs().amax(1), want.abs().amax(1))
    assert weight.tolist() == want.tolist()
    assert_equal(torch.zeros(37, 100).add_(weight), want.float())
    for copied in (copy.deepcopy(weight), pickle.loads(pickle.dumps(weight)), weight.clone(), weight.cpu()):
        assert torch.equal(copied, want)
    if dtype is not torch.bfloat16:
        assert (weight.detach().cpu().numpy() == want.numpy()).all()


@EVERY_KIND
def test_gradients_of_what_it_is_multiplied_with(kind: str) -> None:
    module, x = make(kind), seeded(5, 100).requires_grad_()
    functional.linear(x, module.weight).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, module.dequantize_weight().sum(0).expand(5, 100))


def in_place_into_data(module: PackedLinear) -> None:
    module.weight.data += 1


WRITES: dict[str, Callable[[PackedLinear], object]] = {
    "assign": lambda m: setattr(m, "weight", torch.ones(37, 100)),
    "assign a parameter": lambda m: setattr(m, "weight", nn.Parameter(torch.ones(37, 100))),
    "assign data": lambda m: setattr(m.weight, "data", torch.ones(37, 100)),
    "copy_": lambda m: m.weight.copy_(torch.ones(37, 100)),
    "data.copy_": lambda m: m.weight.data.copy_(torch.ones(37, 100)),
    "data += 1": in_place_into_data,
    "item": lambda m: m.weight.__setitem__(0, 1.0),
    "init": lambda m: nn.init.normal_(m.weight),
    "out": lambda m: torch.add(torch.ones(37, 100), 1, out=m.weight),
    "foreach": lambda m: torch._foreach_mul_([m.weight], 2.0),
    "apply_": lambda m: m.weight.apply_(lambda _: 1.0),
    "map_": lambda m: m.weight.map_(torch.ones(37, 100), lambda *_: 1.0),
    "share_memory_": lambda m: m.weight.share_memory_(),
    "requires_grad_": lambda m: m.weight.requires_grad_(),
    "requires_grad": lambda m: setattr(m.weight, "requires_grad", True),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_writing_is_refused_with_the_remedy(kind: str, write: str) -> None:
    module = make(kind)
    before = module.dequantize_weight()
    with pytest.raises(
        AttributeError, match=r"Int[48]Linear is read-only; dequantize_weight\(\).* skip of lam"
    ):
        WRITES[write](module)
    assert_equal(module.dequantize_weight(), before)
    module.weight.requires_grad_(False)


@EVERY_KIND
def test_it_is_no_part_of_the_module(kind: str) -> None:
    module, x = make(kind), seeded(3, 100)
    want = module(x)
    assert not list(module.parameters())
    assert "weight" not in {**module.state_dict(), **dict(module.named_buffers()), **vars(module)}
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    for same in (
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(file, weights_only=False),
    ):
        assert_equal(same(x), want)
        assert_equal(same.weight.clone(), module.weight.clone())


@EVERY_KIND
def test_its_dtype_and_device_follow_the_module(kind: str) -> None:
    module = make(kind, torch.bfloat16, bias=False)
    assert module.weight.dtype is torch.bfloat16
    assert module.half().weight.dtype is torch.float16
    assert module.to(torch.float32).weight.dtype is torch.float32
    assert module.to("meta").weight.is_meta
    assert module.weight.dtype is torch.float32
    for made in (Int8Linear, Int4Linear):
        assert made(4, 3, dtype=torch.float16).weight.dtype is torch.float16
        assert made(4, 3).weight.dtype is torch.float32


def test_a_loaded_module_keeps_its_dtype_which_may_be_set() -> None:
    for kind in (Int8Linear, Int4Linear):
        module = kind.from_linear(make_linear(100, 37, bias=False, dtype=torch.bfloat16))
        fresh = kind(100, 37, False, device="meta")
        fresh.load_state_dict(module.state_dict(), assign=True)
        assert fresh.weight.dtype is torch.float32
        fresh.weight_dtype = torch.bfloat16
        assert_equal(fresh.weight.clone(), module.weight.clone())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_weight_that_came_quantised_has_the_dtype_of_its_scales(dtype: torch.dtype) -> None:
    quantized = quantize_weight_int4(torch.randn(37, 100, dtype=dtype), 32)
    assert Int4Linear.from_quantized(quantized).weight.dtype is dtype


def test_the_dtype_of_scales_is_not_that_of_the_weight() -> None:
    linear = make_linear(100, 37)
    module = Int4Linear.from_linear(linear, group=32, scale_dtype=torch.float16)
    assert (module.weight_scale.dtype, module.weight.dtype) == (torch.float16, torch.float32)


class Reads(nn.Module):
    """Reads the dtype of one weight, as T5's feed-forward does, and the values of another, as WavLM does."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = make_linear(100, 40, dtype=torch.bfloat16), make_linear(40, 100)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.up(x.to(self.up.weight.dtype))
        return functional.linear(hidden.to(self.down.weight.dtype), self.down.weight, self.down.bias)


@pytest.mark.parametrize("scheme", ["w8a8", "w4a16", "w4a8"])
def test_it_compiles_in_one_graph(scheme: str) -> None:
    model, x = Reads(), seeded(3, 100)
    lamina.compress(model, scheme=scheme, skip_growing=False)
    want = model(x)
    torch._dynamo.reset()
    called: list[str] = []

    def count(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        called.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    from torch._dynamo.backends.common import aot_autograd

    compiled = torch.compile(model, fullgraph=True, backend=aot_autograd(fw_compiler=count))
    with torch.no_grad():
        assert_equal(compiled(x), want)
    assert sum("unpack" in name for name in called) == 1  # reading a dtype unpacks nothing


def test_in_inference_mode() -> None:
    module, x = make("int4"), seeded(3, 100)
    with torch.inference_mode():
        out = functional.linear(x, module.weight)
    assert_equal(out.clone(), functional.linear(x, module.dequantize_weight()))
