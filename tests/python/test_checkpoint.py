"""save_compressed and load_compressed: what is in the folder, and that the same model comes back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lamina
from lamina import load_compressed, save_compressed
from lamina.nn import Int4Linear, Int8Linear
from lamina.nn.packed_linear import PackedLinear
from lamina.quant import gptq, hessian
from tests.python.test_compress import TOKENS, Model

safetensors = pytest.importorskip("safetensors")
SCHEMES = {
    "w8a8": {"class": "Int8Linear"},
    "w8a8_asymmetric": {"class": "Int8Linear"},
    "w4a16": {"class": "Int4Linear", "group": 16, "scale_dtype": "float16", "perm": None},
    "w4a8_asymmetric": {"class": "Int4Linear", "group": 16, "scale_dtype": "float16", "perm": None},
}


def make_model(width: int = 64, dtype: torch.dtype = torch.float16) -> Model:
    torch.manual_seed(2)
    model = Model(width).to(dtype).eval()
    model.register_buffer("steps", torch.arange(7), persistent=True)
    model.register_buffer("inv_freq", torch.rand(5), persistent=False)
    model.blocks[1].up.bias = nn.Parameter(model.blocks[1].up.bias.float())
    return model


def compressed(scheme: str = "w4a16", **options: Any) -> Model:
    model = make_model()
    group = 16 if scheme.startswith("w4") else None
    lamina.compress(model, scheme, group=group, **options)
    return model


def on_meta(make: Callable[[], Model] = make_model) -> Model:
    with torch.device("meta"):
        return make()


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    return {**model.state_dict(), **dict(model.named_buffers())}


def weight_dtypes(model: nn.Module) -> dict[str, torch.dtype]:
    return {
        name: layer.weight.dtype for name, layer in model.named_modules() if isinstance(layer, PackedLinear)
    }


def assert_same(model: nn.Module, want: nn.Module) -> None:
    assert str(model) == str(want)
    left, right = tensors_of(model), tensors_of(want)
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype is right[name].dtype, name
        assert torch.equal(tensor, right[name]), name
    assert weight_dtypes(model) == weight_dtypes(want)
    tokens = TOKENS[:2]
    with torch.inference_mode():
        assert torch.equal(model.float()(tokens), want.float()(tokens))


@pytest.mark.parametrize("start", ["meta", "real", "packed on meta"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_is_saved_comes_back(scheme: str, start: str, tmp_path: Path) -> None:
    model = compressed(scheme, skip="head")
    save_compressed(model, tmp_path)
    fresh = make_model() if start == "real" else on_meta()
    for parameter in fresh.parameters():
        parameter.data.zero_()
    if start == "packed on meta":
        lamina.compress(fresh, scheme, group=16 if scheme.startswith("w4") else None, skip="head")
    if start == "real":
        fresh.inv_freq.copy_(model.inv_freq)  # a model with values keeps its non-persistent buffers
    if start == "meta":
        fresh.inv_freq = fresh.inv_freq.half()  # as model.half() leaves it; the folder gives the dtype
    assert load_compressed(fresh, tmp_path) is fresh
    assert not any(module.training for module in fresh.modules())
    assert isinstance(fresh.head, nn.Linear)
    assert fresh.head.weight.requires_grad
    assert not any(tensor.is_meta for tensor in tensors_of(fresh).values())
    assert_same(fresh, model)
    entry = config_of(tmp_path)["quantization_config"]["modules"]["blocks.1.up"]
    features = {"in_features": 64, "out_features": 192, "bias": "float32", "weight_dtype": "float16"}
    assert entry == {"scheme": scheme, **features, **SCHEMES[scheme]}


def test_the_files_are_a_state_dict_and_a_config(tmp_path: Path) -> None:
    model = compressed()
    own = {"model_type": "mine", "torch_dtype": torch.half}
    model.config = type("Config", (), {"to_dict": lambda _: own})()
    save_compressed(model, tmp_path / "new" / "folder")
    folder = tmp_path / "new" / "folder"
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    with safetensors.safe_open(folder / "model.safetensors", "pt") as file:
        layers = {name.removesuffix("_packed") for name in model.state_dict() if name.endswith("_packed")}
        assert set(file.keys()) == {*model.state_dict(), "inv_freq", *layers}
        assert file.metadata() == {"format": "pt"}
    config = config_of(folder)
    quantization = config.pop("quantization_config")
    assert config == {"model_type": "mine", "torch_dtype": "torch.float16", "architectures": ["Model"]}
    assert quantization.keys() == {
        "quant_method", "format_version", "lamina_version", "modules", "ties", "transient_buffers",
    }  # fmt: skip
    assert (quantization["quant_method"], quantization["format_version"]) == ("lamina", 1)
    assert quantization["transient_buffers"] == ["inv_freq"]
    assert quantization["lamina_version"] == lamina.__version__
    assert len(quantization["modules"]) == 7


def test_the_config_has_the_dtype_that_the_model_has_now(tmp_path: Path) -> None:
    """transformers makes the model of it that load_compressed then fills."""
    model = compressed()
    model.config = type("Config", (), {"to_dict": lambda _: {"dtype": "float32"}})()
    save_compressed(model, tmp_path)
    assert config_of(tmp_path)["dtype"] == "float16"


@pytest.mark.parametrize("scheme", ["w8a8", "w4a16"])
def test_each_packed_layer_keeps_the_dtype_of_its_weight(scheme: str, tmp_path: Path) -> None:
    """As those layers that T5 keeps in f32 while the others are f16, whatever the model to fill has."""
    model = make_model()
    model.blocks[0].down.float()
    lamina.compress(model, scheme)
    save_compressed(model, tmp_path)
    loaded = load_compressed(on_meta(), tmp_path)
    assert loaded.blocks[0].down.weight.dtype is torch.float32
    assert loaded.blocks[1].down.weight.dtype is torch.float16


def test_attributes_of_a_layer_move_to_the_packed_one(tmp_path: Path) -> None:
    save_compressed(compressed(), tmp_path)
    fresh = on_meta()
    fresh.blocks[0].up.gain = 3
    load_compressed(fresh, tmp_path)
    assert fresh.blocks[0].up.gain == 3
    load_compressed(fresh, tmp_path)  # the packed layer is replaced too
    assert fresh.blocks[0].up.gain == 3


def test_a_config_in_the_folder_is_kept_and_an_old_save_replaced(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mine", "quantization_config": {"a": 1}}')
    save_compressed(compressed(), tmp_path, max_shard_bytes=3000)
    shards = list(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 3
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert {shard.name for shard in shards} == set(index["weight_map"].values())
    assert all(f"-of-{len(shards):05}." in shard.name for shard in shards)
    load_compressed(on_meta(), tmp_path)
    model = compressed("w8a8")
    save_compressed(model, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert config_of(tmp_path)["model_type"] == "mine"
    assert_same(load_compressed(on_meta(), tmp_path), model)


def test_shards_hold_as_many_bytes_as_are_allowed(tmp_path: Path) -> None:
    model = compressed()
    save_compressed(model, tmp_path, max_shard_bytes=3000)
    sizes = []
    for shard in tmp_path.glob("model-*.safetensors"):
        with safetensors.safe_open(shard, "pt") as file:
            sizes.append([file.get_tensor(name).nbytes for name in file.keys()])  # noqa: SIM118
    assert all(sum(shard) <= 3000 or len(shard) == 1 for shard in sizes)
    total = json.loads((tmp_path / "model.safetensors.index.json").read_text())["metadata"]["total_size"]
    assert total == sum(map(sum, sizes)) == sum(tensor.nbytes for tensor in tensors_of(model).values())


class Tied(nn.Module):
    """Every kind of sharing: a parameter, a module, a packed weight, a bias, a view."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.embed = nn.Embedding(64, 64)
        self.a = nn.Linear(64, 64)
        self.b = nn.Linear(64, 64)
        self.c = nn.ModuleList([self.a])
        self.head = nn.Linear(64, 64, bias=False)
        self.norm = nn.LayerNorm(64)

    def tie(self) -> Tied:
        self.b.weight, self.b.bias = self.a.weight, self.a.bias
        self.head.weight.data = self.embed.weight.data
        return self

    def forward(self, tokens: Tensor) -> Tensor:
        y: Tensor = self.head(self.norm(self.b(self.c[0](self.embed(tokens)))))
        return y


@pytest.mark.parametrize("tied_skeleton", [False, True])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_ties_are_stored_once_and_restored(device: str, tied_skeleton: bool, tmp_path: Path) -> None:
    model = Tied().tie().eval()
    lamina.compress(model, "w4a16")
    save_compressed(model, tmp_path)
    buffers = ("weight_packed", "weight_scale", "weight_format", "bias")
    assert config_of(tmp_path)["quantization_config"]["ties"] == {
        **{f"b.{name}": f"a.{name}" for name in buffers},
        **{f"c.0.{name}": f"a.{name}" for name in buffers},
        "head.weight": "embed.weight",
    }
    with torch.device(device):
        fresh = Tied().tie() if tied_skeleton else Tied()
    load_compressed(fresh.eval(), tmp_path)
    assert fresh.c[0] is fresh.a is not fresh.b
    assert all(getattr(fresh.b, name) is getattr(fresh.a, name) for name in buffers)
    assert fresh.head.weight is fresh.embed.weight
    with torch.inference_mode():
        assert torch.equal(fresh(TOKENS), model(TOKENS))


def test_what_is_not_tied_comes_back_apart_into_a_skeleton_that_ties(tmp_path: Path) -> None:
    """If the skeleton's ties stayed, two saved tensors or modules would become one, and one would be lost."""
    model = Tied()
    model.c[0] = nn.Linear(64, 64)
    lamina.compress(model, "w8a8", skip="head")
    save_compressed(model, tmp_path)
    fresh = load_compressed(Tied().tie(), tmp_path)
    with torch.inference_mode():
        assert torch.equal(fresh(TOKENS), model(TOKENS))
    assert fresh.head.weight.data_ptr() != fresh.embed.weight.data_ptr()
    assert fresh.c[0] is not fresh.a


def test_views_of_one_storage_are_stored_as_they_are(tmp_path: Path) -> None:
    whole = torch.randn(128, 64)
    views = {"a": whole[:64], "b": whole[32:96], "c": whole[64:].t(), "d": torch.randn(64, 64).t()}
    model = nn.ModuleDict({"layer": nn.Linear(64, 64), **{name: nn.Linear(64, 64) for name in views}})
    for name, view in views.items():
        model[name].weight = nn.Parameter(view)
    lamina.compress(model, skip=["[abcd]"])
    save_compressed(model, tmp_path)
    fresh = nn.ModuleDict({name: nn.Linear(64, 64) for name in ("layer", *views)})
    load_compressed(fresh, tmp_path)
    for name in views:
        assert torch.equal(fresh[name].weight, model[name].weight)
        assert fresh[name].weight.untyped_storage().nbytes() == 64 * 64 * 4


def test_a_buffer_is_not_restored_from_one_that_the_model_keeps(tmp_path: Path) -> None:
    model, fresh = nn.Sequential(nn.Linear(64, 64)), nn.Sequential(nn.Linear(64, 64))
    shared = torch.arange(4.0)
    model.register_buffer("transient", shared, persistent=False)
    model.register_buffer("steps", shared)
    lamina.compress(model)
    save_compressed(model, tmp_path)
    fresh.register_buffer("transient", torch.zeros(4), persistent=False)
    fresh.register_buffer("steps", torch.zeros(4))
    load_compressed(fresh, tmp_path)
    assert torch.equal(fresh.steps, shared)
    assert torch.equal(fresh.transient, torch.zeros(4))


def test_what_is_frozen_stays_frozen(tmp_path: Path) -> None:
    save_compressed(compressed(skip="head"), tmp_path)
    fresh = on_meta()
    fresh.head.weight.requires_grad_(False)
    load_compressed(fresh, tmp_path)
    assert not fresh.head.weight.requires_grad
    assert fresh.embed.weight.requires_grad


def test_act_order_and_ragged_groups_come_back(tmp_path: Path) -> None:
    torch.manual_seed(6)
    x, weight = torch.randn(200, 200), torch.randn(40, 200)
    quantized = gptq(weight, hessian(x), 48, act_order=True, static_groups=False, symmetric=False)
    model = nn.Sequential(Int4Linear.from_quantized(quantized, activations="int8"))
    save_compressed(model, tmp_path)
    entry = config_of(tmp_path)["quantization_config"]["modules"]["0"]
    assert (entry["perm"], entry["bias"]) == (len(model[0].perm), None)
    fresh = load_compressed(nn.Sequential(nn.Linear(200, 40, bias=False, device="meta")), tmp_path)
    assert torch.equal(fresh[0].perm, model[0].perm)
    assert torch.equal(fresh(x), model(x))


def test_a_layer_saved_on_cuda_is_packed_for_the_cpu(tmp_path: Path) -> None:
    """The weights of a model on CUDA: they are in the layout of its kernels, which the header names."""
    model = nn.Sequential(Int4Linear.from_linear(nn.Linear(100, 40)))
    layer, x = model[0], torch.randn(3, 100)
    want = model(x)
    rows = layer.weight_packed.clone()
    layer.weight_packed = lamina.pack_int4(layer.packed_weight.unpack(), "int4_tile").data
    layer._layout = "int4_tile"
    layer.weight_format[0] = 2
    save_compressed(model, tmp_path)
    fresh = load_compressed(nn.Sequential(nn.Linear(100, 40, device="meta")), tmp_path)
    assert torch.equal(fresh[0].weight_packed, rows)
    assert torch.equal(fresh(x), want)


def test_tensors_do_not_depend_on_the_file_and_are_aligned(tmp_path: Path) -> None:
    model = compressed()
    save_compressed(model, tmp_path)
    fresh = load_compressed(on_meta(), tmp_path)
    path = tmp_path / "model.safetensors"
    with open(path, "r+b") as file:  # overwrites in place, so that a mapped tensor would change
        file.write(bytes(path.stat().st_size))
    assert all(tensor.data_ptr() % 64 == 0 for tensor in tensors_of(fresh).values())
    assert_same(fresh, model)


def test_device_says_where_tensors_go(tmp_path: Path) -> None:
    save_compressed(compressed(), tmp_path)
    fresh = load_compressed(on_meta(), tmp_path, device="cpu")
    assert {tensor.device.type for tensor in tensors_of(fresh).values()} == {"cpu"}
    again = load_compressed(make_model(), tmp_path, device="meta")
    assert {tensor.device.type for tensor in again.state_dict().values()} == {"meta"}


def test_inside_inference_mode_ordinary_tensors_are_made(tmp_path: Path) -> None:
    with torch.inference_mode():
        save_compressed(compressed(), tmp_path)
        fresh = load_compressed(on_meta(), tmp_path)
    assert not any(tensor.is_inference() for tensor in tensors_of(fresh).values())


def test_compiled_models_are_saved_and_loaded_as_what_they_wrap(tmp_path: Path) -> None:
    model = compressed()
    save_compressed(torch.compile(model, backend="eager"), tmp_path)  # type: ignore[arg-type]
    assert "blocks.0.up" in config_of(tmp_path)["quantization_config"]["modules"]
    fresh = on_meta()
    load_compressed(torch.compile(fresh, backend="eager"), tmp_path)  # type: ignore[type-var]
    assert_same(fresh, model)


def test_torch_s_encoder_keeps_off_its_fused_path(tmp_path: Path) -> None:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    lamina.compress(model, "w8a8")
    save_compressed(model, tmp_path)
    fresh = load_compressed(nn.TransformerEncoder(layer, 2).eval(), tmp_path)
    assert isinstance(fresh.layers[1].linear2, Int8Linear)
    x = torch.randn(2, 7, 32)
    with torch.inference_mode():
        assert torch.equal(fresh(x), model(x))


def test_only_saving_and_loading_need_safetensors() -> None:
    code = (
        "import sys; sys.modules['safetensors'] = None\n"
        "import torch, lamina\n"
        "model = torch.nn.Sequential(torch.nn.Linear(64, 64)); lamina.compress(model)\n"
        "try: lamina.save_compressed(model, 'x')\n"
        "except ImportError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ}
    )
    assert done.stdout == "save_compressed needs safetensors: pip install 'lamina[save]'\n"
