"""Tensor parallelism: packed linear layers of a model on several processes of torch.distributed."""

from __future__ import annotations

import torch.distributed

if not torch.distributed.is_available():
    raise ImportError("lamina.parallel needs torch.distributed, which this build of torch lacks")

from lamina.parallel.layers import ColumnParallel, RowParallel, cuts
from lamina.parallel.model import tensor_parallel

__all__ = ["ColumnParallel", "RowParallel", "cuts", "tensor_parallel"]
