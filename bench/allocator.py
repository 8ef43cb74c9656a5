"""Keeps freed memory in the process, so that a fresh result does not fault its pages in every call.

glibc returns large blocks to the kernel and gets them back zeroed, page by page: 4 MiB for a result of
256 x 4096 f32. onnxruntime's arena and its bound outputs do not pay that; with this, neither do torch's
results, lamina's among them.
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_MOST = 32 << 20  # the largest mmap threshold that glibc accepts
_NEVER = 1 << 30


def keep_freed_memory() -> None:
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, _MOST)
            mallopt(_M_TRIM_THRESHOLD, _NEVER)
