"""Finds float layers that stay alive after their replacement, so that their weights still use memory."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from functools import partial
from types import CellType, CoroutineType, FrameType, FunctionType, GeneratorType, MethodType
from weakref import ReferenceType

from torch import nn

from lamina.compression.reasons import PLAIN_ATTRIBUTES

# The types of objects that hold local variables of running functions.
VARIABLES = (CellType, CoroutineType, FrameType, GeneratorType)
# Nesting depth to which containers in a module's attributes are searched.
DEPTH = 4
SHOWN = 5


def outliving_text(model: nn.Module, originals: Sequence[tuple[str, ReferenceType[nn.Module]]]) -> str | None:
    """The warning that names the layers whose float original is still held, and the holders; None if none.

    originals  name and a weak reference of each layer that was replaced
    Local and global variables do not count as holders.
    """
    if any(original() is not None for _, original in originals):
        gc.collect()  # frees originals that only a reference cycle holds
    names: list[str] = []
    alive: list[nn.Module] = []  # _holders_elsewhere ignores this list
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
        f"{', '.join(texts[:SHOWN])}{more}; they stay in memory, and calls to them compute in float"
    )


def _holders_in(model: nn.Module, originals: Sequence[nn.Module]) -> dict[int, str]:
    """id of an original -> the attribute of a module inside the model that leads to the original."""
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
    """The value, and the objects inside it if it is a container, a method, a partial or a function."""
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
    """id of an original -> the type of an object outside of the model that holds it, variables excepted."""
    wanted = {id(module) for module in originals}
    found: dict[int, str] = {}
    for referrer in gc.get_referrers(*originals):  # one call for all: each call scans every object
        is_globals = isinstance(referrer, dict) and "__builtins__" in referrer
        if referrer is originals or is_globals or isinstance(referrer, VARIABLES):
            continue
        for held in gc.get_referents(referrer):
            if id(held) in wanted:
                found.setdefault(id(held), f"a {type(referrer).__name__} outside of the model")
    return found
