"""A linear layer on gemm_int8."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from lamina.nn.packed_linear import (
    PackedLinear,
    checked_bias,
    flag_problem,
    ordinary_tensors,
    require_loaded,
)
from lamina.ops import PackedInt8, PackedSparse24, QuantizedInt8, gemm_int8, pack_int8, quantize_int8
from lamina.ops.decoder_layers import ProductKind
from lamina.ops.pack_int8 import TILE_K, TILE_N, packed_shape
from lamina.ops.tiles import Range, is_at_tiles
from lamina.quant import quantize_weight_int8

if TYPE_CHECKING:
    from typing_extensions import Self


class Int8Linear(PackedLinear):
    """nn.Linear with an int8 weight: y = dequantize(quantize(x) @ w.T) + bias. For inference only.

    Activations [..., k] in f32, f16 or bf16 are quantised per token on the fly, symmetric or with a zero
    point (symmetric=False), which suits inputs mostly of one sign. The result has the dtype of the input.
    The weight is int8 with one scale per output channel, packed once for the kernels. A layer of a checkpoint
    may have an `input_scale` f32 [1], and unless symmetric an `input_zero_point` int8 [1], for all tokens.

    A new module is zero; fill it with `from_linear` or `load_state_dict`. The state dict holds what the
    kernels read, all of it buffers: `weight_packed` int8, `weight_sums` int32, `weight_scale` f32,
    `weight_format` int64, `bias`, and what it has of the input. Scales stay f32 under .half() and .to(dtype).
    """

    FORMATS: ClassVar = {1: PackedInt8.layout}
    VERSION = PackedInt8.VERSION
    HEADER = 5  # [format, version, n, k, symmetric activations]
    DTYPES: ClassVar = {
        "weight_packed": (torch.int8,),
        "weight_sums": (torch.int32,),
        "weight_scale": (torch.float32,),
        "input_scale": (torch.float32,),
        "input_zero_point": (torch.int8,),
    }

    OPERANDS = ("weight_packed", "weight_sums", "weight_scale")
    MATMUL: ClassVar[Callable[..., Tensor]] = staticmethod(gemm_int8)

    weight_scale: Tensor
    weight_sums: Tensor
    input_scale: Tensor | None
    input_zero_point: Tensor | None

    @ordinary_tensors
    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        symmetric: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, dtype)
        self._symmetric = symmetric
        n, k = out_features, in_features
        place = torch.empty(0, device=device).device
        self._layout = self._layout_for(place)
        self.register_buffer("weight_packed", self._zeros(n, k, place))
        self.register_buffer("weight_sums", torch.zeros(n, dtype=torch.int32, device=device))
        self.register_buffer("weight_scale", torch.ones(n, dtype=torch.float32, device=device))
        self.register_buffer("weight_format", torch.tensor(self._header(int(symmetric)), device=device))
        self.register_buffer("bias", torch.zeros(n, dtype=dtype, device=device) if bias else None)
        # Last: torch.export counts buffers that are None, and then takes the buffers after them for others.
        self.register_buffer("input_scale", None)
        self.register_buffer("input_zero_point", None)

    @classmethod
    @ordinary_tensors
    def from_linear(cls, linear: nn.Linear, *, symmetric: bool = True) -> Int8Linear:
        """Makes an int8 layer from `linear`, which must hold finite f32, f16 or bf16 and is not changed.

        The CPU quantises and packs the weight wherever `linear` is, so that the bytes are the same from every
        device, which all read one layout. The device of `linear` holds the result.
        """
        require_loaded("Int8Linear", linear.weight)
        device = linear.weight.device
        q, scale = quantize_weight_int8(linear.weight.detach().cpu())
        packed = pack_int8(q).to(device)
        module = cls._of_packed(packed, scale, linear.bias, symmetric, linear.weight.dtype)
        return module.train(linear.training)

    @classmethod
    @ordinary_tensors
    def from_quantized(
        cls,
        q: Tensor,
        scale: Tensor,
        bias: Tensor | None = None,
        *,
        symmetric: bool = True,
        input_scale: Tensor | None = None,
        input_zero_point: Tensor | None = None,
    ) -> Int8Linear:
        """Makes a layer from a weight that is quantised already, w = q * scale, and a copy of `bias` [n].

        q      [n, k]  int8
        scale  [n]  f32
        input_scale, input_zero_point  [1]  f32 and int8, for a scale that all tokens share; None: one a token
        """
        if q.dim() != 2 or scale.shape != (q.shape[0],):
            raise ValueError(
                f"Int8Linear: scale must be [n] for q [n, k] = {list(q.shape)}, got {list(scale.shape)}"
            )
        if (input_zero_point is not None) != (input_scale is not None and not symmetric):
            raise ValueError("Int8Linear: input_zero_point belongs to an input_scale that is not symmetric")
        module = cls._of_packed(pack_int8(q), scale.float(), bias, symmetric, None)
        given = {"input_scale": input_scale, "input_zero_point": input_zero_point}
        for name, tensor in given.items():
            setattr(module, name, None if tensor is None else tensor.to(q.device, copy=True))
        if problem := module._input_problem({name: t for name, t in given.items() if t is not None}):
            raise ValueError(f"Int8Linear: {problem}")
        return module

    @classmethod
    def _of_packed(
        cls,
        packed: PackedInt8 | PackedSparse24,
        scale: Tensor,
        bias: Tensor | None,
        symmetric: bool,
        dtype: torch.dtype | None,
    ) -> Self:
        # On meta: the zeros of a new module would be allocated only to be dropped.
        module = cls(packed.k, packed.n, False, symmetric=symmetric, device="meta", dtype=dtype)
        module._hold(packed)
        assert packed.column_sums is not None
        module.weight_sums = packed.column_sums
        module.weight_scale = scale.to(packed.device)
        module.weight_format = torch.tensor(module._header(int(symmetric)), device=packed.device)
        copied = checked_bias("Int8Linear", bias)
        module.bias = None if copied is None else copied.to(packed.device)
        return module

    @property
    def symmetric(self) -> bool:
        """Whether activations are quantised without a zero point. A loaded state dict sets it."""
        return self._symmetric

    @property
    def packed_weight(self) -> PackedInt8:
        """The weight as lamina.ops.gemm_int8 takes it."""
        return PackedInt8(self.weight_packed, self.weight_sums, self.out_features, self.in_features)

    def dequantize_weight(self) -> Tensor:
        """The weight [n, k] in f32 that this module computes with."""
        return self.packed_weight.unpack().float() * self.weight_scale[:, None]

    def extra_repr(self) -> str:
        """The text in the parentheses of print(model)."""
        activations = "symmetric" if self.symmetric else "asymmetric"
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, activations={activations}"
        )

    def _zeros(self, n: int, k: int, device: torch.device) -> Tensor:
        """The packed weight 0."""
        return torch.zeros(packed_shape(n, k), dtype=torch.int8, device=device)

    def _part(self, n: Range, k: Range) -> Self:
        part: PackedInt8 | PackedSparse24 = self.packed_weight
        at_tiles = is_at_tiles(n, part.n, TILE_N) and is_at_tiles(k, part.k, TILE_K)
        if at_tiles or isinstance(part, PackedSparse24):  # which refuses other cuts
            part = part.shard(n, k)
        else:
            part = pack_int8(part.unpack()[n[0] : n[1], k[0] : k[1]])
        module = self._of_packed(part, self.weight_scale[n[0] : n[1]], None, self.symmetric, None)
        for name in self.weight_buffers:
            held = getattr(module if name.startswith("weight") else self, name)
            setattr(module, name, None if held is None else held.clone())
        return module

    @property
    def quantizes(self) -> str | None:
        if self.input_scale is not None:
            return "static"
        return "symmetric" if self.symmetric else "asymmetric"

    def quantize(self, rows: Tensor) -> QuantizedInt8:
        held: dict[str, Any] = self._buffers  # nn.Module.__getattr__ takes long to find a buffer
        scale, zero_point = held["input_scale"], held["input_zero_point"]
        return quantize_int8(rows, scale=scale, zero_point=zero_point, symmetric=self._symmetric)

    @property
    def _product_kind(self) -> ProductKind | None:
        if self.input_scale is not None:
            return None
        return ProductKind.W8A8 if self._symmetric else ProductKind.W8A8_ASYMMETRIC

    def _product(self, rows: Tensor, residual: Tensor | None = None) -> Tensor:
        return self._product_int8(self.quantize(rows), rows.dtype, residual)

    def _product_int8(self, a: QuantizedInt8, dtype: torch.dtype, residual: Tensor | None) -> Tensor:
        held: dict[str, Any] = self._buffers  # nn.Module.__getattr__ takes long to find a buffer
        if self._is_ready(a.q, PackedInt8.layout):
            try:
                out: Tensor = torch.ops.lamina.gemm_int8(
                    a.q, held["weight_packed"], held["weight_sums"], a.scale, held["weight_scale"],
                    a.zero_point, self._bias, dtype, None, None, residual, None,
                )  # fmt: skip
                return out
            except (RuntimeError, TypeError, ValueError):
                pass  # the function below raises an error that names the argument
        return self.MATMUL(
            a.q,
            self.packed_weight,
            a.scale,
            held["weight_scale"],
            a_zero_point=a.zero_point,
            bias=self._bias,
            out_dtype=dtype,
            residual=residual,
        )

    def _header_problem(self, more: list[int], state: dict[str, Tensor]) -> str | None:
        return flag_problem("[4] (symmetric activations)", more[0]) or self._input_problem(state)

    def _input_problem(self, state: dict[str, Tensor]) -> str | None:
        for name in ("input_scale", "input_zero_point"):
            if name in state and (state[name].shape != (1,) or state[name].dtype not in self.DTYPES[name]):
                got = f"{state[name].dtype} {list(state[name].shape)}"
                return f"{name} must be {self.DTYPES[name][0]} [1], got {got}"
        return None

    def _adopt(self, more: list[int], state: dict[str, Tensor]) -> None:
        self._symmetric = bool(more[0])
        for name in ("input_scale", "input_zero_point"):
            loaded = state.get(name)
            empty = None if loaded is None else torch.empty_like(loaded, device=self.weight_packed.device)
            setattr(self, name, empty)
