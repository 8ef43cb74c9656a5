"""4-bit layers as AutoGPTQ and GPTQModel save them."""

from __future__ import annotations

import torch
from torch import Tensor

from lamina._int4 import WEIGHT_DTYPES, QuantizedInt4

CHECKPOINT_FORMATS = ("gptq", "gptq_v2")
CODES = 8  # of four bits in an int32, the first in the low bits


def unpack_gptq(
    qweight: Tensor, qzeros: Tensor, scales: Tensor, g_idx: Tensor, checkpoint_format: str
) -> QuantizedInt4:
    """What Int4Linear.from_gptq describes, as lamina.quant has it; symmetric where all zero points are 8."""
    if checkpoint_format not in CHECKPOINT_FORMATS:
        raise ValueError(
            f'Int4Linear.from_gptq: checkpoint_format = {checkpoint_format!r}; allowed: "gptq", "gptq_v2"'
        )
    for name, tensor in (("qweight", qweight), ("qzeros", qzeros), ("scales", scales)):
        dtypes = WEIGHT_DTYPES if name == "scales" else (torch.int32,)
        if tensor.dtype not in dtypes or tensor.dim() != 2:
            allowed = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise ValueError(
                f"Int4Linear.from_gptq: {name} must be 2-D {allowed}, got {tensor.dtype} {list(tensor.shape)}"
            )
    (k, n), groups = (qweight.shape[0] * CODES, qweight.shape[1]), scales.shape[0]
    for name, tensor, shape in (
        ("qzeros", qzeros, (groups, -(-n // CODES))),
        ("scales", scales, (groups, n)),
        ("g_idx", g_idx, (k,)),
    ):
        if tensor.shape != shape:
            raise ValueError(
                f"Int4Linear.from_gptq: {name} must be {list(shape)}, got {list(tensor.shape)}; qweight is "
                f"{list(qweight.shape)}, so k = {k}, n = {n}"
            )
    q = _codes(qweight).transpose(1, 2).reshape(k, n).T.contiguous()
    zeros = _codes(qzeros).reshape(groups, -1)[:, :n] + (checkpoint_format == "gptq")
    zero_point = None if bool((zeros == 8).all()) else zeros.contiguous()
    return QuantizedInt4(q, scales, zero_point, max(k, 1), g_idx)


def _codes(packed: Tensor) -> Tensor:
    """int32 [...] as uint8 [..., 8]."""
    shifts = torch.arange(0, 4 * CODES, 4, device=packed.device, dtype=torch.int32)
    return ((packed[..., None] >> shifts) & 15).to(torch.uint8)
