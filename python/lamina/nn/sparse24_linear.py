"""Linear layers with 2:4 weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from lamina.nn.int4_linear import Int4Linear
from lamina.nn.int8_linear import Int8Linear
from lamina.nn.packed_linear import PackedLinear, checked_bias, ordinary_tensors, require_loaded
from lamina.ops import (
    PackedSparse24,
    QuantizedInt8,
    compress_sparse24,
    matmul_sparse24,
    matmul_sparse24_int4,
    matmul_sparse24_int4_int8,
    matmul_sparse24_int8,
    pack_sparse24,
)
from lamina.ops.pack_sparse24 import CPU_LAYOUT, packed_sparse24_shape
from lamina.ops.tiles import Range
from lamina.quant import (
    WEIGHT_DTYPES,
    PrunedInt4,
    PrunedInt8,
    PrunedWeight,
    QuantizedInt4,
    prune_sparse24,
    prune_sparse24_int4,
    prune_sparse24_int8,
)
from lamina.quant.sparse24_masks import GROUP, keep_two, require_mask

if TYPE_CHECKING:
    from typing_extensions import Self


class Sparse24Int8Linear(Int8Linear):
    """Int8Linear with a 2:4 weight: of four consecutive input features each output feature keeps two.

    in_features is a multiple of 4. The result has the bits of an Int8Linear with zeros in place; the weight
    takes 5 bits instead of 8 in memory. The layer runs on a CPU; on CUDA it raises NotImplementedError.

    A new module is zero; fill it with `from_pruned`, `from_linear` or `load_state_dict`. The state dict is
    that of Int8Linear, but `weight_packed` is uint8.
    """

    FORMATS: ClassVar = {4: CPU_LAYOUT}
    VERSION = PackedSparse24.VERSION
    DTYPES: ClassVar = {**Int8Linear.DTYPES, "weight_packed": (torch.uint8,)}
    MATMUL: ClassVar[Callable[..., Tensor]] = staticmethod(matmul_sparse24_int8)

    def __init__(self, in_features: int, out_features: int, bias: bool = True, **options: Any) -> None:
        _require_groups_of_four(self, in_features)
        super().__init__(in_features, out_features, bias, **options)

    @classmethod
    @ordinary_tensors
    def from_linear(cls, linear: nn.Linear, *, symmetric: bool = True) -> Sparse24Int8Linear:
        """Makes a layer from `linear`, as Int8Linear.from_linear does.

        A weight that is not 2:4 is pruned by magnitude; zeros of a 2:4 weight stay zero.
        """
        require_loaded(cls.__name__, linear.weight)
        return cls.from_pruned(linear, prune_sparse24_int8(linear.weight.detach().cpu()), symmetric=symmetric)

    @classmethod
    @ordinary_tensors
    def from_pruned(
        cls, linear: nn.Linear, pruned: PrunedInt8, *, symmetric: bool = True
    ) -> Sparse24Int8Linear:
        """Makes a layer from the weight of `linear` after lamina.quant.prune_sparse24_int8, and its bias."""
        if pruned.q.shape != linear.weight.shape:
            raise ValueError(
                f"{cls.__name__}: pruned must be {list(linear.weight.shape)} like linear, got "
                f"{list(pruned.q.shape)}"
            )
        packed = pack_sparse24(compress_sparse24(pruned.q.cpu(), pruned.mask.cpu()))
        weight = linear.weight
        module = cls._of_packed(packed, pruned.scale.cpu(), linear.bias, symmetric, weight.dtype)
        return module.to(weight.device).train(linear.training)

    @property
    def packed_weight(self) -> PackedSparse24:  # type: ignore[override]
        """The weight as lamina.ops.matmul_sparse24_int8 takes it."""
        n, k = self.out_features, self.in_features
        return PackedSparse24(self.weight_packed, self.weight_sums, n, k, torch.int8)

    def dequantize_weight(self) -> Tensor:
        """The weight [n, k] in f32 that this module computes with."""
        return self.packed_weight.unpack().decompress().float() * self.weight_scale[:, None]

    def _zeros(self, n: int, k: int, device: torch.device | str | None) -> Tensor:
        if torch.empty(0, device=device).is_meta:
            return torch.empty(packed_sparse24_shape(n, k, torch.int8), dtype=torch.uint8, device=device)
        zeros = torch.zeros(n, k, dtype=torch.int8, device="cpu")
        return pack_sparse24(compress_sparse24(zeros)).data.to(device)

    def _product(self, rows: Tensor, residual: Tensor | None = None) -> Tensor:
        _require_cpu(self, rows)
        return super()._product(rows, residual)

    def _product_int8(self, a: QuantizedInt8, dtype: torch.dtype, residual: Tensor | None) -> Tensor:
        _require_cpu(self, a.q)
        return super()._product_int8(a, dtype, residual)


class Sparse24Int4Linear(Int4Linear):
    """Int4Linear with a 2:4 weight: of four consecutive input features each output feature keeps two.

    in_features is a multiple of 4. The weight takes 3 bits instead of 4 in memory, beside its scales. The
    layer runs on a CPU; on CUDA it raises NotImplementedError. Neither x nor bias has a gradient.

    Fill a new module, which is zero, with `from_pruned`, `from_linear`, `from_quantized` or
    `load_state_dict`. The state dict is that of Int4Linear without `perm`.
    """

    FORMATS: ClassVar = {5: CPU_LAYOUT}
    VERSION = PackedSparse24.VERSION
    PRODUCTS: ClassVar = {"float": matmul_sparse24_int4, "int8": matmul_sparse24_int4_int8}

    def __init__(self, in_features: int, out_features: int, bias: bool = True, **options: Any) -> None:
        _require_groups_of_four(self, in_features)
        super().__init__(in_features, out_features, bias, **options)

    @classmethod
    @ordinary_tensors
    def from_linear(cls, linear: nn.Linear, **options: Any) -> Sparse24Int4Linear:
        """Makes a layer from `linear` with the options of Int4Linear.from_linear.

        A weight that is not 2:4 is pruned by magnitude; zeros of a 2:4 weight stay zero.
        """
        require_loaded(cls.__name__, linear.weight)
        activations = options.pop("activations", "float")
        pruned = prune_sparse24_int4(linear.weight.detach().cpu(), **options)
        return cls.from_pruned(linear, pruned, activations=activations)

    @classmethod
    @ordinary_tensors
    def from_pruned(
        cls, linear: nn.Linear, pruned: PrunedInt4, *, activations: str = "float"
    ) -> Sparse24Int4Linear:
        """Makes a layer from the weight of `linear` after lamina.quant.prune_sparse24_int4, and its bias."""
        bias = None if linear.bias is None else linear.bias.cpu()
        module = cls.from_quantized(pruned.quantized.to("cpu"), bias, activations=activations)
        assert isinstance(module, Sparse24Int4Linear)
        module.weight_dtype = linear.weight.dtype
        return module.to(linear.weight.device).train(linear.training)

    @property
    def packed_weight(self) -> PackedSparse24:  # type: ignore[override]
        """The weight as lamina.ops.matmul_sparse24_int4 takes it."""
        return PackedSparse24(self.weight_packed, None, self.out_features, self.in_features, torch.uint8)

    def dequantize_weight(self) -> Tensor:
        """The weight [n, k] in f32 that this module computes with."""
        sparse = self.packed_weight.unpack()
        group = max(self.in_features, 1) if self.group == -1 else self.group
        quantized = QuantizedInt4(sparse.decompress(), self.weight_scale, self.weight_zero_point, group)
        kept = replace(sparse, values=torch.ones_like(sparse.values)).decompress().bool()
        return torch.where(kept, quantized.dequantize(), 0.0)

    @staticmethod
    def _layout_for(device: torch.device) -> str:
        return CPU_LAYOUT

    @staticmethod
    def _packed_shape(n: int, k: int) -> tuple[int, ...]:
        return packed_sparse24_shape(n, k, torch.uint8)

    def _packed(self, q: Tensor, zero_point: Tensor | None, perm: Tensor | None) -> Tensor:
        """A code that is its zero point is a weight 0, which is kept only to complete a group of two."""
        if perm is not None:
            raise ValueError(f"{self._kind}: g_idx must be None: 2:4 weights have no act-order")
        origin = torch.full_like(q, 8)
        if zero_point is not None:
            group = max(q.shape[1], 1) if self.group == -1 else self.group
            origin = zero_point.T.repeat_interleave(group, 1)[:, : q.shape[1]]
        is_weight = q != origin
        require_mask(self._kind, is_weight, q)
        return pack_sparse24(compress_sparse24(q, keep_two(is_weight.char(), 1))).data

    @property
    def _has_gradient(self) -> bool:
        return False

    def _product(self, rows: Tensor, residual: Tensor | None = None) -> Tensor:
        _require_cpu(self, rows)
        return super()._product(rows, residual)

    def _product_int8(self, a: QuantizedInt8, dtype: torch.dtype, residual: Tensor | None) -> Tensor:
        _require_cpu(self, a.q)
        return super()._product_int8(a, dtype, residual)


class Sparse24Linear(PackedLinear):
    """nn.Linear with a 2:4 weight in f32, f16 or bf16. For inference only.

    in_features is a multiple of 4. `dtype` is that of the weight; x is cast to it, and the result has the
    dtype of x. A bf16 weight takes 9 bits instead of 16 in memory. The layer runs on a CPU; on CUDA it
    raises NotImplementedError.

    Fill a new module, which is zero, with `from_pruned`, `from_linear` or `load_state_dict`. The state dict
    holds `weight_packed` uint8, `weight_format` int64 and `bias`. A loaded state dict sets the dtype, which
    stays under .half() and .to(dtype).
    """

    FORMATS: ClassVar = {6: CPU_LAYOUT}
    VERSION = PackedSparse24.VERSION
    HEADER = 5  # [format, version, n, k, number of the dtype in WEIGHT_DTYPES]
    DTYPES: ClassVar = {"weight_packed": (torch.uint8,)}

    @ordinary_tensors
    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        _require_groups_of_four(self, in_features)
        super().__init__(in_features, out_features, dtype)
        if self.weight_dtype not in WEIGHT_DTYPES:
            raise ValueError(f"{self._kind}: dtype must be f32, f16 or bf16, got {self.weight_dtype}")
        self._dtype, n = self.weight_dtype, out_features
        zeros = torch.zeros(n, in_features, dtype=self._dtype, device="cpu")
        packed = pack_sparse24(compress_sparse24(zeros)).data.to(device)
        self.register_buffer("weight_packed", packed)
        number = WEIGHT_DTYPES.index(self._dtype)
        self.register_buffer("weight_format", torch.tensor(self._header(number), device=device))
        self.register_buffer("bias", torch.zeros(n, dtype=dtype, device=device) if bias else None)

    @classmethod
    @ordinary_tensors
    def from_linear(cls, linear: nn.Linear, *, dtype: torch.dtype | None = None) -> Sparse24Linear:
        """Makes a layer from `linear`, which is not changed; None is the dtype of its weight.

        A weight that is not 2:4 is pruned by magnitude; zeros of a 2:4 weight stay zero.
        """
        require_loaded(cls.__name__, linear.weight)
        return cls.from_pruned(linear, prune_sparse24(linear.weight.detach().to(device="cpu", dtype=dtype)))

    @classmethod
    @ordinary_tensors
    def from_pruned(cls, linear: nn.Linear, pruned: PrunedWeight) -> Sparse24Linear:
        """Makes a layer from the weight of `linear` after lamina.quant.prune_sparse24, and its bias."""
        module = cls._of_packed(pack_sparse24(compress_sparse24(pruned.weight.cpu(), pruned.mask.cpu())))
        bias = checked_bias(cls.__name__, linear.bias)
        module.bias = None if bias is None else bias.cpu()
        module.weight_dtype = linear.weight.dtype
        return module.to(linear.weight.device).train(linear.training)

    @classmethod
    def _of_packed(cls, packed: PackedSparse24) -> Self:
        module = cls(packed.k, packed.n, False, device="meta", dtype=packed.dtype)
        module.weight_packed = packed.data
        header = module._header(WEIGHT_DTYPES.index(packed.dtype))
        module.weight_format = torch.tensor(header, device=packed.device)
        return module

    @property
    def packed_weight(self) -> PackedSparse24:
        """The weight as lamina.ops.matmul_sparse24 takes it."""
        return PackedSparse24(self.weight_packed, None, self.out_features, self.in_features, self._dtype)

    def dequantize_weight(self) -> Tensor:
        """The weight [n, k] in f32 that this module computes with."""
        return self.packed_weight.unpack().decompress().float()

    def extra_repr(self) -> str:
        """The text in the parentheses of print(model)."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, dtype={self._dtype}"
        )

    def _part(self, n: Range, k: Range) -> Self:
        part = self.packed_weight.shard(n, k)
        return self._of_packed(replace(part, data=part.data.clone()))

    def _product(self, rows: Tensor, residual: Tensor | None = None) -> Tensor:
        _require_cpu(self, rows)
        a = rows.to(self._dtype)
        return matmul_sparse24(a, self.packed_weight, bias=self.bias, residual=residual, out_dtype=rows.dtype)

    def _header_problem(self, more: list[int], state: dict[str, Tensor]) -> str | None:
        if not 0 <= more[0] < len(WEIGHT_DTYPES):
            return f"weight_format[4] (dtype) must be below {len(WEIGHT_DTYPES)}, got {more[0]}"
        shape = packed_sparse24_shape(self.out_features, self.in_features, WEIGHT_DTYPES[more[0]])
        if "weight_packed" in state and state["weight_packed"].shape != shape:
            return f"weight_packed must be {list(shape)}, got {list(state['weight_packed'].shape)}"
        return None

    def _adopt(self, more: list[int], state: dict[str, Tensor]) -> None:
        self._dtype = WEIGHT_DTYPES[more[0]]
        if "weight_packed" in state:
            device = self.weight_packed.device
            self.weight_packed = torch.empty_like(state["weight_packed"], device=device)


def _require_groups_of_four(module: nn.Module, in_features: int) -> None:
    if in_features % GROUP:
        raise ValueError(
            f"{type(module).__name__}: in_features = {in_features}; must be a multiple of {GROUP}"
        )


def _require_cpu(module: nn.Module, rows: Tensor) -> None:
    if rows.is_cuda:
        raise NotImplementedError(
            f"lamina.nn.{type(module).__name__} runs on a CPU only, and its input is on {rows.device}; "
            "move the model to the CPU, or compress it with a scheme without sparse24"
        )
