"""4-bit layers as AutoGPTQ and GPTQModel save them."""

from __future__ import annotations

import torch
from torch import Tensor

from lamina.ops.gemm_int4 import GROUP_STEP
from lamina.quant import WEIGHT_DTYPES, QuantizedInt4, require_finite

CHECKPOINT_FORMATS = ("gptq", "gptq_v2")
CODES = 8  # of four bits in an int32, the first in the low bits
ONES = 0x11111111  # each of the eight codes is 1
OP = "Int4Linear.from_gptq"


def unpack_gptq(
    qweight: Tensor,
    qzeros: Tensor,
    scales: Tensor,
    g_idx: Tensor | None,
    checkpoint_format: str,
    qzeros_borrow: bool | None,
) -> QuantizedInt4:
    """The arguments of Int4Linear.from_gptq as a QuantizedInt4; symmetric if all zero points are 8."""
    if checkpoint_format not in CHECKPOINT_FORMATS:
        raise ValueError(f'{OP}: checkpoint_format = {checkpoint_format!r}; allowed: "gptq", "gptq_v2"')
    if not any(qzeros_borrow is allowed for allowed in (None, True, False)):  # 0 is equal to False
        raise ValueError(f"{OP}: qzeros_borrow = {qzeros_borrow!r}; allowed: None, True, False")
    k, n = _checked_extents(qweight, qzeros, scales, g_idx)
    require_finite(f"{OP}: scales", scales)
    q = _codes(qweight).transpose(1, 2).reshape(k, n).T.contiguous()
    is_less_one = checkpoint_format == "gptq"
    zeros = _zeros_less_one(qzeros, n, qzeros_borrow) if is_less_one else _columns(qzeros, n)
    zero_point = None if bool((zeros == 8).all()) else zeros.contiguous()
    return QuantizedInt4(q, scales, zero_point, max(k, 1), _groups_of(g_idx, k, scales))


def _checked_extents(
    qweight: Tensor, qzeros: Tensor, scales: Tensor, g_idx: Tensor | None
) -> tuple[int, int]:
    """k and n."""
    for name, tensor in (("qweight", qweight), ("qzeros", qzeros), ("scales", scales)):
        dtypes = WEIGHT_DTYPES if name == "scales" else (torch.int32,)
        if tensor.dtype not in dtypes or tensor.dim() != 2:
            allowed = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise ValueError(f"{OP}: {name} must be 2-D {allowed}, got {tensor.dtype} {list(tensor.shape)}")
    (k, n), groups = (qweight.shape[0] * CODES, qweight.shape[1]), scales.shape[0]
    for name, given, shape in (
        ("qzeros", qzeros, (groups, -(-n // CODES))),
        ("scales", scales, (groups, n)),
        ("g_idx", g_idx, (k,)),
    ):
        if given is not None and given.shape != shape:
            raise ValueError(
                f"{OP}: {name} must be {list(shape)}, got {list(given.shape)}; qweight is "
                f"{list(qweight.shape)}, so k = {k}, n = {n}"
            )
    return k, n


def _zeros_less_one(qzeros: Tensor, n: int, borrow: bool | None) -> Tensor:
    """The zero points [groups, n] of the format "gptq", which stores each of them minus one.

    A zero point of 0 is stored as 15. A writer that subtracts from the packed int32 (GPTQModel) borrows from
    the next code; a writer that subtracts before it packs does not.
    """
    stored = _columns(qzeros, n)
    if stored.numel() and bool((stored == 8).all()):
        raise ValueError(
            f'{OP}: qzeros are 8 throughout, which is how "gptq_v2" stores the zero point of symmetric '
            'weights ("gptq" stores 7); checkpoint_format = "gptq" would read 9'
        )
    alone = (stored + 1) & 15
    if borrow is False:
        return alone
    borrowed = _columns(qzeros.long() + ONES, n)  # _columns ignores a carry beyond 32 bits
    if borrow is None and not torch.equal(alone, borrowed):
        group, column = (alone != borrowed).nonzero()[0].tolist()
        first = column - column % CODES
        word = slice(first, min(first + CODES, n))
        raise ValueError(
            f"{OP}: qzeros[{group}, {first // CODES}], of group {group} and columns {first} to "
            f"{word.stop - 1}, holds a zero point of 0 that was stored as 15, and has two readings: "
            f"{borrowed[group, word].tolist()} if the writer borrowed from the next column (GPTQModel: "
            f"qzeros_borrow=True), {alone[group, word].tolist()} if it did not (AutoGPTQ, neural-compressor: "
            "qzeros_borrow=False)"
        )
    return borrowed


def _groups_of(g_idx: Tensor | None, k: int, scales: Tensor) -> Tensor:
    """The group [k] of each input feature; if g_idx is None or all 0, groups are consecutive features."""
    groups = scales.shape[0]
    if g_idx is not None and bool(g_idx.any()):
        return g_idx
    group = _plain_group(k, groups)
    if group is None:
        raise ValueError(
            f"{OP}: g_idx is {'None' if g_idx is None else '0 everywhere'}, so groups are consecutive, but "
            f"no multiple of {GROUP_STEP} divides k = {k} into the {groups} groups of scales; pass g_idx, "
            "or, for a slice along k inside one group, only the qzeros and scales of that group"
        )
    return torch.arange(k, device=scales.device, dtype=torch.int32) // group


def _plain_group(k: int, groups: int) -> int | None:
    """The group size: k / groups, or, if the last group is ragged, the power of two that gives `groups`."""
    if groups <= 1:
        return max(k, 1)
    if k % (groups * GROUP_STEP) == 0:
        return k // groups
    sizes = [GROUP_STEP << i for i in range(k.bit_length())]
    return next((size for size in sizes if -(-k // size) == groups), None)


def _columns(packed: Tensor, n: int) -> Tensor:
    """int32 | int64 [groups, n / 8] as uint8 [groups, n]."""
    return _codes(packed).flatten(1)[:, :n]


def _codes(packed: Tensor) -> Tensor:
    """The low 32 bits of an integer [...] as uint8 [..., 8]."""
    held = packed.int().contiguous().view(torch.uint8).view(*packed.shape, CODES // 2)
    codes = torch.empty(*packed.shape, CODES, dtype=torch.uint8, device=packed.device)
    torch.bitwise_and(held, 15, out=codes[..., ::2])
    torch.bitwise_right_shift(held, 4, out=codes[..., 1::2])
    return codes
