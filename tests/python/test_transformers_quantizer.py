"""The quantisation method "lamina" of transformers: loading, packing while loading, saving."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")

import lamina  # noqa: E402
from lamina.integrations.transformers import LaminaConfig  # noqa: E402
from lamina.nn.packed_linear import PackedLinear  # noqa: E402

IDS = torch.arange(1, 12)[None]
SIZES: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2,
}  # fmt: skip
SCHEMES = [("w8a8", None), ("w4a16_asymmetric", 32), ("w4a8", 64)]


def make(**more: Any) -> nn.Module:
    torch.manual_seed(3)
    model: nn.Module = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**SIZES, **more})).eval()
    return model


@pytest.fixture(scope="module", params=[False, True], ids=["own head", "tied head"])
def floats(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("float")
    make(tie_word_embeddings=request.param).save_pretrained(folder)
    return folder


def load(folder: Path, **options: Any) -> nn.Module:
    model: nn.Module = transformers.LlamaForCausalLM.from_pretrained(folder, **options)
    return model.eval()


def logits(model: nn.Module) -> Tensor:
    with torch.inference_mode():
        out: Tensor = model(IDS).logits
    return out


def packed(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, PackedLinear)]


@pytest.mark.parametrize(("scheme", "group"), SCHEMES)
def test_packing_while_loading_is_compress(
    floats: Path, scheme: str, group: int | None, tmp_path: Path
) -> None:
    model = load(floats, quantization_config=LaminaConfig(scheme, group=group))
    expected = load(floats)
    lamina.compress(expected, scheme, group=group)
    assert packed(model) == packed(expected) and len(packed(model)) >= 14
    assert torch.equal(logits(model), logits(expected))
    # Saved by either way, it is loaded by either way.
    model.save_pretrained(tmp_path / "transformers")
    lamina.save_compressed(model, tmp_path / "lamina")
    for folder in (tmp_path / "transformers", tmp_path / "lamina"):
        again = load(folder)
        assert packed(again) == packed(model)
        assert torch.equal(logits(again), logits(model))
        by_lamina = lamina.load_compressed(load(floats), folder)
        assert torch.equal(logits(by_lamina), logits(model))


@pytest.mark.parametrize(
    ("scale", "zeros"), [(torch.float16, "bfloat16"), ("float16", None), (None, torch.float32)]
)
def test_a_config_has_the_dtypes_of_scales_and_zero_points(floats: Path, scale: Any, zeros: Any) -> None:
    config = LaminaConfig("w4a8_asymmetric", group=32, scale_dtype=scale, zero_point_dtype=zeros)
    again = LaminaConfig.from_dict(json.loads(config.to_json_string(use_diff=False)))
    assert again.to_dict() == config.to_dict()
    model = load(floats, quantization_config=again)
    dtypes = {"scale_dtype": config.scale_dtype, "zero_point_dtype": config.zero_point_dtype}
    expected = load(floats)
    lamina.compress(expected, "w4a8_asymmetric", group=32, **dtypes)
    layer: Any = model.model.layers[0].mlp.up_proj
    assert layer.weight_scale.dtype == (config.scale_dtype or torch.float32)
    assert layer.weight_zero_point.dtype == (config.zero_point_dtype or torch.uint8)
    assert torch.equal(logits(model), logits(expected))


def test_a_loaded_model_is_saved_again(floats: Path, tmp_path: Path) -> None:
    first = load(floats, quantization_config=LaminaConfig("w8a8", skip=["*down_proj"]))
    assert not any(name.endswith("down_proj") for name in packed(first))
    for name in ("one", "two"):
        first.save_pretrained(tmp_path / name)
        first = load(tmp_path / name)
    one, two = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("one", "two"))
    assert one["quantization_config"] == two["quantization_config"]
    assert one["quantization_config"]["modules"].keys() == set(packed(first))


def test_floats_follow_the_dtype_and_packed_tensors_keep_theirs(floats: Path, tmp_path: Path) -> None:
    load(floats, quantization_config=LaminaConfig("w8a8")).save_pretrained(tmp_path)
    model = load(tmp_path, dtype=torch.bfloat16)
    layer = model.get_submodule(packed(model)[0])
    assert layer.weight_scale.dtype is torch.float32 and layer.weight_packed.dtype is torch.int8
    assert model.get_input_embeddings().weight.dtype is torch.bfloat16


def test_without_the_method_a_packed_model_is_refused(floats: Path, tmp_path: Path) -> None:
    """The empty tensor in place of a float weight keeps a loader from going on with random weights."""
    load(floats, quantization_config=LaminaConfig("w8a8")).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(RuntimeError, match=r"size mismatch|mismatch"):
        load(tmp_path)


def change(folder: Path, **entries: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"].update(entries)
    (folder / "config.json").write_text(json.dumps(config))


def test_damaged_models_are_refused(floats: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    load(floats, quantization_config=LaminaConfig("w4a8", group=32)).save_pretrained(tmp_path)
    entries = json.loads((tmp_path / "config.json").read_text())["quantization_config"]["modules"]
    name = next(iter(entries))
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    for broken, message in (
        (
            {k: v for k, v in tensors.items() if k != f"{name}.weight_scale"},
            f"lack the tensor '{name}.weight_scale'",
        ),
        ({**tensors, f"{name}.weight_packed": tensors[f"{name}.weight_packed"][:1]}, name),
        ({**tensors, f"{name}.weight_format": tensors[f"{name}.weight_format"] + 1}, name),
        ({**tensors, f"{name}.surprise": torch.zeros(1)}, "surprise"),
    ):
        save_file(broken, file, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=message):
            load(tmp_path)
    save_file(tensors, file, metadata={"format": "pt"})
    change(tmp_path, modules={name: {**entries[name], "in_features": 64}})
    with pytest.raises(ValueError, match="features"):
        load(tmp_path)
    change(tmp_path, modules={"model.absent": entries[name]})
    with pytest.raises(ValueError, match=r"'model\.absent'"):
        load(tmp_path)
    change(tmp_path, modules=entries, format_version=99)
    with pytest.raises(ValueError, match="format_version is 99"):
        load(tmp_path)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"scheme": "w3"}, "scheme must be one of"),
    ({}, "got None"),
    ({"scheme": "w8a8", "format_version": 0}, "is 0"),
    (
        {"scheme": "w4a8", "scale_dtype": "float17"},
        "scale_dtype must be a dtype .*'float17'",
    ),
    ({"scheme": "w4a8", "scale_dtype": "int8"}, "scale_dtype must be float32, float16 or bfloat16"),
    ({"scheme": "w4a8", "zero_point_dtype": torch.float16}, "zero_point_dtype was given with scheme w4a8"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_a_bad_config_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LaminaConfig(**options)
    with pytest.raises(TypeError, match="skip"):
        LaminaConfig("w8a8", skip="lm_head")


def test_a_model_without_a_packed_layer_is_an_error(floats: Path) -> None:
    with pytest.raises(ValueError, match="no packed layer"):
        load(floats, quantization_config=LaminaConfig("w8a8", skip=["*"]))


def test_weights_are_packed_one_at_a_time(floats: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a layer is packed, the later layers still have no values, and the earlier ones are packed."""
    from lamina.integrations.transformers.quantizer import LaminaHfQuantizer

    kinds: list[tuple[int, int]] = []
    pack = LaminaHfQuantizer.pack

    def watched(self: Any, model: nn.Module, name: str, weight: Tensor) -> None:
        linears = [m for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.endswith("_proj")]
        assert all(m.weight.is_meta for m in linears)
        pack(self, model, name, weight)
        kinds.append((len(packed(model)), len(linears)))

    monkeypatch.setattr(LaminaHfQuantizer, "pack", watched)
    model = load(floats, quantization_config=LaminaConfig("w8a8"))
    assert len(kinds) >= 14
    assert [done for done, _ in kinds] == list(range(1, len(kinds) + 1))
    assert not any(t.is_meta for t in (*model.parameters(), *model.buffers()))


def test_biases_are_kept_when_weights_are_packed_while_loading(tmp_path: Path) -> None:
    model = make(attention_bias=True, mlp_bias=True)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter.data)
    model.save_pretrained(tmp_path)
    got = load(tmp_path, quantization_config=LaminaConfig("w8a8"))
    lamina.compress(model, "w8a8")
    assert torch.equal(logits(got), logits(model))
    assert got.model.layers[0].self_attn.q_proj.bias.abs().min() > 0


@pytest.mark.parametrize("scheme", ["w4a8", {"*.down_proj": "w8a8", "*": "w4a16"}])
def test_a_head_with_a_scheme_of_its_own(floats: Path, scheme: Any, tmp_path: Path) -> None:
    model = load(floats, quantization_config=LaminaConfig(scheme, group=32, head="w8a8"))
    assert "lm_head" in packed(model) and not model.config.tie_word_embeddings
    expected = load(floats)
    lamina.compress(expected, scheme, group=32, head="w8a8")
    assert torch.equal(logits(model), logits(expected))
    model.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert packed(again) == packed(model)
    assert torch.equal(logits(again), logits(model))
    lamina.save_compressed(model, tmp_path / "lamina")
    assert torch.equal(logits(load(tmp_path / "lamina")), logits(model))


def test_the_model_inside_and_the_model_with_a_head_read_one_folder(floats: Path, tmp_path: Path) -> None:
    whole = load(floats, quantization_config=LaminaConfig("w8a8", head="w8a8"))
    whole.save_pretrained(tmp_path / "whole")
    inside = transformers.AutoModel.from_pretrained(tmp_path / "whole").eval()
    assert type(inside).__name__ == "LlamaModel"
    with torch.inference_mode():
        assert torch.equal(inside(IDS).last_hidden_state, whole.model(IDS).last_hidden_state)
    inside.save_pretrained(tmp_path / "inside")
    again = load(tmp_path / "inside")  # its head is new, as for a float model
    with torch.inference_mode():
        assert torch.equal(again.model(IDS).last_hidden_state, whole.model(IDS).last_hidden_state)
