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
    """A packed layer to be: its places in the model, and by name of a buffer the tensor that goes there."""

    names: list[str]
    module: PackedLinear  # without values
    tensors: dict[str, str]
    device: torch.device


def load_compressed(
    model: Model, folder: str | os.PathLike[str], *, device: torch.device | str | None = None
) -> Model:
    """Fills a model with what lamina.save_compressed has written: packed layers, and all other tensors.

    model    the float model of the same architecture, on any device: its linear layers that the folder has
             packed are swapped, in place. On the meta device (`with torch.device("meta"): ...`) it costs no
             memory. Packed layers that lamina.compress has made of such a model are filled likewise
    folder   of save_compressed; needs safetensors
    device   where the tensors go; None: where those of the model are, the CPU for those on the meta device
    returns  model
    Raises   ValueError for a folder of another origin or a newer format, a damaged file, and a tensor that is
             missing, that the model does not have or whose shape or dtype differs, naming it; nothing is
             changed then. ImportError without safetensors (pip install 'lamina[save]')

    Every tensor of the model then comes from the folder, but for buffers that a state dict lacks
    (persistent=False), of which a model that is not on the meta device keeps its own. Tensors are read one at
    a time. What was tied when the model was saved is tied again, and nothing else.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"load_compressed: model must be a torch.nn.Module, got {type(model).__name__}")
    inner, source = bare(model), open_folder(Path(folder))
    target = None if device is None else torch.device(device)
    layers = _planned(inner, source, target)
    floats = [slot for slot in slots(inner) if slot.name.rpartition(".")[0] not in source.modules]
    _require_match(inner, floats, source)
    # Inside torch.inference_mode() the tensors would be such as load_state_dict cannot write to.
    with torch.inference_mode(False), torch.no_grad():
        for layer in layers:
            _fill(layer, source)
            set_everywhere(inner, layer.names, layer.module)
        while floats:  # a slot holds the tensor that was there before
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
        # One module of the model becomes one again if it was one when it was saved.
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
    """The layer of the model that a packed one replaces."""
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
            f"that of the model is {n} x {k}"
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
    """The layer without values: what config.json says of it and what its tensors say must agree."""
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
    _load_layer(module, name, state)
    found = describe(module)
    for key in [*found, *entry]:
        if found.get(key) != entry.get(key):
            raise ValueError(
                f"{where}: its tensors are of {key} {found.get(key)!r}, config.json says {entry.get(key)!r}"
            )
    return module


def _require_match(model: nn.Module, floats: list[Slot], source: Folder) -> None:
    """The tensors that are not packed: none too many, none too few, of equal shape and dtype."""
    problems = [*_differences(floats, source)]
    for name, module in model.named_modules():
        for at, value in vars(module).items():
            if isinstance(value, Tensor) and value.is_meta:
                full = f"{name}.{at}" if name else at
                problems.append(f"{full} of the model is on the meta device and no buffer, so it stays empty")
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise ValueError(
            f"load_compressed: the model and {source.path} differ: {'; '.join(problems[:SHOWN])}{more}"
        )


def _differences(floats: list[Slot], source: Folder) -> Iterator[str]:
    known = {slot.name for slot in floats}
    for name in sorted(source.names - known - source.transient):
        if name.rpartition(".")[0] not in source.modules:
            yield f"{name} is in the folder, the model lacks it"
    for slot in floats:
        if slot.name not in source.names:
            if slot.is_persistent or slot.tensor.is_meta:
                yield f"{slot.name} is in the model, the folder lacks it"
        elif _is_loaded(slot, source):
            stored = source.tensor(slot.name)
            is_exact = slot.is_persistent  # of another buffer the model computes the dtype, if at all
            if stored.shape != slot.tensor.shape or (is_exact and stored.dtype != slot.tensor.dtype):
                yield (
                    f"{slot.name} is {stored.dtype} {list(stored.shape)} in the folder and must be the same "
                    f"in the model, which has {slot.tensor.dtype} {list(slot.tensor.shape)}"
                )


def _is_loaded(slot: Slot, source: Folder) -> bool:
    return slot.name in source.names and (slot.is_persistent or slot.tensor.is_meta)


def _fill(layer: _Packed, source: Folder) -> None:
    state = {at: _copy(source.tensor(full), layer.device) for at, full in layer.tensors.items()}
    _load_layer(layer.module, layer.names[0], state)


def _load_layer(module: PackedLinear, name: str, state: dict[str, Tensor]) -> None:
    try:
        module.load_state_dict(state, assign=True)
    except RuntimeError as error:  # several lines, of which the first says nothing
        text = "; ".join(line.strip() for line in str(error).splitlines()[1:]) or str(error)
        raise ValueError(f"load_compressed: packed layer {name!r}: {text}") from error


def _tie(model: nn.Module, source: Folder) -> None:
    places = {slot.name: slot for slot in slots(model)}
    for name, owner in source.ties.items():
        if name in places and owner in places and _is_loaded(places[name], source):
            places[name].put(places[owner].tensor)


def _copy(mapped: Tensor, device: torch.device) -> Tensor:
    """The values in memory of their own, aligned as torch aligns it, however the file changes later."""
    return mapped.clone() if device.type == "cpu" else mapped.to(device)


def _place_of(tensor: Tensor) -> torch.device:
    return torch.device("cpu") if tensor.is_meta else tensor.device
