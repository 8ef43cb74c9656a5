"""Finds float layers that live on after their replacement: their weights stay in memory a second time."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from functools import partial
from types import CoroutineType, FrameType, FunctionType, GeneratorType, MethodType
from weakref import ReferenceType

from torch import nn

from lamina.compression.reasons import PLAIN_ATTRIBUTES

# How deep containers inside an attribute of a module are searched.
DEPTH = 4
SHOWN = 5


def outliving_text(model: nn.Module, originals: Sequence[tuple[str, ReferenceType[nn.Module]]]) -> str | None:
    """What to warn of: the layers whose original something still holds, and what holds it; None if none.

    originals  name and a weak reference of each layer that was replaced
    A variable of the caller is no such holder.
    """
    if all(original() is None for _, original in originals):
        return None
    gc.collect()  # a layer in a cycle, such as one that holds its own method, is alive until now
    alive = {id(module): name for name, original in originals if (module := original()) is not None}
    holders = _holders_in(model, alive.keys())
    texts: list[str] = []
    for name, original in originals:
        holder = holders.get(id(original())) or _holder_elsewhere(original)
        if original() is not None and holder is not None:
            texts.append(f"{name!r} (held by {holder})")
    if not texts:
        return None
    more = f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return (
        f"lamina.compress: the float originals of these layers outlive their replacement: "
        f"{', '.join(texts[:SHOWN])}{more}; they stay in memory, and what calls them computes in float"
    )


def _holders_in(model: nn.Module, wanted: object) -> dict[int, str]:
    """By id of an original the attribute of a module inside the model that leads to it."""
    assert hasattr(wanted, "__contains__")
    found: dict[int, str] = {}
    for name, module in model.named_modules():
        for at, value in vars(module).items():
            if at not in PLAIN_ATTRIBUTES:
                for reached in _reached(value, DEPTH):
                    if id(reached) in wanted:
                        found.setdefault(id(reached), f"{name}.{at}" if name else at)
    return found


def _reached(value: object, depth: int) -> Iterator[object]:
    """The value, and what it holds if it is a container or something to call."""
    yield value
    if depth == 0:
        return
    held: Sequence[object] = ()
    if isinstance(value, list | tuple | set | frozenset):
        held = tuple(value)
    elif isinstance(value, dict):
        held = (*value.keys(), *value.values())
    elif isinstance(value, MethodType):
        held = (value.__self__,)
    elif isinstance(value, partial):
        held = (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, FunctionType):
        held = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
    for inner in held:
        yield from _reached(inner, depth - 1)


def _is_filled(cell: object) -> bool:
    try:
        cell.cell_contents  # type: ignore[attr-defined]  # noqa: B018
    except ValueError:
        return False
    return True


def _holder_elsewhere(original: ReferenceType[nn.Module]) -> str | None:
    """The kind of what holds an original outside of the model, or None for no more than variables."""
    for referrer in gc.get_referrers(original()):
        is_variable = isinstance(referrer, FrameType | GeneratorType | CoroutineType) or (
            isinstance(referrer, dict) and "__builtins__" in referrer
        )
        if not is_variable:
            return f"a {type(referrer).__name__} outside of the model"
    return None
