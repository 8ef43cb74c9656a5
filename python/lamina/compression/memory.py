"""The memory behind tensors: which of them share bytes, and how many distinct bytes there are."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

Key = Hashable


def has_storage(tensor: Tensor) -> bool:
    """Whether the elements of a tensor lie in its storage: it is dense, not empty, and not of a subclass."""
    return type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided and tensor.numel() > 0


def is_wrapper(tensor: Tensor) -> bool:
    """Whether a tensor is sparse or consists of other tensors, as a DTensor does."""
    return tensor.layout is not torch.strided or is_traceable_wrapper_subclass(tensor)


def storage_key(tensor: Tensor) -> Key:
    """A key that is equal for tensors of one storage, whatever Python objects hold the storage.

    Two storages that begin at the same address have the same key. A tensor without a storage of its own
    (sparse, or a wrapper of other tensors) or without bytes has a key that no other tensor has.
    """
    if not has_storage(tensor):
        return "tensor", id(tensor)
    storage = tensor.untyped_storage()
    address = 0 if tensor.is_meta else storage.data_ptr()
    return str(tensor.device), address or storage._cdata


def region(tensor: Tensor) -> Hashable:
    """A key that is equal for tensors that view the same elements of one storage in the same way."""
    if not has_storage(tensor):
        return storage_key(tensor)
    return (
        storage_key(tensor), tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype
    )  # fmt: skip


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes of the elements: of the values for a sparse tensor, 0 for a lazy parameter without shape."""
    if is_lazy(tensor):
        return 0
    if tensor.is_sparse:
        tensor = tensor._values()
    return tensor.numel() * tensor.element_size()


class ByteSet:
    """The distinct bytes of tensors. The tensors must outlive the set, because addresses are reused."""

    def __init__(self, tensors: Iterable[Tensor] = ()) -> None:
        self._spans: dict[Key, Tensor] = {}
        self.total = sum(self.add(tensor) for tensor in tensors)

    def add(self, tensor: Tensor) -> int:
        """Adds the bytes of a tensor; returns how many of them were new."""
        key = storage_key(tensor)
        known = self._spans.get(key)
        self._spans[key] = self._with(known, tensor)
        if not has_storage(tensor):
            return tensor_bytes(tensor) if known is None else 0
        return _length(self._spans[key]) - (0 if known is None else _length(known))

    def touches(self, tensor: Tensor) -> bool:
        """Whether the set contains any byte of a tensor."""
        known = self._spans.get(storage_key(tensor))
        if known is None or not has_storage(tensor):
            return known is not None and tensor_bytes(tensor) > 0
        return _length(self._with(known, tensor)) < _length(known) + _length(self._with(None, tensor))

    @staticmethod
    def _with(known: Tensor | None, tensor: Tensor) -> Tensor:
        if not has_storage(tensor):
            return torch.empty(0, 2, dtype=torch.int64, device="cpu")
        spans = _spans(tensor)
        return _merged(spans if known is None else torch.cat([known, spans]))


def shared_bytes(a: Tensor, b: Tensor) -> int:
    """How many bytes two tensors have in common."""
    if storage_key(a) != storage_key(b):
        return 0
    if not has_storage(a):
        return tensor_bytes(a)  # equal keys: a and b are the same object
    (first, last), (begin, end) = _extent(a), _extent(b)
    if first >= end or begin >= last:
        return 0
    return ByteSet([a]).total + ByteSet([b]).total - ByteSet([a, b]).total


def _extent(tensor: Tensor) -> tuple[int, int]:
    """Offsets in the storage of the first byte and of the byte after the last one."""
    first = tensor.storage_offset()
    steps = zip(tensor.stride(), tensor.shape, strict=True)
    last = first + sum(stride * (extent - 1) for stride, extent in steps)
    return int(first) * tensor.element_size(), int(last + 1) * tensor.element_size()


def _spans(tensor: Tensor) -> Tensor:
    """int64 [count, 2]: begin and end, in bytes of the storage, of each contiguous span."""
    size = tensor.element_size()
    begins = torch.tensor([tensor.storage_offset() * size], device="cpu")
    run = size
    for stride, extent in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if stride * size <= run:  # no gap between steps; includes stride 0
            run += (extent - 1) * stride * size
        else:
            steps = torch.arange(extent, device="cpu") * (stride * size)
            begins = (begins[:, None] + steps).flatten()
    return torch.stack([begins, begins + run], 1)


def _merged(spans: Tensor) -> Tensor:
    """The same bytes as sorted spans that neither touch nor overlap."""
    if len(spans) == 1:
        return spans
    begins, order = spans[:, 0].sort()
    reach = spans[order, 1].cummax(0).values
    gap = begins[1:] > reach[:-1]
    edge = torch.ones(1, dtype=torch.bool, device="cpu")
    return torch.stack([begins[torch.cat([edge, gap])], reach[torch.cat([gap, edge])]], 1)


def _length(spans: Tensor) -> int:
    return int((spans[:, 1] - spans[:, 0]).sum())
