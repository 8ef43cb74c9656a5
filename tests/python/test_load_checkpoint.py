"""lamina.load_checkpoint: layers of compressed-tensors, GPTQ, AWQ and marlin-24."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import lamina
from lamina.nn import Int4Linear, Int8Linear
from tests.python.test_act_order import checkpoint
from tests.python.test_gptq_checkpoints import packed
from tests.reference import sparse24_formats
from tests.support.backends import ROOT
from tests.support.cases import generator
from tests.support.compare import assert_equal
from tests.support.sparse24_cases import random_mask

WRITTEN = ROOT / "tests" / "checkpoints" / "compressed_tensors.safetensors"  # by tests/checkpoints/make.py
N, K = 24, 80


def write(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any] | None = None) -> Path:
    """A checkpoint; safetensors takes contiguous tensors alone."""
    held = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    save_file(held, folder / "model.safetensors")
    content = {} if config is None else {"quantization_config": config}
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def compressed_tensors(weights: dict[str, Any], fmt: str, **group: Any) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "format": fmt,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, **group}},
        "ignore": ["lm_head"],
    }


def one_layer(n: int = N, k: int = K, bias: bool = False, **options: Any) -> nn.ModuleDict:
    return nn.ModuleDict({"layer": nn.Linear(k, n, bias, device="meta", **options)})


def hash_of(w: Tensor) -> str:
    return hashlib.sha256(w.float().contiguous().numpy().tobytes()).hexdigest()[:16]


def written(name: str, folder: Path) -> tuple[Path, str]:
    """A checkpoint with one layer of the file, and the hash of its weight."""
    with safe_open(WRITTEN, "pt") as file:
        described = json.loads(file.metadata()["layers"])[name]
        names = [full for full in file.keys() if full.startswith(f"{name}.")]  # noqa: SIM118
        tensors = {"layer." + full.rpartition(".")[2]: file.get_tensor(full) for full in names}
    if name == "bitmask":
        return write(
            folder, tensors, {"format": "dense", "sparsity_config": {"format": "sparse-24-bitmask"}}
        ), (described["hash"])
    kind = "pack-quantized" if "layer.weight_packed" in tensors else "int-quantized"
    kind = "float-quantized" if name == "float8" else kind
    activations = {"num_bits": 8, "type": "int", "dynamic": True, "symmetric": True, "strategy": "token"}
    inputs = {"input_activations": activations} if kind == "int-quantized" else {}
    return write(folder, tensors, compressed_tensors(described["weights"], kind, **inputs)), described["hash"]


@pytest.mark.parametrize("name", ["w4", "w4_zero", "w4_channel", "w4_order"])
def test_4_bit_layers_of_compressed_tensors_are_taken_as_they_are(name: str, tmp_path: Path) -> None:
    folder, want = written(name, tmp_path)
    for activations, scheme in ((None, "w4a16"), ("int8", "w4a8")):
        model = one_layer(dtype=torch.float16)
        report = lamina.load_checkpoint(model, folder, activations=activations)
        layer = model["layer"]
        assert isinstance(layer, Int4Linear)
        assert hash_of(layer.dequantize_weight()) == want
        assert layer.weight.dtype is torch.float16
        assert report.layers == {"layer": scheme + ("_asymmetric" if name == "w4_zero" else "")}
        assert str(report) == f"{report.layers['layer']}: 1 layers"


@pytest.mark.parametrize("bits", [4, 8])
def test_words_that_n_and_k_do_not_fill(bits: int, tmp_path: Path) -> None:
    """compressed-tensors fills the last word of a row, and of a column of zero points, with zeros."""
    n, k, group, top = 21, 75, 16, 1 << (bits - 1)
    g = generator(f"ragged {bits}")
    q, scale = torch.randint(0, 2 * top, (n, k), generator=g), torch.rand(n, 5, generator=g).bfloat16()
    zero = torch.randint(0, 2 * top, (n, 5), generator=g)
    pad = torch.nn.functional.pad
    tensors = {
        "layer.weight_packed": words(pad(q, (0, -k % 8)), bits)[:, : -(-k * bits // 32)],
        "layer.weight_scale": scale,
        "layer.weight_zero_point": words(pad(zero.T, (0, -n % 8)), bits).T[: -(-n * bits // 32)],
    }
    weights = {"num_bits": bits, "symmetric": False, "strategy": "group", "group_size": group}
    model = one_layer(n, k)
    folder = write(tmp_path, tensors, compressed_tensors(weights, "pack-quantized"))
    lamina.load_checkpoint(model, folder, convert="float")
    layer = model["layer"]
    w = layer.dequantize_weight() if isinstance(layer, Int4Linear) else layer.weight.detach()
    index = torch.arange(k) // group
    assert_equal(w, (q - zero[:, index]).float() * scale.float()[:, index])


@pytest.mark.parametrize("name", ["int8", "int8_tensor", "w8_channel"])
def test_8_bit_layers_of_compressed_tensors_are_taken_as_they_are(name: str, tmp_path: Path) -> None:
    folder, want = written(name, tmp_path)
    model = one_layer()
    if name == "w8_channel":
        with pytest.raises(
            ValueError, match=r"layer 'layer': 8-bit weights have no product with float act.*int8"
        ):
            lamina.load_checkpoint(model, folder)
    report = lamina.load_checkpoint(model, folder, activations="int8" if name == "w8_channel" else None)
    layer = model["layer"]
    assert isinstance(layer, Int8Linear)
    assert hash_of(layer.dequantize_weight()) == want
    assert report.layers == {"layer": "w8a8"}


@pytest.mark.parametrize("name", ["w8_zero", "w8_group", "float8"])
def test_weights_without_a_product_are_refused_or_converted(name: str, tmp_path: Path) -> None:
    folder, want = written(name, tmp_path)
    stored = {
        "w8_zero": "8-bit integers with zero points (pack-quantized)",
        "w8_group": "8-bit integers in groups (pack-quantized)",
        "float8": "float8_e4m3fn (float-quantized)",
    }[name]
    model = one_layer()
    with pytest.raises(ValueError) as refused:
        lamina.load_checkpoint(model, folder)
    assert f"layer 'layer': no product takes its weight, {stored}; pass convert=\"w8a8\"" in str(
        refused.value
    )
    report = lamina.load_checkpoint(model, folder, convert="float")
    assert hash_of(model["layer"].weight.detach()) == want
    assert report.layers == {"layer": "float"}
    w, model = model["layer"].weight.detach(), one_layer()
    report = lamina.load_checkpoint(model, folder, convert="w8a8")
    (found, error), made = report.converted["layer"], model["layer"].dequantize_weight()
    assert found == stored
    assert 1e-3 < error < 1e-2
    assert error == pytest.approx(float((made - w).norm() / w.norm()), rel=1e-4)
    assert f"layer: w8a8 from {stored}, relative error {error:.2e}" in str(report)


def test_a_bitmask_becomes_a_float_layer(tmp_path: Path) -> None:
    folder, want = written("bitmask", tmp_path)
    model = one_layer(dtype=torch.float16)
    assert lamina.load_checkpoint(model, folder).layers == {"layer": "float"}
    assert hash_of(model["layer"].weight.detach()) == want


def test_a_bitmask_of_quantised_weights(tmp_path: Path) -> None:
    """int8 and float8 values beside a scale, as llm-compressor saved 2:4 models."""
    q = torch.randint(1, 100, (N, K), generator=generator("2:4"), dtype=torch.int8).where(
        random_mask(N, K), 0
    )
    sparse = lamina.compress_sparse24(q)
    mask = torch.from_numpy(sparse24_formats.bitmask(sparse.metadata.numpy(), K))
    scale = torch.rand(N, 1, generator=generator("scale")) + 0.5
    weights = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
    inputs = {"input_activations": {"num_bits": 8, "dynamic": True, "symmetric": False}}
    config = compressed_tensors(weights, "int-quantized", **inputs)
    config["sparsity_config"] = {"format": "sparse-24-bitmask"}
    tensors = {"layer.bitmask": mask, "layer.shape": torch.tensor([[N], [K]]), "layer.weight_scale": scale}
    model = one_layer()
    lamina.load_checkpoint(model, write(tmp_path, {**tensors, "layer.compressed": sparse.values}, config))
    assert_equal(model["layer"].dequantize_weight(), q * scale)
    assert not model["layer"].symmetric
    eights = sparse.values.float().to(torch.float8_e4m3fn)
    config["config_groups"]["group_0"]["weights"]["type"] = "float"
    model = one_layer()
    lamina.load_checkpoint(
        model, write(tmp_path, {**tensors, "layer.compressed": eights}, config), convert="float"
    )
    assert_equal(model["layer"].weight.detach(), q.float().to(torch.float8_e4m3fn).float() * scale)


@pytest.mark.parametrize("bits", [4, 8])
def test_marlin_24(bits: int, tmp_path: Path) -> None:
    n, k, group = 64, 384, 128
    g, zero = generator(f"marlin {bits}"), 1 << (bits - 1)
    codes = torch.randint(0, 2 * zero, (n, k), generator=g).where(random_mask(n, k), zero).to(torch.uint8)
    sparse, scale = lamina.compress_sparse24(codes, fill=zero), torch.rand(n, k // group, generator=g).half()
    size = group if bits == 4 else None
    scale = scale if size else scale[:, :1].contiguous()
    tensors = {
        "weight_packed": sparse24_formats.marlin_codes(sparse.values.numpy(), bits),
        "scale_packed": sparse24_formats.marlin_scales(scale.T.contiguous().numpy(), size is not None),
        "meta": sparse24_formats.marlin_metadata(sparse.metadata.numpy(), k),
    }
    held = {f"layer.{name}": torch.from_numpy(np.ascontiguousarray(t)) for name, t in tensors.items()}
    weights = {
        "num_bits": bits,
        "symmetric": True,
        "strategy": "group" if size else "channel",
        "group_size": size,
    }
    config = compressed_tensors(weights, "marlin-24")
    for version, is_old in (("", True), ("0.7.1", True), ("0.8.0", False), ("0.12.2", False), ("1.0", False)):
        model, named = one_layer(n, k), {**config, **({"version": version} if version else {})}
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            lamina.load_checkpoint(model, write(tmp_path, held, named), activations="int8")
        assert ["before 0.8" in str(warning.message) for warning in seen] == [True] * (is_old and bits == 4)
    wide = scale.float().repeat_interleave(k // scale.shape[1], 1)
    assert_equal(model["layer"].dequantize_weight(), (codes.float() - zero) * wide)


@pytest.mark.parametrize("symmetric", [True, False])
def test_static_activations(symmetric: bool, tmp_path: Path) -> None:
    g = generator("static")
    q, scale = torch.randint(-128, 128, (N, K), generator=g, dtype=torch.int8), torch.rand(N, 1, generator=g)
    tensors = {"layer.weight": q, "layer.weight_scale": scale, "layer.input_scale": torch.tensor([0.03])}
    tensors["layer.bias"] = torch.randn(N, generator=g).half().float()
    if not symmetric:
        tensors["layer.input_zero_point"] = torch.tensor([-7], dtype=torch.int8)
    inputs = {"num_bits": 8, "type": "int", "dynamic": False, "symmetric": symmetric, "strategy": "tensor"}
    config = compressed_tensors(
        {"num_bits": 8, "strategy": "channel"}, "int-quantized", input_activations=inputs
    )
    model = one_layer(bias=True)
    lamina.load_checkpoint(model, write(tmp_path, tensors, config))
    x = torch.randn(5, K, generator=g)
    a = lamina.quantize_int8(
        x, scale=torch.tensor([0.03]), zero_point=tensors.get("layer.input_zero_point"), symmetric=symmetric
    )
    want = lamina.gemm_int8(
        a.q, lamina.pack_int8(q), a.scale, scale[:, 0].contiguous(), a_zero_point=a.zero_point,
        bias=tensors["layer.bias"],
    )  # fmt: skip
    assert_equal(model["layer"](x), want)
    again = nn.ModuleDict({"layer": Int8Linear(K, N)})
    again.load_state_dict(model.half().float().state_dict())
    assert_equal(again["layer"](x), want)
    saved = tmp_path / "saved"
    lamina.save_compressed(model, saved)
    again = lamina.load_compressed(one_layer(bias=True), saved)
    assert_equal(again["layer"](x), want)


@pytest.mark.parametrize("fmt", ["gptq", "gptq_v2"])
def test_gptq(fmt: str, tmp_path: Path) -> None:
    layer = checkpoint(N, K, 16)
    weight = layer["weight"].float()
    if fmt == "gptq_v2":
        zero = (layer["qzeros"][:, :, None] >> torch.arange(0, 32, 4)) & 15
        layer["qzeros"] = packed((zero.flatten(1).long() + 1) & 15)
    tensors = {f"layer.{name}": layer[name] for name in ("qweight", "qzeros", "scales", "g_idx")}
    config = {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": True, "checkpoint_format": fmt}
    model = one_layer(dtype=torch.float16)
    lamina.load_checkpoint(model, write(tmp_path, tensors, config))
    assert_equal(model["layer"].dequantize_weight(), weight)


@pytest.mark.parametrize("fmt", ["gptq", "gptq_v2"])
def test_gptq_of_8_bits_is_converted(fmt: str, tmp_path: Path) -> None:
    g = generator("gptq 8")
    q, zero = torch.randint(0, 256, (K, N), generator=g), torch.randint(1, 256, (5, N), generator=g)
    scales = (torch.rand(5, N, generator=g) * 0.02).half()
    stored = zero - 1 if fmt == "gptq" else zero
    tensors = {
        "layer.qweight": words(q.T, 8).T,
        "layer.qzeros": words(stored, 8),
        "layer.scales": scales,
        "layer.g_idx": torch.arange(K).int() // 16,
    }
    config = {"quant_method": "gptq", "bits": 8, "group_size": 16, "checkpoint_format": fmt}
    model = one_layer()
    lamina.load_checkpoint(model, write(tmp_path, tensors, config), convert="float")
    index = torch.arange(K) // 16
    assert_equal(model["layer"].weight.detach(), ((q - zero[index]).float() * scales.float()[index]).T)


def words(codes: Tensor, bits: int, order: tuple[int, ...] | None = None) -> Tensor:
    """[rows, columns] as int32, the first code in the low bits, or at the places `order` of each word."""
    count = 32 // bits
    out = np.zeros((codes.shape[0], codes.shape[1] // count), np.uint32)
    for row in range(codes.shape[0]):
        for column in range(codes.shape[1]):
            place = column % count if order is None else order[column % count]
            out[row, column // count] |= np.uint32(int(codes[row, column]) << (bits * place))
    return torch.from_numpy(out.view(np.int32))


@pytest.mark.parametrize("has_zero", [True, False])
def test_awq(has_zero: bool, tmp_path: Path) -> None:
    """AutoAWQ's gemm: column i of each eight is at the place where 0 2 4 6 1 3 5 7 has i."""
    g = generator("awq")
    q, zero = torch.randint(0, 16, (K, N), generator=g), torch.randint(0, 16, (5, N), generator=g)
    scales = (torch.rand(5, N, generator=g) * 0.02).half()
    order = tuple((0, 2, 4, 6, 1, 3, 5, 7).index(i) for i in range(8))
    tensors = {"layer.qweight": words(q, 4, order), "layer.scales": scales}
    if has_zero:
        tensors["layer.qzeros"] = words(zero, 4, order)
    config = {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm", "zero_point": has_zero}
    model = one_layer(dtype=torch.float16)
    lamina.load_checkpoint(model, write(tmp_path, tensors, config))
    index = torch.arange(K) // 16
    shift = zero[index] if has_zero else 8
    assert_equal(model["layer"].dequantize_weight(), ((q - shift).float() * scales.float()[index]).T)


class Tied(nn.Module):
    """A model with a tied head, a layer that is shared, and scales of a cache in the checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, K)
        self.inner = nn.Linear(K, N)
        self.same = self.inner
        self.head = nn.Linear(K, 7, bias=False)
        self.head.weight = self.embed.weight


def test_shards_ties_shared_layers_and_scales_of_the_cache(tmp_path: Path) -> None:
    folder, want = written("w4", tmp_path)
    with safe_open(folder / "model.safetensors", "pt") as file:
        layer = {name.replace("layer", "inner"): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    embed = torch.randn(7, K, generator=generator("embed"))
    rest = {"embed.weight": embed.half(), "inner.bias": torch.ones(N), "attn.k_scale": torch.tensor([0.5])}
    shards = {"a.safetensors": layer, "b.safetensors": {**rest, "x.rotary_emb.inv_freq": torch.ones(3)}}
    for name, shard in shards.items():
        save_file(shard, folder / name)
    places = {tensor: name for name, shard in shards.items() for tensor in shard}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    model = Tied().eval()
    report = lamina.load_checkpoint(model, folder)
    assert report.cache_scales == {"attn.k_scale": 0.5}
    assert "key-value cache: 1 scales" in str(report)
    assert model.same is model.inner
    assert not model.inner.training
    assert model.head.weight is model.embed.weight
    assert_equal(model.embed.weight.detach(), embed.half().float())
    assert hash_of(model.inner.dequantize_weight()) == want
