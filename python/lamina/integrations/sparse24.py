"""2:4 weights that torch and compressed-tensors have compressed, as lamina.Sparse24."""

from __future__ import annotations

from lamina.checkpoint.formats.sparse24 import (
    Marlin24,
    from_bitmask,
    from_cusparselt,
    from_marlin24,
    from_torch,
)

__all__ = ["Marlin24", "from_bitmask", "from_cusparselt", "from_marlin24", "from_torch"]
