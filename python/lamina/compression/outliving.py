"""Finds float layers that live on after their replacement: their weights stay in memory a second time."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from functools import partial
from types import CellType, CoroutineType, FrameType, FunctionType, GeneratorType, MethodType
from weakref import ReferenceType

from torch import nn

from lamina.compression.reasons import PLAIN_ATTRIBUTES

# What holds the variables of functions that run.
VARIABLES = (CellType, CoroutineType, FrameType, GeneratorType)
# How deep containers inside an attribute of a module are searched.
DEPTH = 4
SHOWN = 5


def outliving_text(model: nn.Module, originals: Sequence[tuple[str, ReferenceType[nn.Module]]]) -> str | None:
    """What to warn of: the layers whose original something still holds, and what holds it; None if none.

    originals  name and a weak reference of each layer that was replaced
    A variable of the caller is no such holder.
    """
    if any(original() is not None for _, original in originals):
        gc.collect()  # what is in a cycle is alive until now
    names: list[str] = []
    alive: list[nn.Module] = []  # the one container here that holds them
    for name, original in originals:
        module = original()
        if module is not None:
            names.append(name)
            alive.append(module)
    if not alive:
        return None
    holders = {**_holders_elsewhere(alive), **_holders_in(model, alive)}
    texts = [
        f"{name!r} (held by {holders[id(module)]})"
        for name, module in zip(names, alive, strict=True)
        if id(module) in holders
    ]
    if not texts:
        return None
    more = f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return (
        f"lamina.compress: the float originals of these layers outlive their replacement: "
        f"{', '.join(texts[:SHOWN])}{more}; they stay in memory, and what calls them computes in float"
    )


def _holders_in(model: nn.Module, originals: Sequence[nn.Module]) -> dict[int, str]:
    """By id of an original the attribute of a module inside the model that leads to it."""
    wanted = {id(module) for module in originals}
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


def _holders_elsewhere(originals: list[nn.Module]) -> dict[int, str]:
    """By id of an original the kind of what holds it outside of the model, variables apart."""
    wanted = {id(module) for module in originals}
    found: dict[int, str] = {}
    for referrer in gc.get_referrers(*originals):  # goes through all objects that there are, so once for all
        is_globals = isinstance(referrer, dict) and "__builtins__" in referrer
        if referrer is originals or is_globals or isinstance(referrer, VARIABLES):
            continue
        for held in gc.get_referents(referrer):
            if id(held) in wanted:
                found.setdefault(id(held), f"a {type(referrer).__name__} outside of the model")
    return found
