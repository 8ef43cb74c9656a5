"""lamina.load_compressed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from lamina.checkpoint.description import blank, describe
from lamina.checkpoint.folder import Folder, open_folder
from lamina.checkpoint.tensors import Slot, bare, slots
from lamina.compression.candidates import LINEAR_KINDS, is_linear
from lamina.compression.reasons import extra_attributes, not_plain
from lamina.compression.swap import leave_fused_paths, set_everywhere
from lamina.nn.packed_linear import PackedLinear

Model = TypeVar("Model", bound=nn.Module)
SHOWN = 5


class _Packed(NamedTuple):
    """A packed layer that is about to be loaded."""

    names: list[str]  # its places in the model
    module: PackedLinear  # without values
    tensors: dict[str, str]  # name of a buffer -> name of the tensor that fills the buffer
    device: torch.device


def load_compressed(
    model: Model, folder: str | os.PathLike[str], *, device: torch.device | str | None = None
) -> Model:
    """Loads the packed layers and all other tensors that lamina.save_compressed has written into a model.

    model    a float model of the same architecture, on any device. Linear layers that are packed in the
             folder are replaced in place. On the meta device (`with torch.device("meta"): ...`) the float
             model takes no memory. A model that lamina.compress has already packed is accepted too
    folder   written by save_compressed
    device   device of the loaded tensors. None: each goes to the device of the model's own tensor, or to the
             CPU if that one is on the meta device
    returns  model
    Raises   ValueError for a folder of another origin or format version, a damaged file, and a tensor that is
             missing, unknown to the model, or of another shape or dtype; the message names the tensor, and
             the model is unchanged. FileNotFoundError if folder is not a folder. ImportError without
             safetensors (pip install 'lamina[save]')

    Every tensor of the model is replaced by one from the folder, except buffers with persistent=False that
    are not on the meta device. Tensors are read one at a time. Tensors are tied after loading exactly where
    they were tied when the model was saved.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"load_compressed: model must be a torch.nn.Module, got {type(model).__name__}")
    inner, source = bare(model), open_folder(Path(folder))
    target = None if device is None else torch.device(device)
    layers = _planned(inner, source, target)
    floats = [slot for slot in slots(inner) if slot.name.rpartition(".")[0] not in source.modules]
    _require_match(inner, floats, source)
    # load_state_dict cannot write to tensors that are made inside torch.inference_mode().
    with torch.inference_mode(False), torch.no_grad():
        weights: dict[object, PackedLinear] = {}  # by the weight's tensors in the folder, and its device
        for layer in layers:
            _fill(layer, source, weights)
            set_everywhere(inner, layer.names, layer.module)
        while floats:  # pop each slot, which keeps the old tensor alive
            slot = floats.pop()
            if _is_loaded(slot, source) and slot.name not in source.ties:
                slot.put(_copy(source.tensor(slot.name), target or _place_of(slot.tensor)))
        _tie(inner, source)
    leave_fused_paths(inner)
    return model


def _planned(model: nn.Module, source: Folder, device: torch.device | None) -> list[_Packed]:
    """The packed layers, checked against the model and against the tensors."""
    tensors: dict[str, dict[str, str]] = {name: {} for name in source.modules}
    for full in source.names:
        name, _, attribute = full.rpartition(".")
        if name in tensors:
            tensors[name][attribute] = full
    layers: dict[object, _Packed] = {}
    for name, entry in source.modules.items():
        own = tensors[name]
        old = _replaceable(model, name, entry)
        # Names share one packed layer if they share it in the model and shared it when the model was saved.
        key = old, frozenset(source.ties.get(full, full) for full in own.values())
        if key in layers:
            layers[key].names.append(name)
            continue
        place = device or _place_of(next(t for t in (*old.parameters(), *old.buffers()) if t is not None))
        layers[key] = _Packed([name], _checked_blank(name, entry, own, source), own, place)
        layers[key].module.train(old.training)
        for at, value in extra_attributes(old).items():
            if not hasattr(layers[key].module, at):
                setattr(layers[key].module, at, value)
    return list(layers.values())


def _replaceable(model: nn.Module, name: str, entry: object) -> nn.Module:
    """The layer of the model that the packed layer `name` replaces. Raises ValueError if it does not fit."""
    where = f"load_compressed: the folder holds a packed layer {name!r}"
    try:
        old = model.get_submodule(name)
    except AttributeError:
        raise ValueError(f"{where}, which the model lacks") from None
    if not name or not (is_linear(old) or isinstance(old, PackedLinear)):
        raise ValueError(f"{where}; in the model it must be {LINEAR_KINDS}, got {type(old).__name__}")
    if not isinstance(old, PackedLinear) and (problem := not_plain(old)):
        raise ValueError(f"{where}; of that in the model: {problem}")
    if not isinstance(entry, dict):
        raise ValueError(f"{where}, whose entry in config.json must be an object, got {entry!r}")
    n, k = _extents(old)
    if (n, k) != (entry.get("out_features"), entry.get("in_features")):
        raise ValueError(
            f"{where} of {entry.get('out_features')} x {entry.get('in_features')} features (out x in); "
            f"the layer of the model is {n} x {k}"
        )
    if (old.bias is None) != (entry.get("bias") is None):
        has, lacks = ("the folder", "the model") if old.bias is None else ("the model", "the folder")
        raise ValueError(f"{where}; it has a bias in {has} and none in {lacks}")
    return old


def _extents(module: nn.Module) -> tuple[int, int]:
    if isinstance(module, nn.Linear | PackedLinear):
        return module.out_features, module.in_features
    k, n = module.get_parameter("weight").shape
    return n, k


def _checked_blank(name: str, entry: dict[str, object], own: dict[str, str], source: Folder) -> PackedLinear:
    """The packed layer without values. Raises ValueError if its config.json entry contradicts its tensors."""
    where = f"load_compressed: packed layer {name!r}"
    try:
        module = blank(entry)
        is_header = {at: at == "weight_format" for at in own}
        state = {
            at: source.tensor(full) if is_header[at] else source.tensor(full).to("meta")
            for at, full in own.items()
        }
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from error
    load_layer(module, name, state)
    found = describe(module)
    for key in [*found, *entry]:
        if found.get(key) != entry.get(key):
            raise ValueError(
                f"{where}: {key} is {found.get(key)!r} in its tensors and {entry.get(key)!r} in config.json"
            )
    return module


def _require_match(model: nn.Module, floats: list[Slot], source: Folder) -> None:
    """Raises a ValueError unless model and folder have the same float tensors, of equal shape and dtype."""
    problems = [*_differences(floats, source)]
    for name, module in model.named_modules():
        for at, value in vars(module).items():
            if isinstance(value, Tensor) and value.is_meta:
                full = f"{name}.{at}" if name else at
                problems.append(f"{full} of the model is a plain attribute on meta and stays empty")
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise ValueError(
            f"load_compressed: the model and {source.path} differ: {'; '.join(problems[:SHOWN])}{more}"
        )


def _differences(floats: list[Slot], source: Folder) -> Iterator[str]:
    known = {slot.name for slot in floats}
    for name in sorted(source.names - known - source.transient):
        if name.rpartition(".")[0] not in source.modules:
            yield f"{name} is in the folder but not in the model"
    for slot in floats:
        if slot.name not in source.names:
            if slot.is_persistent or slot.tensor.is_meta:
                yield f"{slot.name} is in the model but not in the folder"
        elif _is_loaded(slot, source):
            stored = source.tensor(slot.name)
            is_exact = slot.is_persistent  # the model may have cast its other buffers, by .half() say
            if stored.shape != slot.tensor.shape or (is_exact and stored.dtype != slot.tensor.dtype):
                yield (
                    f"{slot.name} is {stored.dtype} {list(stored.shape)} in the folder and must be the same "
                    f"in the model, which has {slot.tensor.dtype} {list(slot.tensor.shape)}"
                )


def _is_loaded(slot: Slot, source: Folder) -> bool:
    return slot.name in source.names and (slot.is_persistent or slot.tensor.is_meta)


def _fill(layer: _Packed, source: Folder, weights: dict[object, PackedLinear]) -> None:
    """Loads the buffers of a packed layer. Tied layers share their weight, which is repacked at most once."""
    module, stored = layer.module, {at: source.ties.get(full, full) for at, full in layer.tensors.items()}
    key = (layer.device, *(stored.get(name) for name in module.weight_buffers))
    state = {}
    for at, name in stored.items():
        is_loaded = key in weights and at in module.weight_buffers
        state[at] = getattr(weights[key], at) if is_loaded else _copy(source.tensor(name), layer.device)
    load_layer(module, layer.names[0], state)
    weights.setdefault(key, module)


def load_layer(module: PackedLinear, name: str, state: dict[str, Tensor]) -> None:
    """Gives a packed layer its tensors. Raises a ValueError that names the layer if they do not fit."""
    try:
        module.load_state_dict(state, assign=True)
    except RuntimeError as error:  # the first line of its message only names the class
        text = "; ".join(line.strip() for line in str(error).splitlines()[1:]) or str(error)
        raise ValueError(f"load_compressed: packed layer {name!r}: {text}") from error


def _tie(model: nn.Module, source: Folder) -> None:
    places = {slot.name: slot for slot in slots(model)}
    for name, owner in source.ties.items():
        if name in places and owner in places and _is_loaded(places[name], source):
            places[name].put(places[owner].tensor)


def _copy(mapped: Tensor, device: torch.device) -> Tensor:
    """A copy outside the mapped file: aligned by torch, and safe from later changes of the file."""
    return mapped.clone() if device.type == "cpu" else mapped.to(device)


def _place_of(tensor: Tensor) -> torch.device:
    return torch.device("cpu") if tensor.is_meta else tensor.device
