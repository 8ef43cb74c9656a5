"""Linear layers with 2:4 weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from lamina.nn.int4_linear import Int4Linear
from lamina.nn.int8_linear import Int8Linear
from lamina.nn.packed_linear import PackedLinear, checked_bias, ordinary_tensors, require_loaded
from lamina.nn.sparse24_rows import (
    State,
    WithDenseRows,
    pack_rows,
    packed_problem,
    packed_zeros,
    require_groups_of_four,
)
from lamina.ops import (
    PackedSparse24,
    compress_sparse24,
    matmul_sparse24,
    matmul_sparse24_int4,
    matmul_sparse24_int4_int8,
    matmul_sparse24_int8,
    pack_sparse24,
)
from lamina.ops.pack_sparse24 import (
    CPU_LAYOUT,
    CUDA_LAYOUT,
    count_dense,
    mask_of_dense,
    packed_sparse24_shape,
    sparse24_layout_for,
)
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
from lamina.quant.sparse24_masks import keep_two, require_mask

if TYPE_CHECKING:
    from typing_extensions import Self


class Sparse24Int8Linear(WithDenseRows, Int8Linear):
    """Int8Linear with a 2:4 weight: of four consecutive input features each output feature keeps two.

    in_features is a multiple of 4. The result has the bits of an Int8Linear with zeros in place; the weight
    takes 5 bits instead of 8 in memory. .to() between CPU and CUDA repacks the weight.

    A new module is zero; fill it with `from_pruned`, `from_linear` or `load_state_dict`. The state dict is
    that of Int8Linear, but `weight_packed` is uint8. Where blocks of rows are dense, it also has
    `weight_dense` uint8, and `weight_format` the begin and the end of each block.
    """

    FORMATS: ClassVar = {4: CPU_LAYOUT, 7: CUDA_LAYOUT}
    VERSION = PackedSparse24.VERSION
    VALUES = torch.int8
    DTYPES: ClassVar = {
        **Int8Linear.DTYPES,
        "weight_packed": (torch.uint8,),
        **WithDenseRows.DENSE_DTYPES,
    }
    OPERANDS = Int8Linear.OPERANDS
    MATMUL: ClassVar[Callable[..., Tensor]] = staticmethod(matmul_sparse24_int8)

    def __init__(self, in_features: int, out_features: int, bias: bool = True, **options: Any) -> None:
        require_groups_of_four(self, in_features)
        super().__init__(in_features, out_features, bias, **options)
        self.register_buffer("weight_dense", None)  # last, as in Int8Linear

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
        cls,
        linear: nn.Linear,
        pruned: PrunedInt8,
        *,
        symmetric: bool = True,
        dense_rows: Sequence[int] = (),
    ) -> Sparse24Int8Linear:
        """Makes a layer from the weight of `linear` after lamina.quant.prune_sparse24_int8, and its bias.

        dense_rows  as in lamina.pack_sparse24: rows that have all of pruned.q, whatever the mask
        """
        if pruned.q.shape != linear.weight.shape:
            raise ValueError(
                f"{cls.__name__}: pruned must be {list(linear.weight.shape)} like linear, got "
                f"{list(pruned.q.shape)}"
            )
        weight = linear.weight
        packed = pack_rows(pruned.q.to(weight.device), pruned.mask, dense_rows)
        module = cls._of_packed(packed, pruned.scale, linear.bias, symmetric, weight.dtype)
        return module.train(linear.training)

    @property
    def packed_weight(self) -> PackedSparse24:  # type: ignore[override]
        """The weight as lamina.ops.matmul_sparse24_int8 takes it."""
        return self._packed_of(self.weight_sums)

    def dequantize_weight(self) -> Tensor:
        """The weight [n, k] in f32 that this module computes with."""
        return self.packed_weight.decompress().float() * self.weight_scale[:, None]

    def _zeros(self, n: int, k: int, device: torch.device) -> Tensor:
        return packed_zeros(n, k, torch.int8, self._layout, device)


class Sparse24Int4Linear(WithDenseRows, Int4Linear):
    """Int4Linear with a 2:4 weight: of four consecutive input features each output feature keeps two.

    in_features is a multiple of 4. The weight takes 3 bits instead of 4 in memory, beside its scales.
    Neither x nor bias has a gradient.

    Fill a new module, which is zero, with `from_pruned`, `from_linear`, `from_quantized` or
    `load_state_dict`. The state dict is that of Int4Linear without `perm`; where blocks of rows are dense, it
    differs as that of Sparse24Int8Linear.
    """

    FORMATS: ClassVar = {5: CPU_LAYOUT, 8: CUDA_LAYOUT}
    VERSION = PackedSparse24.VERSION
    VALUES = torch.uint8
    DTYPES: ClassVar = {**Int4Linear.DTYPES, **WithDenseRows.DENSE_DTYPES}
    OPERANDS = Int4Linear.OPERANDS
    PRODUCTS: ClassVar = {"float": matmul_sparse24_int4, "int8": matmul_sparse24_int4_int8}

    def __init__(self, in_features: int, out_features: int, bias: bool = True, **options: Any) -> None:
        require_groups_of_four(self, in_features)
        super().__init__(in_features, out_features, bias, **options)
        self.register_buffer("weight_dense", None)  # last, as in Int8Linear

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
        cls,
        linear: nn.Linear,
        pruned: PrunedInt4,
        *,
        activations: str = "float",
        dense_rows: Sequence[int] = (),
    ) -> Sparse24Int4Linear:
        """Makes a layer from the weight of `linear` after lamina.quant.prune_sparse24_int4, and its bias.

        dense_rows  as in lamina.pack_sparse24: rows that have all codes of pruned.quantized
        """
        weight = linear.weight
        quantized = pruned.quantized.to(weight.device)
        module = cls.from_quantized(quantized, linear.bias, activations=activations, dense_rows=dense_rows)
        assert isinstance(module, Sparse24Int4Linear)
        module.weight_dtype = weight.dtype
        return module.train(linear.training)

    @property
    def packed_weight(self) -> PackedSparse24:  # type: ignore[override]
        """The weight as lamina.ops.matmul_sparse24_int4 takes it."""
        return self._packed_of(None)

    def dequantize_weight(self) -> Tensor:
        """The weight [n, k] in f32 that this module computes with."""
        packed, no_code = self.packed_weight, 255
        q = packed.decompress(no_code)
        group = max(self.in_features, 1) if self.group == -1 else self.group
        quantized = QuantizedInt4(q, self.weight_scale, self.weight_zero_point, group)
        return torch.where(q == no_code, 0.0, quantized.dequantize())

    def _packed(
        self,
        q: Tensor,
        zero_point: Tensor | None,
        perm: Tensor | None,
        dense_rows: Sequence[int] = (),
    ) -> PackedSparse24:
        """A code that is its zero point is a weight 0, which is kept only to complete a group of two."""
        if perm is not None:
            raise ValueError(f"{self._kind}: g_idx must be None: 2:4 weights have no act-order")
        origin = torch.full_like(q, 8)
        if zero_point is not None:
            group = max(q.shape[1], 1) if self.group == -1 else self.group
            origin = zero_point.T.repeat_interleave(group, 1)[:, : q.shape[1]]
        is_weight = q != origin
        is_weight[mask_of_dense(dense_rows, len(q)).to(q.device)] = False
        require_mask(self._kind, is_weight, q)
        return pack_rows(q, keep_two(is_weight.char(), 1), dense_rows)

    def _zeros(self, n: int, k: int, device: torch.device) -> Tensor:
        return packed_zeros(n, k, torch.uint8, self._layout, device, 8)

    def _packed_shape(self, state: State, k: int) -> tuple[int, ...]:
        dense = count_dense(self._rows_in(state), self.out_features)
        return packed_sparse24_shape(self.out_features - dense, k, self.VALUES)

    @property
    def _has_gradient(self) -> bool:
        return False


class Sparse24Linear(PackedLinear):
    """nn.Linear with a 2:4 weight in f32, f16 or bf16. For inference only.

    in_features is a multiple of 4. `dtype` is that of the weight; x is cast to it, and the result has the
    dtype of x. A bf16 weight takes 9 bits instead of 16 in memory. .to() between CPU and CUDA repacks the
    weight; on CUDA it is f16 or bf16.

    Fill a new module, which is zero, with `from_pruned`, `from_linear` or `load_state_dict`. The state dict
    holds `weight_packed` uint8, `weight_format` int64 and `bias`. A loaded state dict sets the dtype, which
    stays under .half() and .to(dtype).
    """

    FORMATS: ClassVar = {6: CPU_LAYOUT, 9: CUDA_LAYOUT}
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
        require_groups_of_four(self, in_features)
        super().__init__(in_features, out_features, dtype)
        if self.weight_dtype not in WEIGHT_DTYPES:
            raise ValueError(f"{self._kind}: dtype must be f32, f16 or bf16, got {self.weight_dtype}")
        self._dtype, n = self.weight_dtype, out_features
        place = torch.empty(0, device=device).device
        self._layout = self._layout_for(place)
        packed = packed_zeros(n, in_features, self._dtype, self._layout, place)
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
        device = linear.weight.device
        sparse = compress_sparse24(pruned.weight.cpu(), pruned.mask.cpu())
        packed = pack_sparse24(sparse, _float_layout(device, pruned.weight.dtype)).to(device)
        module = cls._of_packed(packed)
        module.bias = checked_bias(cls.__name__, linear.bias)
        module.weight_dtype = linear.weight.dtype
        return module.train(linear.training)

    @classmethod
    def _of_packed(cls, packed: PackedSparse24) -> Self:
        module = cls(packed.k, packed.n, False, device="meta", dtype=packed.dtype)
        module._hold(packed)
        header = module._header(WEIGHT_DTYPES.index(packed.dtype))
        module.weight_format = torch.tensor(header, device=packed.device)
        return module

    @property
    def packed_weight(self) -> PackedSparse24:
        """The weight as lamina.ops.matmul_sparse24 takes it."""
        n, k = self.out_features, self.in_features
        return PackedSparse24(self.weight_packed, None, n, k, self._dtype, self._layout)

    def dequantize_weight(self) -> Tensor:
        """The weight [n, k] in f32 that this module computes with."""
        return self.packed_weight.decompress().float()

    def extra_repr(self) -> str:
        """The text in the parentheses of print(model)."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, dtype={self._dtype}"
        )

    def _part(self, n: Range, k: Range) -> Self:
        return self._of_packed(self.packed_weight.shard(n, k).clone())

    def _layout_for(self, device: torch.device) -> str:
        return _float_layout(device, self._dtype)

    def _product(self, rows: Tensor, residual: Tensor | None = None) -> Tensor:
        a = rows.to(self._dtype)
        return matmul_sparse24(a, self.packed_weight, bias=self.bias, residual=residual, out_dtype=rows.dtype)

    def _header_problem(self, more: list[int], state: State) -> str | None:
        if not 0 <= more[0] < len(WEIGHT_DTYPES):
            return f"weight_format[4] (dtype) must be below {len(WEIGHT_DTYPES)}, got {more[0]}"
        return packed_problem(self, self.out_features, WEIGHT_DTYPES[more[0]], state)

    def _adopt(self, more: list[int], state: State) -> None:
        self._dtype = WEIGHT_DTYPES[more[0]]
        self.weight_packed = torch.empty_like(state["weight_packed"], device=self.weight_packed.device)


def _float_layout(device: torch.device, dtype: torch.dtype) -> str:
    """The layout that the kernels of a device read."""
    if device.type == "cuda" and dtype == torch.float32:
        raise ValueError(
            "Sparse24Linear: the weight is f32, which CUDA kernels do not multiply; make the layer with "
            "dtype=torch.bfloat16 or torch.float16, or leave it on the CPU"
        )
    return sparse24_layout_for(device)
