"""What a packed layer has as its `.weight`: read-only, and dequantised only where its values are used."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

if TYPE_CHECKING:
    from lamina.nn.packed_linear import PackedLinear


class PackedWeight(Tensor):
    """The weight [n, k] of a packed layer as modules around it expect one that they do not own.

    dtype, device, shape and the like are answered without work. Every operation on it, torch.nn.functional.
    linear say, dequantises the weight anew and works on an ordinary tensor. Nothing can be written to it.
    """

    _layer: PackedLinear

    @staticmethod
    def __new__(cls, layer: PackedLinear, dtype: torch.dtype) -> PackedWeight:
        """Of no memory: `layer` holds the weight."""
        shape = (layer.out_features, layer.in_features)
        weight: PackedWeight = Tensor._make_wrapper_subclass(
            cls, shape, dtype=dtype, device=layer.weight_packed.device
        )
        weight._layer = layer
        return weight

    def dequantize(self) -> Tensor:
        """The values [n, k], in the dtype of this weight."""
        return self._layer.dequantize_weight().to(self.dtype)

    # Facts are answered by Tensor itself, operations go to __torch_dispatch__.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """func of the dequantised weight, or its refusal where func writes."""
        if func is torch.ops.aten.detach.default:  # .data too: what is written to it must not vanish
            return cls(args[0]._layer, args[0].dtype)
        kwargs = kwargs or {}
        for at, argument in enumerate(func._schema.arguments):  # type: ignore[attr-defined]
            given = args[at] if at < len(args) else kwargs.get(argument.name)
            if argument.is_write:
                for weight in tree_leaves(given):
                    if isinstance(weight, cls):
                        refuse_to_write(weight._layer)
        args, kwargs = tree_map(_values, (args, kwargs))
        return func(*args, **kwargs)

    def __setattr__(self, name: str, value: object) -> None:
        if name == "data" or (name == "requires_grad" and value):
            refuse_to_write(self._layer)
        super().__setattr__(name, value)

    def __setitem__(self, *_: object, **__: object) -> NoReturn:
        refuse_to_write(self._layer)

    # torch goes straight to the memory for these, and there is none.
    apply_ = map_ = map2_ = share_memory_ = __setitem__

    def requires_grad_(self, requires_grad: bool = True) -> PackedWeight:
        """Only to False, which it is: a packed weight has no gradient."""
        self.requires_grad = requires_grad
        return self

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"PackedWeight({list(self.shape)}, dtype={self.dtype}, device='{self.device}')"

    # What torch refuses for subclasses.

    def numpy(self, *, force: bool = False) -> Any:
        """The values as a NumPy array."""
        return self.dequantize().numpy(force=force)

    def tolist(self) -> list[list[float]]:
        """The values as nested lists."""
        values: list[list[float]] = self.dequantize().tolist()
        return values

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return self.dequantize()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.dequantize().__reduce_ex__(protocol)  # type: ignore[no-untyped-call]


def refuse_to_write(layer: PackedLinear) -> NoReturn:
    """Raises the AttributeError of a `.weight` that is written to."""
    raise AttributeError(
        f"the .weight of lamina.nn.{type(layer).__name__} is read-only; dequantize_weight() gives its values "
        "as an ordinary tensor, and skip of lamina.compress leaves a layer whose weight is to change"
    )


def _values(leaf: Any) -> Any:
    return leaf.dequantize() if isinstance(leaf, PackedWeight) else leaf
