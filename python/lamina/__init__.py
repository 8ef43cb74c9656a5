"""lamina: the kernel layer of LLM inference. Importing it registers torch.ops.lamina.*."""

from __future__ import annotations

from lamina import _library

_library.load()

from lamina import ops  # noqa: E402  (the ops must be registered before their fakes)
from lamina.ops import QuantizedInt8, gemm_int8, quantize_int8  # noqa: E402
from lamina.pack import PackedInt8, pack_int8  # noqa: E402

__version__: str = _library.build_info()["version"]

__all__ = [
    "PackedInt8",
    "QuantizedInt8",
    "gemm_int8",
    "ops",
    "pack_int8",
    "quantize_int8",
]
