"""2:4 weights in the reference order, which files, importers and packers of kernels speak."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lamina._checks import call, require_2d, require_one_device, require_optional_tensors, require_tensors
from lamina._library import build_info
from lamina.ops.registration import Arguments, fake

FORMAT = "sparse24"
_ORDER: dict[str, int] = build_info()["layouts"][FORMAT]
GROUP_K, KEPT = _ORDER["group_k"], _ORDER["kept"]
_CHUNK = 1 << 24  # elements that is_sparse24 looks at together


@dataclass(frozen=True, eq=False)
class Sparse24:
    """A weight [n, k] that keeps two of every four entries along k, in the order `sparse24` v1.

    docs/layouts.md describes the order.

    values    [n, k/2], dtype of the weight: the kept entries, in the order of k
    metadata  [n, ceil(k/8)] uint8: for each group of four a code of 4 bits, the first in the low half:
              i0 | i1 << 2, where i0 < i1 are the kept entries
    """

    values: Tensor
    metadata: Tensor
    n: int
    k: int

    FORMAT: ClassVar = FORMAT
    VERSION: ClassVar = _ORDER["version"]

    @property
    def nbytes(self) -> int:
        """Bytes of the values and the metadata."""
        return self.values.nbytes + self.metadata.nbytes

    @property
    def device(self) -> torch.device:
        """The device that holds the weight."""
        return self.values.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weight."""
        return self.values.dtype

    def decompress(self, fill: float = 0) -> Tensor:
        """The weight [n, k] on the same device; entries that are not kept are `fill`. The CPU decompresses.

        Metadata that did not come from compress_sparse24 is checked: a ValueError names the row and the group
        of a code that does not keep two different entries in rising order.
        """
        values, metadata = (t.cpu() if t.is_cuda else t for t in (self.values, self.metadata))
        w: Tensor = call(torch.ops.lamina.decompress_sparse24, values, metadata, self.k, fill)
        return w.to(self.device)

    def to(self, device: torch.device | str | int) -> Sparse24:
        """The same weight, byte for byte, on another device."""
        return Sparse24(self.values.to(device), self.metadata.to(device), self.n, self.k)

    def cuda(self, device: torch.device | str | int | None = None) -> Sparse24:
        """The same weight on a CUDA device, the current one by default."""
        return self.to("cuda" if device is None else device)

    def cpu(self) -> Sparse24:
        """The same weight on the CPU."""
        return self.to("cpu")


def compress_sparse24(w: Tensor, mask: Tensor | None = None, fill: float = 0) -> Sparse24:
    """Compresses a weight that has at most two nonzeros in every group of four along k. Nothing is lost.

    w        [n, k]  f32 | f16 | bf16 | int8 | uint8, k a multiple of 4, any row stride
    mask     [n, k]  bool: the entries to keep, whatever their value. Without it, the entries that differ from
             `fill` are kept: -0.0 is 0, NaN and Inf are kept
    fill     the value of entries that are not kept; for codes of weights the code of 0, such as 8. A group
             that keeps fewer than two entries is completed with it
    returns  Sparse24 on the device of w; decompress(fill) gives w again, with 0.0 for -0.0
    Raises   ValueError naming argument, value and allowed values; a group that would keep more than two is
             named by its row and its place

    The CPU compresses a weight of a CUDA device and moves the result back: the call waits for the GPU and
    costs a copy each way, once per weight.
    """
    require_tensors("compress_sparse24", w=w)
    require_optional_tensors("compress_sparse24", mask=mask)
    w_cpu, mask_cpu = (t.cpu() if t is not None and t.is_cuda else t for t in (w, mask))
    values, metadata = call(torch.ops.lamina.compress_sparse24, w_cpu, mask_cpu, fill)
    return Sparse24(values, metadata, w.shape[0], w.shape[1]).to(w.device)


def is_sparse24(w: Tensor) -> bool:
    """Whether at most two of every four entries of a weight [n, k] are nonzero, as compress_sparse24 needs.

    Reads the weight where it is, in pieces; on a CUDA device the call waits for the GPU.
    """
    require_tensors("is_sparse24", w=w)
    require_2d("is_sparse24", "w", w, "[n, k]")
    if w.is_meta:
        raise ValueError("lamina::is_sparse24: w must have values, got a tensor of the meta device")
    n, k = w.shape
    if k % GROUP_K != 0:
        return False
    rows = max(1, _CHUNK // max(1, k))
    return all(bool(_has_few(w[at : at + rows])) for at in range(0, n, rows))


def _has_few(w: Tensor) -> Tensor:
    nonzeros = w.ne(0).reshape(-1, GROUP_K).sum(1, dtype=torch.uint8)
    return nonzeros.le(KEPT).all()


def _metadata_bytes(k: int) -> int:
    return -(-k // (2 * GROUP_K))


@fake("compress_sparse24")
def _fake_compress_sparse24(given: Arguments) -> tuple[Tensor, Tensor]:
    require_2d("compress_sparse24", "w", given.w, "[n, k]")
    require_one_device("compress_sparse24", vars(given))
    n, k = given.w.shape
    values = given.w.new_empty((n, k // GROUP_K * KEPT))
    return values, given.w.new_empty((n, _metadata_bytes(k)), dtype=torch.uint8)


@fake("decompress_sparse24")
def _fake_decompress_sparse24(given: Arguments) -> Tensor:
    require_one_device("decompress_sparse24", vars(given))
    w: Tensor = given.values.new_empty((given.values.shape[0], given.k))
    return w


@fake("import_sparse24_metadata")
def _fake_import_sparse24_metadata(given: Arguments) -> Tensor:
    metadata: Tensor = given.metadata.new_empty((given.n, _metadata_bytes(given.k)), dtype=torch.uint8)
    return metadata


@fake("import_marlin24")
def _fake_import_marlin24(given: Arguments) -> Tensor:
    require_2d("import_marlin24", "weight_packed", given.weight_packed, "[k / 32, n * bits / 2]")
    kept, words = given.weight_packed.shape
    codes: Tensor = given.weight_packed.new_empty((words * 2 // given.bits, kept * 16), dtype=torch.uint8)
    return codes
