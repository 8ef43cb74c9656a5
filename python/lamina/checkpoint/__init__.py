"""Models on disk: lamina.save_compressed, load_compressed, and load_checkpoint for other quantisers."""

from __future__ import annotations

from lamina.checkpoint.foreign import CheckpointReport, load_checkpoint
from lamina.checkpoint.load import load_compressed
from lamina.checkpoint.save import save_compressed

__all__ = ["CheckpointReport", "load_checkpoint", "load_compressed", "save_compressed"]
