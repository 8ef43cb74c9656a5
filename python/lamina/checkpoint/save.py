"""lamina.save_compressed."""

from __future__ import annotations

import json
import os
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lamina import _library
from lamina.checkpoint.description import describe
from lamina.checkpoint.folder import (
    CONFIG,
    FORMAT_VERSION,
    INDEX,
    METHOD,
    WEIGHTS,
    guard,
    import_safetensors,
    quantization_of,
    read_json,
    weight_files,
)
from lamina.checkpoint.tensors import Slot, bare, slots
from lamina.compression.memory import Key, is_wrapper, region, storage_key
from lamina.nn.packed_linear import PackedLinear

Shard = dict[str, Tensor]


def save_compressed(
    model: nn.Module, folder: str | os.PathLike[str], *, max_shard_bytes: int = 5_000_000_000
) -> None:
    """Writes a model that lamina.compress has packed to a folder, for lamina.load_compressed.

    model    a model with packed layers (lamina.nn), on any device; of a compiled model the model inside
    folder   is created if it does not exist, and gets the files of docs/checkpoint.md: one or several
             safetensors files, and config.json. An earlier save is replaced; the weights of another model
             are not
    max_shard_bytes  the most bytes of tensors in one file; a file with a single tensor may be larger. Saving
             a model that is not on the CPU needs this much host memory
    Raises   ValueError for a model without packed layers, a tensor on the meta device or of a kind that
             safetensors cannot hold (the message names the tensor), and a folder with the weights of another
             model. ImportError without safetensors (pip install 'lamina[save]')

    A tensor that the model has under several names, or as several equal views of one memory, is stored once,
    and loading ties it again. Buffers with persistent=False are stored too, because a model that was made on
    the meta device has no values for them.
    """
    import_safetensors("save_compressed")
    if not isinstance(model, nn.Module):
        raise TypeError(f"save_compressed: model must be a torch.nn.Module, got {type(model).__name__}")
    if max_shard_bytes < 1:
        raise ValueError(f"save_compressed: max_shard_bytes = {max_shard_bytes}; must be at least 1")
    model, path = bare(model), Path(folder)
    packed = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, PackedLinear)
    }
    if not packed:
        raise ValueError("save_compressed: the model has no packed layer; call lamina.compress first")
    if (old := weight_files(path)) and (quantization_of(path) or {}).get("quant_method") != METHOD:
        raise ValueError(
            f"save_compressed: {path} holds {old[0].name} of another model; choose another folder"
        )
    stored, ties = _stored_once(model)
    stored |= {guard(name): torch.empty(0, dtype=torch.float32, device="cpu") for name in packed}
    config = _model_config(model, path)
    config["quantization_config"] = {
        "quant_method": METHOD,
        "format_version": FORMAT_VERSION,
        "lamina_version": _library.build_info()["version"],
        "modules": {name: describe(module) for name, module in packed.items()},
        "ties": ties,
        "transient_buffers": [slot.name for slot in slots(model) if not slot.is_persistent],
    }
    path.mkdir(parents=True, exist_ok=True)
    _write(path, list(_shards(stored, max_shard_bytes)), config)


def _stored_once(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors to store by name, and for each other name of such a tensor the name that is stored."""
    first: dict[Hashable, Slot] = {}
    ties: dict[str, str] = {}
    for slot in slots(model):
        if slot.tensor.is_meta:
            raise ValueError(f"save_compressed: {slot.name} is on the meta device; load the model first")
        if is_wrapper(slot.tensor):
            kind = type(slot.tensor).__name__
            raise ValueError(f"save_compressed: {slot.name} is a {kind}; it must be a dense tensor")
        owner = first.setdefault((region(slot.tensor), slot.is_parameter, slot.is_persistent), slot)
        if owner is not slot:
            ties[slot.name] = owner.name
    for module in model.modules():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise ValueError(
                f"save_compressed: {type(module).__name__} has extra state, which safetensors cannot hold"
            )
    return {slot.name: slot.tensor for slot in first.values()}, ties


def _shards(stored: Shard, most: int) -> Iterator[Shard]:
    shard: Shard = {}
    held = 0
    for name, tensor in stored.items():
        if shard and held + tensor.nbytes > most:
            yield shard
            shard, held = {}, 0
        shard[name] = tensor
        held += tensor.nbytes
    yield shard


def _model_config(model: nn.Module, folder: Path) -> dict[str, Any]:
    """The model's own config, or else the config.json that is in the folder."""
    own: Any = getattr(model, "config", None)
    if hasattr(own, "to_dict"):
        config: dict[str, Any] = json.loads(json.dumps(own.to_dict(), default=str))
        config["architectures"] = config.get("architectures") or [type(model).__name__]
        if "dtype" in config:  # which .to(dtype) leaves as it was
            dtypes = (parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
            config["dtype"] = next((str(dtype).removeprefix("torch.") for dtype in dtypes), config["dtype"])
        return config
    return read_json(folder / CONFIG) if (folder / CONFIG).exists() else {}


def _write(folder: Path, shards: list[Shard], config: dict[str, Any]) -> None:
    """Writes all files beside the old ones, and replaces the old ones when all files are complete."""
    names = [WEIGHTS]
    texts = {CONFIG: config}
    if len(shards) > 1:
        names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
        places = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        total = {"total_size": sum(tensor.nbytes for shard in shards for tensor in shard.values())}
        texts = {INDEX: {"metadata": total, "weight_map": places}, CONFIG: config}
    files = [folder / name for name in (*names, *texts)]  # config.json comes last
    try:
        for name, shard in zip(names, shards, strict=True):
            _write_shard(_beside(folder / name), shard)
        for name, content in texts.items():
            _beside(folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        for old in weight_files(folder):
            old.unlink()
        for file in files:
            _beside(file).replace(file)
    finally:
        for file in files:
            _beside(file).unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def _write_shard(path: Path, shard: Shard) -> None:
    from safetensors.torch import save_file

    seen: set[Key] = set()
    tensors: Shard = {}
    for name, held in shard.items():
        tensor = held.detach().cpu().contiguous()
        if storage_key(tensor) in seen:  # safetensors refuses tensors that share a storage
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        seen.add(storage_key(tensor))
        tensors[name] = tensor
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except (ValueError, KeyError, RuntimeError) as error:
        raise ValueError(f"save_compressed: {path.name}: {error}") from error
