"""Quantisation of weights. No module has the name of a public function: it would hide the function."""

from __future__ import annotations

from lamina.quant.checks import WEIGHT_DTYPES, require_finite
from lamina.quant.feature_order import ActOrder, act_order
from lamina.quant.gptq_rounding import gptq, hessian
from lamina.quant.int4 import QuantizedInt4, quantize_weight_int4
from lamina.quant.int8 import quantize_weight_int8

__all__ = [
    "WEIGHT_DTYPES",
    "ActOrder",
    "QuantizedInt4",
    "act_order",
    "gptq",
    "hessian",
    "quantize_weight_int4",
    "quantize_weight_int8",
    "require_finite",
]
