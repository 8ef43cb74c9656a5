"""Memory that shows stray reads: operands that end before an unreadable page, and rows gigabytes apart."""

from __future__ import annotations

import ctypes
import functools
import itertools
import math
import mmap
from collections.abc import Iterator

import pytest
import torch

FAR = 2**31 + 64  # elements between rows: more than any int32 holds
MANY, APART = 67, 2**27 + 16  # rows and their stride: only their product exceeds int32
LARGEST = 2**20  # bytes that fenced() copies
SLOTS = 32  # more operands than a call has
MAP_NORESERVE = 0x4000
PROT_NONE = 0
LIBC = ctypes.CDLL(None, use_errno=True)


def extent(t: torch.Tensor) -> int:
    """The number of elements from the first of t to the last, with the elements between rows."""
    return 1 + sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))


def alignment(t: torch.Tensor) -> int:
    """The largest alignment, at most 16 bytes, that all rows of t can have; 16 for one row and for packed
    tiles."""
    rows = [
        stride * t.element_size()
        for size, stride in zip(t.shape[:-1], t.stride()[:-1], strict=True)
        if size > 1
    ]
    return math.gcd(16, *rows) if t.dim() > 1 else t.element_size()


@functools.cache
def _rooms(size: int) -> Iterator[torch.Tensor]:
    """Rooms of `size` bytes in front of an unreadable page: SLOTS different rooms, again and again."""

    def make() -> torch.Tensor:
        memory = mmap.mmap(-1, size + mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        room = torch.frombuffer(memory, dtype=torch.uint8, count=size)
        fence = ctypes.c_void_p(room.data_ptr() + size)
        if LIBC.mprotect(fence, ctypes.c_size_t(mmap.PAGESIZE), PROT_NONE) != 0:
            raise OSError(ctypes.get_errno(), "mprotect")
        return room

    return itertools.cycle(make() for _ in range(SLOTS))


def fenced(t: torch.Tensor) -> torch.Tensor:
    """A copy of t, with its strides and the elements between its rows, in front of an unreadable page.

    A read past its end kills the process. The copy has the alignment of t, because kernels choose their
    copies by the alignment of rows, so up to alignment(t) - 1 bytes may lie between its end and the page. The
    copy lasts for one call: after SLOTS more copies its memory is reused.
    """
    size = t.numel() and extent(t) * t.element_size()
    if not 0 < size <= LARGEST:
        return t
    step = alignment(t)
    room = next(_rooms(max(mmap.PAGESIZE, 1 << (size + step - 1).bit_length())))
    start = len(room) - size
    start -= (start - t.data_ptr()) % step
    copy = room[start : start + size].view(t.dtype).as_strided(t.shape, t.stride())
    flat = t.as_strided((extent(t),), (1,))
    copy.as_strided(flat.shape, (1,)).copy_(flat)
    return copy


def far_apart(values: torch.Tensor, stride: int = FAR, columns: int = 0) -> torch.Tensor:
    """The same [rows, any] with rows `stride` elements apart; few of the pages take memory.

    columns: the least number of columns. Columns past the values are zeros.
    """
    rows, columns = len(values), max(columns, values.shape[1])
    size = ((rows - 1) * stride + columns) * values.element_size()
    try:
        sparse = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    except OSError as error:
        pytest.skip(f"{size >> 30} GiB of address space: {error}")
    view = torch.frombuffer(sparse, dtype=values.dtype).as_strided((rows, columns), (stride, 1))
    view[:, : values.shape[1]] = values
    return view


def in_aligned_rows(a: torch.Tensor) -> torch.Tensor:
    """The same values in rows that start at multiples of 16 bytes; a copy has other values between its
    rows."""
    m, k = a.shape
    if (a.data_ptr() | a.stride(0)) % 16 == 0 and a.stride(0) >= k:
        return a
    rows = torch.full((m, (k + 16) // 16 * 16), 91, dtype=a.dtype)
    rows[:, :k] = a
    return rows[:, :k]


def keep_strides_on_cuda(x: torch.Tensor) -> torch.Tensor:
    """x on the GPU with the strides and the offset of x; .cuda() may make a tensor contiguous."""
    whole = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage())
    return whole.cuda().as_strided(x.shape, x.stride(), x.storage_offset())
