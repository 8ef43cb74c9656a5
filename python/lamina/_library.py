"""Loads lamina/_C and says how to fix what keeps it from loading."""

from __future__ import annotations

import importlib
import json
from functools import lru_cache
from typing import Any

import torch

MIN_TORCH = (2, 11)


def _torch_version() -> tuple[int, int]:
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)


def load(module: str = "_C") -> None:
    """Registers the ops of a compiled module: torch.ops.lamina.* of _C, which importing lamina loads."""
    if _torch_version() < MIN_TORCH:
        raise ImportError(
            f"lamina needs torch >= {MIN_TORCH[0]}.{MIN_TORCH[1]}, found {torch.__version__}; "
            f"upgrade with: pip install 'torch>={MIN_TORCH[0]}.{MIN_TORCH[1]}'"
        )
    try:
        importlib.import_module(f"lamina.{module}")
    except ModuleNotFoundError as error:
        how = "pip install --no-build-isolation . (in a checkout: make build)"
        how = how if module == "_C" else "make build, in a checkout; no wheel has this module for tests"
        raise ImportError(f"lamina/{module} is not built for this Python; build it with: {how}") from error
    except ImportError as error:
        raise ImportError(
            f"lamina/{module} does not load with torch {torch.__version__}: {error}; it was built for "
            "another platform or C++ ABI; rebuild it: pip install --no-build-isolation --force-reinstall ."
        ) from error


@lru_cache(maxsize=1)
def build_info() -> dict[str, Any]:
    """Version, compiler, instruction sets, CUDA architectures, layouts and limits of the loaded library."""
    info: dict[str, Any] = json.loads(torch.ops.lamina.build_info())
    return info
