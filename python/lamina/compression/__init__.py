"""Compression of a whole model: what lamina.compress does, why it leaves a layer, and its report."""

from __future__ import annotations

from lamina.compression.api import compress
from lamina.compression.pruning import PrunedLayer, PruneReport, prune
from lamina.compression.report import CompressionReport, CompressionRow, KeptTensor
from lamina.compression.schemes import SCHEMES
from lamina.compression.sparse24_plan import PlannedLayer, Sparse24Plan, plan_sparse24

__all__ = [
    "SCHEMES",
    "CompressionReport",
    "CompressionRow",
    "KeptTensor",
    "PlannedLayer",
    "PruneReport",
    "PrunedLayer",
    "Sparse24Plan",
    "compress",
    "plan_sparse24",
    "prune",
]
