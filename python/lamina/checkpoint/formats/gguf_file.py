"""The file format GGUF, version 2 and 3: the fields, and the tensors as bytes that are mapped into memory."""

from __future__ import annotations

import mmap
import struct
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Types of tensors by their number: name, elements and bytes of a block.
TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 30: ("BF16", 1, 2),
}  # fmt: skip
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
VERSIONS = (2, 3)


class Stored(NamedTuple):
    """A tensor of the file."""

    kind: str  # a name of TYPES
    shape: tuple[int, ...]  # of its elements; the last dimension is contiguous
    blocks: Tensor  # uint8 [..., bytes of a row], mapped into memory


class GgufFile(NamedTuple):
    """An open file. An array among the fields is a list."""

    fields: dict[str, Any]
    tensors: dict[str, Stored]


def read_gguf(path: Path) -> GgufFile:
    """Opens a file. Raises ValueError if it is damaged, or holds what lamina does not know."""
    with path.open("rb") as file:
        if path.stat().st_size < 24:
            raise ValueError("it has fewer than 24 bytes")
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # torch takes no read-only memory
    cursor = _Cursor(memory)
    if memory[:4] != b"GGUF" or (version := cursor.skip(4).scalar("I")) not in VERSIONS:
        raise ValueError("it does not begin with GGUF and version 2 or 3")
    try:
        tensors, fields = cursor.scalar("Q"), cursor.scalar("Q")
        found = {cursor.string(): cursor.value(cursor.scalar("I")) for _ in range(fields)}
        infos = [cursor.tensor() for _ in range(tensors)]
        step = int(found.get("general.alignment", 32))
        start = -(-cursor.at // step) * step
        return GgufFile(found, {info[0]: _stored(memory, start, *info) for info in infos})
    except (struct.error, UnicodeDecodeError, OverflowError, ZeroDivisionError) as error:
        raise ValueError(f"version {version}, cut off or damaged at byte {cursor.at}: {error}") from error


def _stored(
    memory: mmap.mmap, start: int, name: str, kind: int, shape: tuple[int, ...], offset: int
) -> Stored:
    if kind not in TYPES:
        raise ValueError(
            f"tensor {name!r} has type {kind}; allowed: {', '.join(t[0] for t in TYPES.values())}"
        )
    label, elements, size = TYPES[kind]
    row = shape[-1] if shape else 1
    rows = prod(shape[:-1])
    count = row // elements * size * rows
    if row % elements != 0 or start + offset + count > len(memory):
        raise ValueError(
            f"tensor {name!r} of {label} {list(shape)} is longer than the file, or has broken rows"
        )
    if count == 0:
        return Stored(label, shape, torch.empty((*shape[:-1], 0), dtype=torch.uint8))
    held = torch.frombuffer(memory, dtype=torch.uint8, count=count, offset=start + offset)
    return Stored(label, shape, held.view(*shape[:-1], row // elements * size))


class _Cursor:
    """Reads the head of the file, value by value."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self.at = 0

    def skip(self, count: int) -> _Cursor:
        if count < 0 or self.at + count > len(self._memory):
            raise struct.error(f"{count} bytes are expected")
        self.at += count
        return self

    def scalar(self, code: str) -> Any:
        size = struct.calcsize("<" + code)
        self.skip(size)
        return struct.unpack_from("<" + code, self._memory, self.at - size)[0]

    def string(self, errors: str = "strict") -> str:
        length = self.scalar("Q")
        self.skip(length)
        return self._memory[self.at - length : self.at].decode(errors=errors)

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind in SCALARS:
            return self.scalar(SCALARS[kind])
        if kind != ARRAY:
            raise struct.error(f"a field of type {kind}")
        of, length = self.scalar("I"), self.scalar("Q")
        if of == STRING:  # the tokens of a vocabulary need not be UTF-8
            return [self.string("surrogateescape") for _ in range(length)]
        if of not in SCALARS:
            return [self.value(of) for _ in range(length)]
        size = length * struct.calcsize("<" + SCALARS[of])
        self.skip(size)
        return list(struct.unpack_from(f"<{length}{SCALARS[of]}", self._memory, self.at - size))

    def tensor(self) -> tuple[str, int, tuple[int, ...], int]:
        """Name, type, shape with the contiguous dimension last, and the offset of its bytes."""
        name, dimensions = self.string(), self.scalar("I")
        shape = tuple(self.scalar("Q") for _ in range(dimensions))[::-1]
        return name, self.scalar("I"), shape, self.scalar("Q")
