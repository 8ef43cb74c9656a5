"""A linear layer as a file stores it: the tensors that belong to it, and its weight for lamina's modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from lamina.quant import WEIGHT_DTYPES, QuantizedInt4

FLOATS = (*WEIGHT_DTYPES,)
Get = Callable[[str], Tensor]  # the tensor of the layer with this last part of its name


class Int8Weight(NamedTuple):
    """w[j, p] = q[j, p] * scale[j]."""

    q: Tensor  # [n, k] int8
    scale: Tensor  # [n] f32


class Activations(NamedTuple):
    """How the activations of a layer are quantised."""

    dtype: str  # "float", or "int8"
    symmetric: bool = True
    scale: Tensor | None = None  # [1] f32 for a scale that is known beforehand, None: one a token
    zero_point: Tensor | None = None  # [1] int8, beside scale


FLOAT = Activations("float")
INT8 = Activations("int8")


class Layer(NamedTuple):
    """A layer as the file has it.

    A Tensor as weight holds the values [n, k] of a weight for which lamina has no product, and `stored` says
    what the file holds.
    """

    weight: QuantizedInt4 | Int8Weight | Tensor
    activations: Activations = FLOAT
    stored: str = ""


class Spec(NamedTuple):
    """A tensor must have one of these dtypes and one of these shapes."""

    dtypes: tuple[torch.dtype, ...]
    shapes: tuple[tuple[int, ...], ...]
    is_needed: bool = True

    def problem(self, tensor: Tensor) -> str | None:
        """Why the tensor does not fit, or None."""
        if tensor.dtype in self.dtypes and tuple(tensor.shape) in self.shapes:
            return None
        dtypes = " or ".join(str(dtype).removeprefix("torch.") for dtype in self.dtypes)
        shapes = " or ".join(str(list(shape)) for shape in self.shapes)
        got = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
        return f"is {got}; allowed: {dtypes} {shapes}"


class Format(Protocol):
    """The layers of one checkpoint. k and n are those of the model's layer."""

    def is_packed(self, name: str, own: frozenset[str]) -> bool:
        """Whether the tensors `own` of the layer `name` hold a quantised or compressed weight."""

    def specs(self, name: str, n: int, k: int, own: frozenset[str]) -> Mapping[str, Spec]:
        """The tensors that the layer must and may have beside its bias.

        Raises   ValueError for a layer that cannot be read
        """

    def read(self, name: str, n: int, k: int, get: Get, own: frozenset[str]) -> Layer:
        """The layer, whose tensors fit the specs."""


def groups_of(k: int, group: int) -> int:
    """The number of groups of consecutive input features; -1 is one group."""
    return 1 if group == -1 else -(-k // group)


def dequantized(q: Tensor, scale: Tensor, zero_point: Tensor | None, group: int) -> Tensor:
    """(q - zero_point) * scale in f32 for q [n, k] and scales and zero points [n, groups]."""
    k = q.shape[1]
    index = torch.arange(k, device=q.device) // (max(k, 1) if group == -1 else group)
    wide = q.float()
    if zero_point is not None:
        wide -= zero_point.float()[:, index]
    return wide * scale.float()[:, index]
