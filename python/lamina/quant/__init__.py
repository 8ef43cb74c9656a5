"""Quantisation of weights. No module has the name of a public function: it would hide the function."""

from __future__ import annotations

from lamina.quant.checks import WEIGHT_DTYPES, require_finite
from lamina.quant.feature_order import ActOrder, act_order
from lamina.quant.gptq_rounding import gptq
from lamina.quant.hessians import hessian
from lamina.quant.int4 import QuantizedInt4, quantize_weight_int4
from lamina.quant.int8 import quantize_weight_int8
from lamina.quant.sparse24 import (
    PrunedInt4,
    PrunedInt8,
    PrunedWeight,
    prune_sparse24,
    prune_sparse24_int4,
    prune_sparse24_int8,
)
from lamina.quant.sparse24_order import feature_order_sparse24

__all__ = [
    "WEIGHT_DTYPES",
    "ActOrder",
    "PrunedInt4",
    "PrunedInt8",
    "PrunedWeight",
    "QuantizedInt4",
    "act_order",
    "feature_order_sparse24",
    "gptq",
    "hessian",
    "prune_sparse24",
    "prune_sparse24_int4",
    "prune_sparse24_int8",
    "quantize_weight_int4",
    "quantize_weight_int8",
    "require_finite",
]
