"""Tensor parallelism: packed linear layers of a model on several processes of torch.distributed.

Importing it also tells DTensor how gemm_int8, gemm_int4, gemm_int4_int8 and quantize_int8 may be sharded.
"""

from __future__ import annotations

import torch.distributed

if not torch.distributed.is_available():
    raise ImportError("lamina.parallel needs torch.distributed, which this build of torch lacks")

from lamina.parallel import dtensor
from lamina.parallel.layers import ColumnParallel, RowParallel, cuts
from lamina.parallel.model import tensor_parallel

dtensor.register()

__all__ = ["ColumnParallel", "RowParallel", "cuts", "tensor_parallel"]
