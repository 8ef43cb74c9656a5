"""Compressed models on disk: lamina.save_compressed and lamina.load_compressed."""

from __future__ import annotations

from lamina.checkpoint.load import load_compressed
from lamina.checkpoint.save import save_compressed

__all__ = ["load_compressed", "save_compressed"]
