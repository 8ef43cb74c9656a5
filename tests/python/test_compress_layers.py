"""lamina.compress on layers that somebody has changed, wrapped or kept, and on the meta device."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor

from lamina.compression import compress
from lamina.nn import Int4Linear, Int8Linear
from tests.python.test_compress import make_model, model_bytes, reasons


def linear() -> nn.Linear:
    return nn.Linear(64, 64)


HOOKS: dict[str, Callable[[nn.Linear], object]] = {
    "forward": lambda m: m.register_forward_hook(lambda *_: None),
    "forward pre": lambda m: m.register_forward_pre_hook(lambda *_: None),
    "backward": lambda m: m.register_full_backward_hook(lambda *_: None),
    "backward pre": lambda m: m.register_full_backward_pre_hook(lambda *_: None),
    "state-dict": lambda m: m.register_state_dict_post_hook(lambda *_: None),
    "state-dict pre": lambda m: m.register_state_dict_pre_hook(lambda *_: None),
    "state-dict load pre": lambda m: m.register_load_state_dict_pre_hook(lambda *_: None),
    "state-dict load post": lambda m: m.register_load_state_dict_post_hook(lambda *_: None),
}


@pytest.mark.parametrize("kind", HOOKS)
def test_a_layer_with_hooks_is_left(kind: str) -> None:
    model = nn.Sequential(linear(), linear())
    HOOKS[kind](model[0])
    assert reasons(model) == {"0": f"it has {kind.split()[0]} hooks, which would be lost"}
    assert isinstance(model[1], Int8Linear)


def set_compiled(layer: nn.Linear) -> None:
    layer.compile(backend="eager")


def set_accelerate(layer: Any) -> None:
    layer._hf_hook, layer.forward = object(), layer.forward


def set_buffer(layer: nn.Linear) -> None:
    layer.register_buffer("weight_scale_inv", torch.ones(1))


def set_parameter(layer: nn.Linear) -> None:
    layer.register_parameter("alpha", nn.Parameter(torch.ones(1)))


def set_clash(layer: Any) -> None:
    layer.packed_weight = None


def set_method(layer: Any) -> None:
    layer.plain_forward = layer.forward


def set_weight(layer: Any) -> None:
    weight = layer.weight.detach()
    del layer.weight
    layer.weight = weight


def set_wrapper(layer: nn.Linear) -> None:
    """The weight becomes a wrapper of other tensors, as a DTensor is."""
    layer.weight = nn.Parameter(TwoTensor(torch.ones(64, 64), torch.ones(64, 64)))


LOST = {
    set_wrapper: "its weight is a TwoTensor, which is not a plain tensor",
    set_compiled: "its own compilation would be lost; compress before compiling",
    set_accelerate: "accelerate moves its weight (_hf_hook); load the model without offloading to pack it",
    set_buffer: "it has more than a weight and a bias: weight_scale_inv",
    set_parameter: "it has more than a weight and a bias: alpha",
    set_clash: "its attribute 'packed_weight' would be lost: a packed layer has its own",
    set_method: "its attribute 'plain_forward' is a method of the layer itself, which would be lost",
    set_weight: "its weight is not a parameter",
}


@pytest.mark.parametrize("change", LOST, ids=lambda change: change.__name__)
def test_a_layer_is_left_that_would_lose_something(change: Callable[[nn.Linear], None]) -> None:
    model = nn.Sequential(linear(), linear())
    change(model[0])
    before = model_bytes(model)
    report = compress(model)
    assert {row.name: row.reason for row in report.skipped} == {"0": LOST[change]}
    assert report.model_bytes_before == before
    assert report.model_bytes_after == model_bytes(model)


def test_a_layer_that_was_compiled_by_itself_is_left() -> None:
    """The compiled function holds the layer, whatever module is put in its place."""
    model = nn.Sequential(torch.compile(linear(), backend="eager"), linear())
    assert reasons(model) == {"0._orig_mod": LOST[set_compiled]}
    assert reasons(torch.compile(linear(), backend="eager")) == {"_orig_mod": LOST[set_compiled]}


@pytest.mark.parametrize("scheme", ["w8a8", "w4a16"])
def test_attributes_move_to_the_packed_layer_and_the_row_says_so(scheme: str) -> None:
    model = nn.Sequential(linear(), linear())
    model[0].is_split_by_tp = True
    model[0].names = ["a"]
    model[1]._is_hf_initialized = True  # what transformers sets on all modules
    report = compress(model, scheme)
    assert [row.reason for row in report.rows] == ["keeps attributes set on it: is_split_by_tp, names", ""]
    assert model[0].is_split_by_tp is True
    assert model[0].names == ["a"]
    assert model[1]._is_hf_initialized is True


class Lora(nn.Module):
    """A linear layer with adapters, named as in peft."""

    def __init__(self, halves: tuple[str, str], in_dict: bool) -> None:
        super().__init__()
        self.base_layer = nn.Linear(128, 96)
        for half, shape in zip(halves, ((128, 64), (64, 96)), strict=True):
            layer = nn.Linear(*shape, bias=False)
            setattr(self, half, nn.ModuleDict({"default": layer}) if in_dict else layer)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base_layer(x)
        return y


@pytest.mark.parametrize("in_dict", [True, False])
@pytest.mark.parametrize("halves", [("lora_A", "lora_B"), ("lora_a", "lora_b"), ("lora_down", "lora_up")])
def test_adapters_are_left_and_what_they_adapt_is_packed(halves: tuple[str, str], in_dict: bool) -> None:
    """These adapters are large enough to pack; only their place in the model marks them as adapters."""
    model = nn.ModuleDict({"q": Lora(halves, in_dict), "lora_A": linear()})
    suffix = ".default" if in_dict else ""
    assert reasons(model) == {
        f"q.{half}{suffix}": f"it is the {half} of a LoRA layer, rank 64, whose .weight is read; "
        "merge adapters before compressing to pack them too"
        for half in halves
    }
    assert isinstance(model["q"].base_layer, Int8Linear)
    assert isinstance(model["lora_A"], Int8Linear)


class Taps(nn.Module):
    """A model that holds its layer as a submodule, and a second time in `keep`'s way."""

    def __init__(self, keep: Callable[[nn.Linear], object]) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"layer": linear()})
        self.inner.kept = keep(self.inner["layer"])

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner["layer"](x)
        return y


def closure(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    return lambda x: layer(x) + 1


KEEPERS: dict[str, Callable[[nn.Linear], object]] = {
    "list": lambda m: [m],
    "dict": lambda m: {"a": [m]},
    "method": lambda m: m.forward,
    "partial": lambda m: functools.partial(torch.add, m),
    "closure": closure,
}


@pytest.mark.parametrize("how", KEEPERS)
def test_a_layer_that_the_model_holds_in_another_way_warns(how: str) -> None:
    model = Taps(KEEPERS[how])
    with pytest.warns(UserWarning, match=r"'inner\.layer' \(held by inner\.kept\); they stay") as caught:
        compress(model)
    assert caught[0].filename == __file__
    assert isinstance(model.inner["layer"], Int8Linear)


def test_layers_in_a_list_of_the_caller_warn_and_are_named() -> None:
    layers = [linear() for _ in range(8)]
    with pytest.warns(UserWarning, match=r"'0' \(held by a list outside of the model\), '1'.* and 3 more;"):
        compress(nn.Sequential(*layers))


def test_variables_and_garbage_are_no_reason_to_warn() -> None:
    mine = linear()
    model = nn.Sequential(mine, linear(), linear())
    garbage: list[object] = [model[1]]
    garbage.append(garbage)  # only the garbage collector frees a cycle
    del garbage
    captured = model[2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compress(model)
    assert [type(layer) for layer in model] == [Int8Linear] * 3
    assert [layer.out_features for layer in (mine, captured) for _ in [captured]] == [64, 64]


@pytest.mark.parametrize(
    ("scheme", "batches"),
    [("w8a8", None), ("w4a16_asymmetric", None), ("w4a16_asymmetric", [torch.ones(9, 64)])],
)
def test_inside_inference_mode_ordinary_tensors_are_made(scheme: str, batches: list[Tensor] | None) -> None:
    with torch.inference_mode():
        model = nn.Sequential(linear(), linear())
        compress(model, scheme, calibration=batches)
    assert not any(buffer.is_inference() for buffer in model.buffers())
    model.load_state_dict({name: tensor.clone() for name, tensor in model.state_dict().items()})


def structure(model: nn.Module) -> dict[str, tuple[str, torch.Size, torch.dtype]]:
    """Maps the name of each tensor to the class of its module, its shape and its dtype."""
    return {
        name: (type(model.get_submodule(name.rpartition(".")[0])).__name__, tensor.shape, tensor.dtype)
        for name, tensor in model.state_dict().items()
    }


@pytest.mark.parametrize("scheme", ["w8a8", "w8a8_asymmetric", "w4a16", "w4a8_asymmetric"])
def test_compress_on_meta_makes_the_same_structure_without_values(scheme: str) -> None:
    group = None if scheme.startswith("w8") else 48
    models = {"cpu": make_model().half(), "meta": make_model().half().to("meta")}
    for model in models.values():
        model.blocks[0].up.bias = nn.Parameter(model.blocks[0].up.bias.float())
        model.blocks[1].down.weight = model.blocks[0].down.weight
    reports = {name: compress(model, scheme, group=group, skip="head") for name, model in models.items()}
    assert reports["meta"] == reports["cpu"]
    assert structure(models["meta"]) == structure(models["cpu"])
    empty, full = models["meta"], models["cpu"]
    assert all(tensor.is_meta for tensor in empty.state_dict().values())
    assert str(empty) == str(full)
    assert not any(module.training for module in empty.modules())
    assert empty.blocks[1].down.weight_packed is empty.blocks[0].down.weight_packed
    empty.load_state_dict(full.state_dict(), assign=True)
    tokens = torch.arange(6)
    with torch.inference_mode():
        assert torch.equal(empty.float()(tokens), full.float()(tokens))


def test_a_model_that_is_only_partly_on_meta_is_refused() -> None:
    model = nn.Sequential(linear(), linear().to("meta"))
    text = (
        r"weight of layer '1' is on meta, and the weight of layer '0' on cpu; "
        "either all layers are on the meta device or none"
    )
    with pytest.raises(ValueError, match=text):
        compress(model)
    model[0].to("meta")
    model[1].bias = nn.Parameter(torch.zeros(64))
    with pytest.raises(ValueError, match="bias of layer '1' is on cpu, and the weight of layer '0' on meta"):
        compress(model)
    model[1].to("meta")
    with pytest.raises(
        ValueError, match="calibration runs the model, and the weight of layer '0' is on the m"
    ):
        compress(model, "w4a16", calibration=[torch.randn(2, 64)])
    assert all(isinstance(layer, nn.Linear) for layer in model)
    compress(model, "w4a16")
    assert all(isinstance(layer, Int4Linear) for layer in model)
