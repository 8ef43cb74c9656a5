"""The `.weight` of a packed layer: a read-only tensor that is dequantised only where its values are used."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

if TYPE_CHECKING:
    from lamina.nn.packed_linear import PackedLinear


class PackedWeight(Tensor):
    """The weight [n, k] of a packed layer, for modules around the layer that read it.

    Asking for its dtype, device or shape dequantises nothing. Every operation on it, such as F.linear,
    dequantises the weight anew and works on an ordinary tensor. Writing to it raises an AttributeError.
    """

    _layer: PackedLinear

    @staticmethod
    def __new__(cls, layer: PackedLinear, dtype: torch.dtype) -> PackedWeight:
        """A tensor without memory of its own: `layer` holds the packed weight."""
        shape = (layer.out_features, layer.in_features)
        weight: PackedWeight = Tensor._make_wrapper_subclass(
            cls, shape, dtype=dtype, device=layer.weight_packed.device
        )
        weight._layer = layer
        return weight

    def dequantize(self) -> Tensor:
        """The values [n, k], in the dtype of this weight."""
        return self._layer.dequantize_weight().to(self.dtype)

    # Tensor itself answers for dtype, device and shape; operations go to __torch_dispatch__.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """func on the dequantised weight. Raises an AttributeError if func writes to the packed weight."""
        if func is torch.ops.aten.detach.default:  # also .data: a write to a dequantised copy would be lost
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
        """Accepts only False: a packed weight has no gradient."""
        self.requires_grad = requires_grad
        return self

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"PackedWeight({list(self.shape)}, dtype={self.dtype}, device='{self.device}')"

    # torch refuses these methods for tensor subclasses without memory.

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
    """Raises the AttributeError for a write to `.weight`."""
    raise AttributeError(
        f"the .weight of lamina.nn.{type(layer).__name__} is read-only; dequantize_weight() gives its values "
        "as an ordinary tensor; to change a weight, leave its layer float with skip of lamina.compress"
    )


def _values(leaf: Any) -> Any:
    return leaf.dequantize() if isinstance(leaf, PackedWeight) else leaf
