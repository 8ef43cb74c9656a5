"""Each error of save_compressed and load_compressed has a clear message and leaves the model unchanged."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lamina
from lamina import load_compressed, save_compressed
from lamina.nn.packed_linear import PackedLinear

safetensors_torch = pytest.importorskip("safetensors.torch")
from safetensors.torch import load_file, save_file  # noqa: E402


class Net(nn.Module):
    """Two layers to pack, one to leave, an embedding, a buffer of each kind."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(8)
        self.embed = nn.Embedding(10, 64)
        self.up = nn.Linear(64, 128)
        self.down = nn.Linear(128, 64, bias=False)
        self.head = nn.Linear(64, 10)
        self.register_buffer("steps", torch.arange(4))
        self.register_buffer("inv_freq", torch.rand(3), persistent=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = Net()
    lamina.compress(model, "w4a16_asymmetric", group=32, skip="head")
    save_compressed(model, tmp_path)
    return tmp_path


def snapshot(model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    return {name: (tensor, tensor.clone()) for name, tensor in model.state_dict(keep_vars=True).items()}


def refuse(folder: Path, match: str, model: nn.Module | None = None) -> None:
    """Loading raises, and leaves every bit and object of the model as it was."""
    model = Net() if model is None else model
    before = snapshot(model)
    with pytest.raises(ValueError, match=match):
        load_compressed(model, folder)
    after = model.state_dict(keep_vars=True)
    assert before.keys() == after.keys()
    assert all(after[name] is old for name, (old, _) in before.items())
    assert all(torch.equal(old, values) for old, values in before.values() if not old.is_meta)
    assert not any(isinstance(module, PackedLinear) for module in model.modules())


def edit_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config["quantization_config"])
    (folder / "config.json").write_text(json.dumps(config))


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_the_folder_is_loaded_as_it_is(folder: Path) -> None:
    """The folder that the other tests damage can be loaded."""
    assert isinstance(load_compressed(Net(), folder).down, PackedLinear)


def test_folders_of_other_origin(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        load_compressed(Net(), tmp_path / "nowhere")
    refuse(tmp_path, r"quant_method in .*config\.json must be 'lamina', got None; use a folder that lamina")
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "gptq"}}')
    refuse(tmp_path, "must be 'lamina', got 'gptq'")
    (tmp_path / "config.json").write_text('{"quantization_config":')
    refuse(tmp_path, r"config\.json is damaged: ")
    (tmp_path / "config.json").write_text("[1]")
    refuse(tmp_path, r"config\.json must hold a JSON object, got list")


CONFIGS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "newer": (
        lambda c: c.update(format_version=2, lamina_version="9.9"),
        r"has format_version 2, written by lamina 9\.9; this version of lamina reads 1",
    ),
    "no version": (lambda c: c.pop("format_version"), "has format_version None"),
    "no modules": (lambda c: c.pop("modules"), "is damaged: modules and ties must be objects"),
    "no name in ties": (lambda c: c["ties"].update(x=["up.bias"]), "is damaged: modules and ties must be"),
    "no name in a list": (lambda c: c["transient_buffers"].append(["x"]), "is damaged: .* a list, of names"),
    "lost owner": (
        lambda c: c["ties"].update(x="gone"),
        "lacks the tensor 'gone', which its config.json names",
    ),
    "unknown scheme": (
        lambda c: c["modules"]["up"].update(scheme="w2a2"),
        r"packed layer 'up': scheme must be one of w8a8, .*, got 'w2a2'",
    ),
    "other scheme": (lambda c: c["modules"]["up"].update(scheme="w8a8"), "packed layer 'up': "),
    "other activations": (
        lambda c: c["modules"]["up"].update(scheme="w4a8_asymmetric"),
        "'up': scheme is 'w4a16_asymmetric' in its tensors and 'w4a8_asymmetric' in config.json",
    ),
    "other group": (
        lambda c: c["modules"]["up"].update(group=16),
        "'up': group is 32 in its tensors and 16 in config.json",
    ),
    "other scales": (
        lambda c: c["modules"]["up"].update(scale_dtype="float16"),
        "'up': scale_dtype is 'float32' in its tensors and 'float16' in config.json",
    ),
    "unknown dtype": (
        lambda c: c["modules"]["up"].update(bias="int9"),
        "'up': 'int9' is missing, or is a dtype other than float32, float16, bfloat16",
    ),
    "no group": (lambda c: c["modules"]["up"].pop("group"), "'up': 'group' is missing"),
    "not an object": (lambda c: c["modules"].update(up=3), "'up', whose entry in config.json must be an obj"),
    "a layer more": (
        lambda c: c["modules"].update(left=c["modules"]["up"]),
        "the folder holds a packed layer 'left', which the model lacks",
    ),
    "no linear layer": (
        lambda c: c["modules"].update(embed=c["modules"]["up"]),
        r"packed layer 'embed'; in the model it must be nn\.Linear or Conv1D, got Embedding",
    ),
    "a layer less": (
        lambda c: c["modules"].pop("up"),
        r"up\.weight_format is in the folder but not in the model",
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_that_do_not_fit(name: str, folder: Path) -> None:
    change, match = CONFIGS[name]
    edit_config(folder, change)
    refuse(folder, match)


TENSORS: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "missing float": (
        lambda t: t.pop("embed.weight"),
        r"differ: embed\.weight is in the model but not in the folder$",
    ),
    "missing buffer": (lambda t: t.pop("steps"), "steps is in the model but not in the folder"),
    "missing scales": (lambda t: t.pop("up.weight_scale"), "packed layer 'up': .*weight_scale is missing"),
    "missing header": (lambda t: t.pop("up.weight_format"), "packed layer 'up': .*weight_format is missing"),
    "missing layer": (
        lambda t: [t.pop(name) for name in list(t) if name.startswith("down.")],
        "packed layer 'down': .*[Mm]issing",
    ),
    "missing bias": (lambda t: t.pop("up.bias"), r"packed layer 'up': .*Missing key\(s\).*bias"),
    "one more": (
        lambda t: t.update(more=torch.ones(1)),
        "differ: more is in the folder but not in the model$",
    ),
    "one more of a layer": (
        lambda t: t.update({"up.more": torch.ones(1)}),
        r"packed layer 'up': .*Unexpected key\(s\).*more",
    ),
    "float shape": (
        lambda t: t.update({"embed.weight": torch.ones(10, 63)}),
        r"embed\.weight is torch\.float32 \[10, 63\] in the folder and must be the same in the model, which "
        r"has torch\.float32 \[10, 64\]",
    ),
    "float dtype": (
        lambda t: t.update({"head.weight": t["head.weight"].half()}),
        r"head\.weight is torch\.float16 \[10, 64\] in the folder .* has torch\.float32 \[10, 64\]$",
    ),
    "packed shape": (
        lambda t: t.update({"up.weight_packed": t["up.weight_packed"][:1].clone()}),
        r"'up': .*weight_packed must be \[8, 1, 512\], got \[1, 1, 512\]",
    ),
    "packed dtype": (
        lambda t: t.update({"up.weight_packed": t["up.weight_packed"].view(torch.int8)}),
        r"'up': .*weight_packed must be uint8, got torch\.int8",
    ),
    "bias dtype": (
        lambda t: t.update({"up.bias": t["up.bias"].half()}),
        "'up': bias is 'float16' in its tensors and 'float32' in config.json",
    ),
    "other extents": (
        lambda t: t["up.weight_format"].__setitem__(2, 127),
        r"'up': .*the weight is \[127, 64\]; this module is \[128, 64\]",
    ),
    "newer layout": (lambda t: t["up.weight_format"].__setitem__(1, 9), "'up': .*has version 9"),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_that_do_not_fit(name: str, folder: Path) -> None:
    change, match = TENSORS[name]
    edit_tensors(folder, change)
    refuse(folder, match)
    refuse(folder, match, Net().to("meta"))


@pytest.mark.parametrize("keep", [4, 100, 0.5, -1])
def test_files_that_are_cut_off(keep: float, folder: Path) -> None:
    path = folder / "model.safetensors"
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.truncate(int(size * keep) if isinstance(keep, float) else keep % size)
    refuse(folder, r"model\.safetensors is damaged or cut off: ")


def test_shards_that_are_missing_cut_off_or_misnamed(tmp_path: Path) -> None:
    model = Net()
    lamina.compress(model, skip="head")
    save_compressed(model, tmp_path, max_shard_bytes=4000)
    first, *_, last = sorted(tmp_path.glob("model-*.safetensors"))
    content = last.read_bytes()
    last.write_bytes(content[:-1])
    refuse(tmp_path, f"{last.name} is damaged or cut off")
    last.unlink()
    refuse(tmp_path, f"{last.name} is missing")
    last.write_bytes(first.read_bytes())
    refuse(tmp_path, f"{last.name} lacks '.*', which model.safetensors.index.json names")
    last.write_bytes(content)
    index = tmp_path / "model.safetensors.index.json"
    good = json.loads(index.read_text())
    for bad in ({"weight_map": {"a": "../secret"}}, {"weight_map": 3}, {}):
        index.write_text(json.dumps(bad))
        refuse(tmp_path, "weight_map in .* must name a file of the folder for each tensor")
    index.write_text(json.dumps(good))
    load_compressed(Net(), tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    refuse(tmp_path, r"model\.safetensors is missing")


def test_models_of_another_architecture(folder: Path) -> None:
    wider, biased, special, filled = Net(), Net(), Net(), Net()
    wider.up = nn.Linear(64, 100)
    refuse(folder, r"layer 'up' of 128 x 64 features \(out x in\); the layer of the model is 100 x 64", wider)
    biased.down = nn.Linear(128, 64)
    refuse(folder, "layer 'down'; it has a bias in the model and none in the folder", biased)
    biased = Net()
    biased.up = nn.Linear(64, 128, bias=False)
    refuse(folder, "layer 'up'; it has a bias in the folder and none in the model", biased)
    special.extra = nn.LayerNorm(3)
    refuse(
        folder, r"extra\.weight is in the model but not in the folder; extra\.bias is in the model", special
    )
    filled.up = nn.Sequential(nn.Linear(64, 128))
    refuse(folder, "got Sequential", filled)
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, got dict"):
        load_compressed({}, folder)  # type: ignore[type-var]


def test_a_value_that_nothing_would_fill_is_named(folder: Path) -> None:
    """A model on the meta device has non-persistent buffers, and tensors that are plain attributes."""
    model = Net().to("meta")
    model.register_buffer("mask", torch.ones(3, device="meta"), persistent=False)
    refuse(folder, "differ: mask is in the model but not in the folder", model)
    model = Net().to("meta")
    model.head.table = torch.ones(3, device="meta")
    refuse(folder, r"differ: head\.table of the model is a plain attribute on meta and stays empty", model)
    real = Net()
    real.register_buffer("mask", torch.ones(3), persistent=False)
    assert load_compressed(real, folder).mask.sum() == 3


def test_many_problems_are_counted(folder: Path) -> None:
    edit_tensors(folder, lambda t: t.update({f"x{i}": torch.ones(1) for i in range(9)}))
    refuse(folder, "differ: x0 is .*; x4 is in the folder but not in the model; and 4 more$")


def test_layers_that_are_not_plain_are_not_replaced(folder: Path) -> None:
    model = Net()
    model.up.register_forward_hook(lambda *_: None)
    refuse(folder, "a packed layer 'up'; of that in the model: it has forward hooks, which would", model)
    model = Net()
    nn.utils.parametrizations.weight_norm(model.up)
    refuse(folder, "a packed layer 'up'; of that in the model: its weight is parametrized", model)


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no packed layer; call lamina\.compress first"):
        save_compressed(Net(), tmp_path)
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, got int"):
        save_compressed(3, tmp_path)  # type: ignore[arg-type]
    model = Net()
    lamina.compress(model)
    with pytest.raises(ValueError, match="max_shard_bytes = 0; must be at least 1"):
        save_compressed(model, tmp_path, max_shard_bytes=0)
    with pytest.raises(ValueError, match="packed layers must be of float32, float16, bfloat16, got float64"):
        save_compressed(copy.deepcopy(model).double(), tmp_path)
    model.embed.weight = nn.Parameter(torch.eye(3).to_sparse())
    with pytest.raises(ValueError, match=r"embed\.weight is a Parameter; it must be a dense tensor"):
        save_compressed(model, tmp_path)
    model.embed.to("meta")
    model.embed.weight = nn.Parameter(torch.ones(3, device="meta"))
    with pytest.raises(ValueError, match=r"embed\.weight is on the meta device; load the model first"):
        save_compressed(model, tmp_path)

    class Stateful(nn.Module):
        def get_extra_state(self) -> int:
            return 3

    model = nn.Sequential(nn.Linear(64, 64), Stateful())  # type: ignore[assignment]
    lamina.compress(model)
    with pytest.raises(ValueError, match="Stateful has extra state, which safetensors cannot hold"):
        save_compressed(model, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("config", [None, "{}", '{"quantization_config": {"quant_method": "awq"}}'])
def test_the_weights_of_another_model_are_not_replaced(config: str | None, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"the only copy")
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    model = Net()
    lamina.compress(model)
    with pytest.raises(ValueError, match=r"holds model\.safetensors of another model; choose another folder"):
        save_compressed(model, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == b"the only copy"


class Killed(BaseException):
    """An exception that no code expects."""


@pytest.mark.parametrize("step", range(7))
def test_a_save_that_dies_half_way_is_refused_and_may_be_repeated(
    step: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never is some of one model loaded with some of another."""
    done: list[str] = []

    def counted(name: str) -> None:
        real = getattr(Path, name)

        def run(path: Path, *args: Any, **kwargs: Any) -> Any:
            if len(done) > step:
                raise Killed
            done.append(name)
            return real(path, *args, **kwargs)

        monkeypatch.setattr(Path, name, run)

    model = Net()
    lamina.compress(model)
    with monkeypatch.context() as monkeypatch:
        counted("unlink")
        counted("replace")
        with pytest.raises(Killed):
            save_compressed(model, folder, max_shard_bytes=8000)
    refuse(folder, "is missing|config.json says|weight_format")
    save_compressed(model, folder)
    assert isinstance(load_compressed(Net(), folder).head, PackedLinear)
    assert not list(folder.glob("model-*.safetensors"))


def test_a_save_that_fails_leaves_the_folder_as_it_was(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    written = []

    def fail(tensors: dict[str, Tensor], path: Path, **_: Any) -> None:
        path.write_bytes(b"some")
        written.append(path)
        if len(written) == 2:
            raise OSError("no space left on device")

    monkeypatch.setattr(safetensors_torch, "save_file", fail)
    model = Net()
    lamina.compress(model)
    with pytest.raises(OSError, match="no space left"):
        save_compressed(model, folder, max_shard_bytes=4000)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
