"""The base class of the linear layers with packed weights: inputs of any shape, moving and loading."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, wraps
from typing import TYPE_CHECKING, Any, ClassVar, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from lamina.nn.linear_input import autocast, call_on_jagged, call_on_proxy
from lamina.nn.packed_weight import PackedWeight, refuse_to_write
from lamina.nn.rows import as_rows
from lamina.ops import PackedInt4, PackedInt8, PackedSparse24, QuantizedInt8, quantize_int8
from lamina.ops.decoder_layers import PackedProduct, ProductKind
from lamina.ops.tiles import Range
from lamina.quant import WEIGHT_DTYPES, require_finite

if TYPE_CHECKING:
    from typing_extensions import Self

Dtypes = tuple[torch.dtype, ...]
Packed = PackedInt8 | PackedInt4 | PackedSparse24
Activations = Tensor | QuantizedInt8
TOKENWISE = ("symmetric", "asymmetric")  # values of `quantizes` with scales of each token alone
P = ParamSpec("P")
R = TypeVar("R")


def ordinary_tensors(function: Callable[P, R]) -> Callable[P, R]:
    """Runs `function` outside torch.inference_mode: autograd never accepts tensors that are made inside."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.inference_mode(False), torch.no_grad():
            return function(*args, **kwargs)

    return run


class PackedLinear(nn.Module):
    """The abstract base class of Int8Linear and Int4Linear.

    A subclass registers the buffers `weight_packed`, `weight_format`, `bias` and its own.
    weight_format is int64: the number of the packed layout, its version, n, k, and what the subclass adds. It
    holds k because shapes do not: k = 65 and k = 100 both pack into two tiles.
    """

    # Layouts by their number in weight_format, names of docs/layouts.md: that of CPU kernels first, that of
    # CUDA kernels last.
    FORMATS: ClassVar[Mapping[int, str]]
    VERSION: ClassVar[int]
    HEADER: ClassVar[int]  # elements of weight_format
    DTYPES: ClassVar[Mapping[str, Dtypes]]  # of the buffers; bias is any of WEIGHT_DTYPES

    OPERANDS: ClassVar[tuple[str, ...]] = ()  # the buffers that begin PackedProduct.tensors
    weight_packed: Tensor
    weight_format: Tensor
    bias: Tensor | None

    def __init__(self, in_features: int, out_features: int, dtype: torch.dtype | None) -> None:
        super().__init__()
        if in_features < 0 or out_features < 0:
            raise ValueError(
                f"{self._kind}: in_features = {in_features} and out_features = {out_features} must be >= 0"
            )
        self.in_features = in_features
        self.out_features = out_features
        self.weight_dtype = torch.get_default_dtype() if dtype is None else dtype
        # Belongs to the bytes, on any device: the op refuses bytes that moved without this module.
        self._layout = next(iter(self.FORMATS.values()))

    @property
    def weight(self) -> Tensor:
        """The weight [n, k] for modules around the layer that read it: see PackedWeight.

        It is neither a parameter nor in the state dict. Its dtype is `weight_dtype`: the dtype of the float
        weight, or the `dtype` that the module was made with. Assigning to `weight_dtype` and .to(dtype)
        change it; loading a state dict does not.
        """
        if torch.compiler.is_compiling():  # a graph drops the values if it does not use them
            return self.dequantize_weight().to(self.weight_dtype)
        return PackedWeight(self, self.weight_dtype)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            refuse_to_write(self)
        self.__dict__.pop("operands", None)
        super().__setattr__(name, value)

    def dequantize_weight(self) -> Tensor:
        """The weight [n, k] in f32 that this module computes with."""
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(buffer.nbytes for buffer in self.buffers())

    @property
    def weight_buffers(self) -> tuple[str, ...]:
        """The buffers that come from the weight alone; tied layers share them."""
        return "weight_format", *self.DTYPES

    def share_weight(self, other: PackedLinear) -> None:
        """Takes the packed weight of `other`, a layer of the same class, extents and options, for its own."""
        for name in self.weight_buffers:
            setattr(self, name, getattr(other, name))
        self._layout = other._layout

    @ordinary_tensors
    def shard(self, n: Range | None = None, k: Range | None = None) -> Self:
        """A layer of output features n[0]..n[1] and input features k[0]..k[1]; None takes all.

        The part has the codes and the scales of this layer, in tensors of its own, and nothing is rounded
        again. The outputs of parts along n follow each other in the output of the layer, bit for bit. The
        outputs of parts along k add up to it: only a part that begins at input feature 0 has the bias.

        Packed tiles are copied as they are where a range of n begins and ends at multiples of 16 or at the
        end, and a range of k at multiples of 64 or at the end. Int8Linear and Int4Linear unpack and pack
        other ranges; layers with 2:4 weights refuse them.

        Raises   ValueError for an empty range, one beyond the layer, and one that cuts a tile of 2:4 weights
        """
        n, k = n or (0, self.out_features), k or (0, self.in_features)
        for name, (begin, end), extent in (("n", n, self.out_features), ("k", k, self.in_features)):
            if not 0 <= begin < end <= extent:
                raise ValueError(
                    f"{self._kind}.shard: {name} = {(begin, end)}; must be a range within (0, {extent}) that "
                    "is not empty"
                )
        part = self._part(n, k)
        part.bias = None if self.bias is None or k[0] > 0 else self.bias[n[0] : n[1]].clone()
        part.weight_dtype = self.weight_dtype
        return part.train(self.training)

    def forward(self, input: Tensor) -> Tensor:
        """input [..., k] in f32, f16 or bf16 -> [..., n] in the dtype of the input.

        Under torch.autocast the input is cast as nn.Linear casts it. The input may be a nested tensor of
        layout torch.jagged.
        """
        if not isinstance(input, Tensor):
            return call_on_proxy(self, input)
        if input.is_nested:
            return call_on_jagged(self, input)
        x = autocast(input)
        if x.requires_grad and torch.is_grad_enabled() and not self._has_gradient:
            raise RuntimeError(
                f"lamina.nn.{self._kind} has no backward pass, and its input requires grad; "
                "call the model under torch.inference_mode() or torch.no_grad()"
            )
        if x.dim() == 0 or x.shape[-1] != self.in_features:
            raise ValueError(
                f"{self._kind}: x must be [..., k] with k = {self.in_features}, got {list(x.shape)}"
            )
        return self._product(as_rows(x)).reshape(*x.shape[:-1], self.out_features)

    @property
    def quantizes(self) -> str | None:
        """How `forward` quantises activations: "symmetric" or "asymmetric", with the scales of each token;
        "static", with a scale of this layer; None: the layer multiplies floats.

        Layers whose answers are the same, but for "static", can share the result of `quantize`.
        """
        return None

    def quantize(self, rows: Tensor) -> QuantizedInt8:
        """The activations [m, k] in int8, as `forward` quantises them. ValueError if `quantizes` is None."""
        self._require_int8()
        return quantize_int8(rows, symmetric=self.quantizes == "symmetric")

    def forward_quantized(
        self, a: QuantizedInt8, dtype: torch.dtype, residual: Tensor | None = None
    ) -> Tensor:
        """The output [m, n] in `dtype` for activations [m, k] that are quantised already, plus `residual`.

        layer.forward_quantized(layer.quantize(x), x.dtype) has the bits of layer(x). An asymmetric `a` is
        allowed for every layer. The residual [m, n] is added before the one rounding to `dtype`.

        Raises   ValueError if `quantizes` is None, or for an `a` of another k
        """
        self._require_int8()
        if a.q.dim() != 2 or a.q.shape[1] != self.in_features:
            raise ValueError(
                f"{self._kind}: a.q must be [m, k] with k = {self.in_features}, got {list(a.q.shape)}"
            )
        return self._product_int8(a, dtype, residual)

    def multiply(self, a: Activations, dtype: torch.dtype, residual: Tensor | None = None) -> Tensor:
        """[m, n] + residual for rows [m, k] of int8, or of floats in `dtype`. Only the op checks them."""
        if isinstance(a, QuantizedInt8):
            return self._product_int8(a, dtype, residual)
        return self._product(a, residual)

    @cached_property
    def operands(self) -> PackedProduct | None:
        """This layer for lamina.ops.decoder_layers, until an attribute changes; None if the op has none."""
        kind, held, is_known = self._product_kind, self._buffers, "OPERANDS" in vars(type(self))
        if kind is None or not is_known or self._layout != next(iter(self.FORMATS.values())):
            return None
        weight: list[Any] = [held[name] for name in self.OPERANDS]
        more = {"zero_point": held.get("weight_zero_point"), "bias": self._bias, "perm": held.get("perm")}
        return PackedProduct.of(kind, weight, group=getattr(self, "group", 0), **more)

    @property
    def _product_kind(self) -> ProductKind | None:
        return None

    def _is_ready(self, rows: Tensor, layout: str) -> bool:
        """Whether rows [m, k] may go to torch.ops.lamina directly: on a CPU, with a weight of this layout.

        This skips the checks of the Python functions, which matter for one row of a small layer. If the op
        refuses an argument, the layer calls the Python function, whose error names the argument.
        """
        return self._layout == layout and not rows.is_cuda and rows.shape[-1] == self.in_features

    @property
    def _bias(self) -> Tensor | None:
        """The bias, without the slow search of nn.Module.__getattr__ where it is a buffer."""
        held: dict[str, Any] = self._buffers
        return held["bias"] if "bias" in held else self.bias  # noqa: SIM401  (get() would search in any case)

    @property
    def _has_gradient(self) -> bool:
        """Whether the gradient of x flows through the product."""
        return False

    @property
    def _format(self) -> int:
        """Number of the layout that this module holds."""
        return next(number for number, layout in self.FORMATS.items() if layout == self._layout)

    def _layout_for(self, device: torch.device) -> str:
        """The layout that the kernels of a device read."""
        layouts = list(self.FORMATS.values())
        return layouts[-1 if device.type == "cuda" else 0]

    @property
    def packed_weight(self) -> Packed:
        """The weight as the product takes it."""
        raise NotImplementedError

    def _hold(self, packed: Packed) -> None:
        """Takes the bytes of a packed weight."""
        self.weight_packed, self._layout = packed.data, packed.layout

    def _repack(self) -> None:
        """Packs the weight anew if the kernels of the device that holds it read another layout."""
        device = self.weight_packed.device
        if self._layout_for(device) != self._layout and device.type != "meta":
            self._hold(self.packed_weight.repacked(self._layout_for(device)))
            self.weight_format = torch.tensor([self._format, *self.weight_format.tolist()[1:]], device=device)

    @property
    def _kind(self) -> str:
        return type(self).__name__

    def _header(self, *more: int) -> list[int]:
        return [self._format, self.VERSION, self.out_features, self.in_features, *more]

    def _part(self, n: Range, k: Range) -> Self:
        """A layer of these features without a bias, with tensors of its own."""
        raise NotImplementedError

    def _product(self, rows: Tensor, residual: Tensor | None = None) -> Tensor:
        """[m, k] -> [m, n] + residual in the dtype of rows."""
        raise NotImplementedError

    def _product_int8(self, a: QuantizedInt8, dtype: torch.dtype, residual: Tensor | None) -> Tensor:
        """[m, k] -> [m, n] + residual in `dtype`, if `quantizes` is not None."""
        raise NotImplementedError

    def _require_int8(self) -> None:
        if self.quantizes is None:
            raise ValueError(
                f"{self._kind}: this layer multiplies floats; call it with the activations themselves"
            )

    def _is_header(self, length: int) -> bool:
        """Whether weight_format can have so many elements."""
        return length == self.HEADER

    def _header_problem(self, more: list[int], state: dict[str, Tensor]) -> str | None:
        """Why this class cannot take `more`, its part of weight_format, or the tensors; None if it can."""
        raise NotImplementedError

    def _adopt(self, more: list[int], state: dict[str, Tensor]) -> None:
        """Becomes the module that `more` says, with buffers that `state` can be copied into."""
        raise NotImplementedError

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedLinear:
        shape = self.weight_packed.shape
        kept = {name: getattr(self, name) for name in self.DTYPES}
        example = fn(self.weight_packed.new_empty(0, dtype=self.weight_dtype))
        layout, self.weight_dtype = self._layout_for(example.device), example.dtype
        if self.weight_packed.is_meta:
            self._layout = layout  # there are no bytes yet
        # Flat meanwhile: .to(memory_format=...) gives every 4-D and 5-D tensor other strides.
        self.weight_packed = self.weight_packed.reshape(-1)
        try:
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        finally:
            self.weight_packed = self.weight_packed.reshape(shape)
        # .half() and its kin: the integers were made with these scales, which follow the device only.
        for name, old in kept.items():
            if old is not None and old.is_floating_point() and getattr(self, name).dtype is not old.dtype:
                setattr(self, name, old.to(getattr(self, name).device))
        self._repack()
        return self

    @ordinary_tensors
    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        names = ("weight_format", *self.DTYPES, "bias")
        state = {name: state_dict[prefix + name] for name in names if prefix + name in state_dict}
        problem = self._state_problem(state, prefix + "weight" in state_dict)
        if problem is not None:
            error_msgs.append(f"{prefix.rstrip('.') or self._kind}: {problem}")
            return
        header = state.get("weight_format")
        if header is not None and not header.is_meta:
            layout, *more = header.tolist()
            self._layout = self.FORMATS[layout]
            self._adopt(more[3:], state)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        self._repack()

    def _state_problem(self, state: dict[str, Any], has_weight: bool) -> str | None:
        """Why the entries of a state dict are not a weight for this module, or None.

        Copying would convert a wrong dtype without a word; only the header tells one layout from another.
        """
        if has_weight and "weight_packed" not in state:
            return (
                "the state dict holds a float weight; load it into the float model, then call lamina.compress"
            )
        for name, entry in state.items():
            if not isinstance(entry, Tensor):
                return f"{name} must be a torch.Tensor, got {type(entry).__name__}"
        header = state.get("weight_format")
        if header is None:
            return None if "weight_packed" not in state else "weight_format is missing"
        if header.is_meta:
            return None
        if header.dtype is not torch.int64 or header.dim() != 1 or len(header) < 2:
            return f"weight_format must be int64 [{self.HEADER}], got {header.dtype} {list(header.shape)}"
        layout, version, *rest = header.tolist()
        if layout not in self.FORMATS:
            known = " or ".join(f"{number} ({name})" for number, name in self.FORMATS.items())
            return f"weight_format is {layout}; this module reads {known}"
        if version != self.VERSION:
            return (
                f"weight format {self.FORMATS[layout]} has version {version}; this lamina reads version "
                f"{self.VERSION}; save the model again from its float weights"
            )
        if not self._is_header(len(header)):
            return f"weight_format must be int64 [{self.HEADER}], got {header.dtype} {list(header.shape)}"
        if rest[:2] != [self.out_features, self.in_features]:
            return f"the weight is {rest[:2]}; this module is [{self.out_features}, {self.in_features}]"
        return self._dtype_problem(state) or self._header_problem(rest[2:], state)

    def _dtype_problem(self, state: dict[str, Tensor]) -> str | None:
        for name, dtypes in {**self.DTYPES, "bias": WEIGHT_DTYPES}.items():
            if name in state and state[name].dtype not in dtypes:
                allowed = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
                return f"{name} must be {allowed}, got {state[name].dtype}"
        return None


def require_loaded(kind: str, weight: Tensor) -> None:
    """Raises a ValueError for a weight without values."""
    if weight.is_meta:
        raise ValueError(f"{kind}.from_linear: the weight is on the meta device; load the model first")


def checked_bias(kind: str, bias: Tensor | None) -> Tensor | None:
    """A copy of a bias that the ops can add."""
    if bias is None:
        return None
    if bias.dtype not in WEIGHT_DTYPES:
        raise ValueError(f"{kind}.from_linear: bias must be f32, f16 or bf16, got {bias.dtype}")
    require_finite(f"{kind}.from_linear: bias", bias)
    return bias.detach().clone()


def flag_problem(name: str, value: int) -> str | None:
    """Why an element of weight_format is no flag, or None."""
    return None if value in (0, 1) else f"weight_format{name} must be 0 or 1, got {value}"
