"""2:4 weights that torch and compressed-tensors have compressed, as lamina.Sparse24.

Metadata is checked: a group that does not keep two different entries in rising order is named by its row. The
CPU imports the weights of a CUDA device and moves the results back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lamina._checks import call, require_int, require_optional_int, require_tensors
from lamina.ops.compress_sparse24 import Sparse24

_KINDS = ("SparseSemiStructuredTensorCUTLASS", "SparseSemiStructuredTensorCUSPARSELT")
_CUTLASS = {torch.float16: "cutlass_16", torch.bfloat16: "cutlass_16", torch.int8: "cutlass_8"}
_CUTLASS[torch.float32] = "cutlass_pairs"
# Words of a row of `meta`: an int16 for 16 entries of k, an int32 for 32, an int16 for 8 entries of pairs.
_K_OF_WORD = {"cutlass_16": 16, "cutlass_8": 32, "cutlass_pairs": 8}
_VALUES = (torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.uint8)
_GROUP = 128  # the only group of marlin-24 beside all of k


def from_torch(w: Tensor) -> Sparse24:
    """The weight that torch.sparse.to_sparse_semi_structured has made, on the same device.

    w  [n, k]  SparseSemiStructuredTensorCUTLASS of f32, f16, bf16 or int8, or
       SparseSemiStructuredTensorCUSPARSELT of f16 or bf16 with n and k multiples of 128. No other order of
       cuSPARSELt is described: the ValueError says to compress w.to_dense() instead. The permuted metadata
       of torch._sparse_semi_structured_tile (prune_dense_static_sort) is refused
    """
    kind = type(w).__name__
    if kind in _KINDS and len(w.shape) != 2:
        raise ValueError(f"lamina::from_torch: w must be 2-D [n, k], got {len(w.shape)}-D {list(w.shape)}")
    if kind == _KINDS[0]:
        if w.dtype not in _CUTLASS:
            raise ValueError(
                f"lamina::from_torch: w must be float32, float16, bfloat16 or int8, got {w.dtype}"
            )
        values, meta, (n, k), order = _part(w, "packed"), _part(w, "meta"), w.shape, _CUTLASS[w.dtype]
        _require("from_torch", "w.packed", values, (w.dtype,), (n, k // 2))
        words = (n, k // _K_OF_WORD[order])
        _require("from_torch", "w.meta", meta, (torch.int32 if order == "cutlass_8" else torch.int16,), words)
        return Sparse24(values, _import_metadata("from_torch", "w.meta", meta, order, n, k), n, k)
    if kind == _KINDS[1]:
        return from_cusparselt(_part(w, "packed"), *w.shape)
    raise ValueError(f"lamina::from_torch: w must be a {' or a '.join(_KINDS)}, got {kind}")


def from_cusparselt(packed: Tensor, n: int, k: int) -> Sparse24:
    """The weight [n, k] in the order of cuSPARSELt, as torch's SparseSemiStructuredTile.cu describes it.

    No GPU has checked this order yet.

    packed  f16 | bf16, n * k * 9/16 elements: the kept entries, then metadata. n and k are multiples of 128
    """
    require_tensors("from_cusparselt", packed=packed)
    _require_sizes("from_cusparselt", n, k)
    is_described = packed.dtype in (torch.float16, torch.bfloat16) and n % 128 == 0 and k % 128 == 0
    has_rows = packed.dim() > 1
    if not is_described or packed.numel() != n * k // 16 * 9 or (has_rows and packed.shape[0] != n):
        raise ValueError(
            f"lamina::from_cusparselt: packed of {packed.dtype}, {packed.numel()} elements "
            f"{list(packed.shape)}, [n, k] = [{n}, {k}]; cuSPARSELt's order is described only for float16 "
            "and bfloat16 with n and k multiples of 128 and n * k * 9 / 16 elements; call "
            "compress_sparse24(w.to_dense()) where the weight was made"
        )
    _require("from_cusparselt", "packed", packed, (packed.dtype,), packed.shape)
    flat = packed.flatten()
    values, metadata = flat[: n * k // 2], flat[n * k // 2 :]
    words = metadata.view(torch.int16)
    imported = _import_metadata("from_cusparselt", "packed", words, "cusparselt_16", n, k)
    return Sparse24(values.view(n, k // 2), imported, n, k)


def from_bitmask(compressed: Tensor, bitmask: Tensor, n: int, k: int) -> Sparse24:
    """The weight [n, k] in compressed-tensors' format sparse-24-bitmask.

    compressed  [n, k/2]  f32 | f16 | bf16 | int8 | uint8: the kept entries in the order of k
    bitmask     [n, ceil(k/8)]  uint8: a bit an entry, lowest first, 1 where it is kept: two of every four
    """
    require_tensors("from_bitmask", compressed=compressed, bitmask=bitmask)
    _require_sizes("from_bitmask", n, k)
    _require("from_bitmask", "compressed", compressed, _VALUES, (n, k // 2))
    _require("from_bitmask", "bitmask", bitmask, (torch.uint8,), (n, -(-k // 8)))
    return Sparse24(compressed, _import_metadata("from_bitmask", "bitmask", bitmask, "bitmask", n, k), n, k)


@dataclass(frozen=True, eq=False)
class Marlin24:
    """A symmetric int4 or int8 2:4 weight from compressed-tensors' format marlin-24.

    weight  Sparse24 of the codes: int4 as uint8 0..15, where 8 is 0; int8 as int8
    scale   [ceil(k/group), n] f16, as gemm_int4 takes it
    group   128, or k where one scale a channel is for all of k
    """

    weight: Sparse24
    scale: Tensor
    group: int


def from_marlin24(
    weight_packed: Tensor, scale_packed: Tensor, meta: Tensor, bits: int, group: int | None = None
) -> Marlin24:
    """The weight in compressed-tensors' format marlin-24: 2:4, 4 or 8 bits, symmetric.

    weight_packed  [k/32, n * bits/2] int32, n a multiple of 64
    scale_packed   [k/group, n] f16
    meta           [k/32, 2n] int16
    group          128; None: one scale a channel

    compressed-tensors before 0.8 wrote the scales of groups in another order, and nothing in the tensors says
    so. The scales of such a file come out wrong here, as they did in vLLM.
    """
    require_tensors("from_marlin24", weight_packed=weight_packed, scale_packed=scale_packed, meta=meta)
    require_int("from_marlin24", "bits", bits)
    require_optional_int("from_marlin24", "group", group)
    if group not in (None, _GROUP):
        raise ValueError(f"lamina::from_marlin24: group = {group}; allowed: None, {_GROUP}")
    _require("from_marlin24", "weight_packed", weight_packed, (torch.int32,), weight_packed.shape)
    try:
        codes = call(torch.ops.lamina.import_marlin24, weight_packed.cpu().contiguous(), bits)
    except ValueError as error:
        raise ValueError(str(error).replace("import_marlin24", "from_marlin24")) from None
    codes = codes.to(weight_packed.device)
    n, k = codes.shape[0], codes.shape[1] * 2
    size = k if group is None else group
    groups = -(-k // size) if k else 0
    _require("from_marlin24", "scale_packed", scale_packed, (torch.float16,), (groups, n))
    _require("from_marlin24", "meta", meta, (torch.int16,), (k // 32, 2 * n))
    if bits == 8:
        codes = (codes ^ 128).view(torch.int8)
    # compressed-tensors compares the group with the kept half of k: scales of short weights keep their order.
    scale = scale_packed if size >= k // 2 else scale_packed.reshape(groups, -1, 4, 2).transpose(2, 3)
    weight = Sparse24(codes, _import_metadata("from_marlin24", "meta", meta, "marlin", n, k), n, k)
    return Marlin24(weight, scale.reshape(groups, n).contiguous(), size)


def _require_sizes(op: str, n: int, k: int) -> None:
    for name, size in (("n", n), ("k", k)):
        require_int(op, name, size)
        if size < 0:
            raise ValueError(f"lamina::{op}: {name} = {size}; must be at least 0")


def _require(op: str, name: str, tensor: Tensor, dtypes: Sequence[torch.dtype], shape: Sequence[int]) -> None:
    """The tensor must be dense, with values, of one of the dtypes and of the shape."""
    require_tensors(op, **{name: tensor})
    if tensor.layout is not torch.strided or tensor.is_meta:
        got = "a tensor of the meta device" if tensor.is_meta else tensor.layout
        raise ValueError(f"lamina::{op}: {name} must be a dense tensor with values, got {got}")
    if tensor.dtype not in dtypes:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(f"lamina::{op}: {name} must be of {allowed}, got {tensor.dtype}")
    if tensor.shape != tuple(shape):
        raise ValueError(f"lamina::{op}: {name} must be {list(shape)}, got {list(tensor.shape)}")


def _import_metadata(op: str, name: str, metadata: Tensor, order: str, n: int, k: int) -> Tensor:
    try:
        imported: Tensor = call(
            torch.ops.lamina.import_sparse24_metadata, metadata.cpu().contiguous(), order, n, k
        )
    except ValueError as error:  # it names the op that the caller knows
        text = str(error).replace("import_sparse24_metadata", op).replace("metadata", name)
        raise ValueError(text) from None
    return imported.to(metadata.device)


def _part(w: Tensor, name: str) -> Tensor:
    part = getattr(w, name)
    if part is None:
        raise ValueError(f"lamina::from_torch: w.{name} is None: the tensor holds only its transpose")
    tensor: Tensor = part
    return tensor
