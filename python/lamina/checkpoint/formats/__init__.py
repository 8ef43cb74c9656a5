"""The formats of other quantisers: how each stores the weight of a linear layer."""

from __future__ import annotations
