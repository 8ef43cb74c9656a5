"""Layers that share memory with each other or with tensors that stay float, found by their bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from lamina.compression.candidates import Candidate
from lamina.compression.memory import ByteSet, Key, shared_bytes, storage_key, tensor_bytes


class Named(NamedTuple):
    """A tensor and its name in the model."""

    name: str
    tensor: Tensor


def leave_ties(
    model: nn.Module,
    candidates: list[Candidate],
    reasons: dict[str, str],
    untied: frozenset[str] = frozenset(),
) -> None:
    """Adds a reason for each layer whose weight shares bytes with a tensor that stays float.

    untied  layers that are packed all the same
    Packing such a layer would add a packed weight and free nothing. A layer left for this reason may share
    bytes with further layers, so the search repeats until it finds no new layer.
    """
    found = True
    while found:
        kept = _staying(model, candidates, reasons)
        held: dict[Key, ByteSet] = {}
        found = False
        for candidate in candidates:
            if candidate.name in reasons or candidate.name in untied:
                continue
            weight = candidate.linear.weight
            key = storage_key(weight)
            if key not in kept:
                continue
            if key not in held:
                held[key] = ByteSet(tensor for _, tensor in kept[key])
            if held[key].touches(weight):
                reasons[candidate.name] = _tie_reason(weight, kept[key])
                found = True


def forget_ties(model: nn.Module, names: Iterable[str]) -> None:
    """Tells transformers that these layers no longer have the weight of the embedding."""
    config: Any = getattr(model, "config", None)
    parts = [config, config.get_text_config()] if hasattr(config, "get_text_config") else [config]
    for part in parts:
        if getattr(part, "tie_word_embeddings", False):
            part.tie_word_embeddings = False
    declared: Any = getattr(model, "all_tied_weights_keys", None)
    for name in names:
        if isinstance(declared, dict):
            declared.pop(f"{name}.weight", None)


def tie_notes(
    model: nn.Module,
    candidates: list[Candidate],
    reasons: Mapping[str, str],
    untied: frozenset[str] = frozenset(),
) -> Iterator[tuple[str, str]]:
    """Yields (layer, note) for packed layers whose weight shares a storage."""
    kept = _staying(model, candidates, reasons)
    packed: dict[Key, list[Named]] = {}
    held = ByteSet()
    for candidate in candidates:
        if candidate.name in reasons:
            continue
        weight = candidate.linear.weight
        key = storage_key(weight)
        if candidate.weight_owner != candidate.name:
            yield candidate.name, f"tied with {candidate.weight_owner}"
        elif held.touches(weight):
            other = next(name for name, tensor in packed[key] if shared_bytes(weight, tensor))
            yield candidate.name, f"its weight overlaps that of {other}; each is packed by itself"
        if key in kept and candidate.name in untied:
            yield candidate.name, f"untied from {kept[key][0].name}, which stays float"
        elif key in kept:
            yield (
                candidate.name,
                f"its float memory is not freed: {kept[key][0].name} is a view of the same storage",
            )
        packed.setdefault(key, []).append(Named(candidate.name, weight))
        held.add(weight)


def _tie_reason(weight: Tensor, kept: list[Named]) -> str:
    name, tensor = next(named for named in kept if shared_bytes(weight, named.tensor))
    is_all = shared_bytes(weight, tensor) == tensor_bytes(weight) == tensor_bytes(tensor)
    return f"its weight {'is also' if is_all else 'shares memory with'} {name}, which stays float"


def _staying(
    model: nn.Module, candidates: list[Candidate], reasons: Mapping[str, str]
) -> dict[Key, list[Named]]:
    """Storage -> tensors in it of modules that are not packed: parameters, buffers and plain attributes."""
    packed = {candidate.module for candidate in candidates if candidate.name not in reasons}
    kept: dict[Key, list[Named]] = {}
    for name, module in model.named_modules():
        if module not in packed:
            attributes = ((at, value) for at, value in vars(module).items() if isinstance(value, Tensor))
            for at, tensor in (*module._parameters.items(), *module._buffers.items(), *attributes):
                if tensor is not None:
                    named = Named(f"{name}.{at}" if name else at, tensor)
                    kept.setdefault(storage_key(tensor), []).append(named)
    return kept
