"""lamina: the kernel layer of LLM inference. Importing it registers torch.ops.lamina.*."""

from __future__ import annotations

from lamina import _library

_library.load()

from lamina import kv, nn, ops, quant, speculate  # noqa: E402  (the ops must be registered before their fakes)
from lamina.checkpoint import CheckpointReport, load_checkpoint, load_compressed, save_compressed  # noqa: E402
from lamina.compression import (  # noqa: E402
    CompressionReport,
    PruneReport,
    Sparse24Plan,
    compress,
    plan_sparse24,
    prune,
)
from lamina.distillation import DistillReport, distill  # noqa: E402
from lamina.distillation_loss import distill_loss  # noqa: E402
from lamina.ops import *  # noqa: E402, F403

__version__: str = _library.build_info()["version"]

__all__ = [
    "CheckpointReport",
    "CompressionReport",
    "DistillReport",
    "PruneReport",
    "Sparse24Plan",
    "compress",
    "distill",
    "distill_loss",
    "kv",
    "load_checkpoint",
    "load_compressed",
    "nn",
    "ops",
    "plan_sparse24",
    "prune",
    "quant",
    "save_compressed",
    "speculate",
]
__all__ += ops.__all__
