"""The schemes of lamina.compress: which packed layer each makes of a linear layer."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from lamina._library import build_info
from lamina.compression.budget import OutputError
from lamina.nn import Int4Linear, Int8Linear, Sparse24Int4Linear, Sparse24Int8Linear, Sparse24Linear
from lamina.nn.packed_linear import PackedLinear
from lamina.nn.sparse24_rows import WithDenseRows
from lamina.ops import is_sparse24
from lamina.ops.pack_sparse24 import mask_of_dense
from lamina.quant import (
    gptq,
    prune_sparse24,
    prune_sparse24_int4,
    prune_sparse24_int8,
    quantize_weight_int4,
    quantize_weight_int8,
)
from lamina.quant.sparse24_masks import GROUP


class Rounded(NamedTuple):
    """A weight that a scheme has rounded with the Hessian of its inputs."""

    weight: Any  # QuantizedInt4, PrunedInt8 or PrunedInt4, as the scheme's convert takes it
    error: OutputError | None = None  # of a 2:4 weight
    dense: Any = None  # the weight for the dense scheme, a Rounded, where the layer may stay dense


@dataclass(frozen=True)
class Scheme:
    """One way to compress an nn.Linear."""

    name: str
    summary: str

    is_sparse: ClassVar = False  # whether its layers are 2:4
    is_calibrated: ClassVar = False  # whether it rounds with a Hessian

    @property
    def op(self) -> str:
        """The product whose limits hold for its layers; a 2:4 product has those of its dense twin."""
        raise NotImplementedError

    @property
    def max_k(self) -> int:
        """The most input features that the product takes."""
        limit: int = build_info()["limits"][self.op]["max_k"]
        return limit

    def blank(self, linear: nn.Linear) -> PackedLinear:
        """The packed layer that `linear` becomes, on the meta device: its structure without values."""
        raise NotImplementedError

    def problem(self, linear: nn.Linear) -> str | None:
        """Why this scheme cannot pack a layer that others can, or None."""
        return None

    def quantize(self, w: Tensor, hessian: Tensor | None) -> Rounded:
        """The weight [n, k] of a layer whose inputs have this Hessian; with None of a 2:4 scheme alone."""
        raise NotImplementedError

    def convert(self, linear: nn.Linear, rounded: Rounded | None = None) -> PackedLinear:
        """The packed layer that `linear` becomes. `rounded` is its weight if it was rounded beforehand."""
        raise NotImplementedError

    def has_made(self, module: PackedLinear) -> bool:
        """Whether this scheme makes layers like `module`; the group does not matter."""
        raise NotImplementedError


@dataclass(frozen=True)
class Int8Scheme(Scheme):
    """W8A8."""

    symmetric: bool  # activations

    layer: ClassVar[type[Int8Linear]] = Int8Linear

    @property
    def op(self) -> str:
        return "gemm_int8"

    def blank(self, linear: nn.Linear) -> PackedLinear:
        bias = linear.bias
        module = self.layer(
            linear.in_features, linear.out_features, bias is not None, symmetric=self.symmetric,
            device="meta", dtype=None if bias is None else bias.dtype,
        )  # fmt: skip
        module.weight_dtype = linear.weight.dtype  # the bias may have another dtype
        return module

    def convert(self, linear: nn.Linear, rounded: Rounded | None = None) -> PackedLinear:
        return self.layer.from_linear(linear, symmetric=self.symmetric)

    def has_made(self, module: PackedLinear) -> bool:
        return type(module) is self.layer and module.symmetric == self.symmetric


@dataclass(frozen=True)
class Int4Scheme(Scheme):
    """W4A16 and W4A8."""

    symmetric: bool  # weights
    activations: str
    group: int = 128
    scale_dtype: torch.dtype | None = None  # None is the dtype of the weight
    zero_point_dtype: torch.dtype | None = None  # of asymmetric weights; None is uint8

    is_calibrated: ClassVar = True
    layer: ClassVar[type[Int4Linear]] = Int4Linear

    @property
    def takes_float_zeros(self) -> bool:
        """Whether its zero points may be floats."""
        return not self.symmetric

    @property
    def op(self) -> str:
        return "gemm_int4_int8" if self.activations == "int8" else "gemm_int4"

    def blank(self, linear: nn.Linear) -> PackedLinear:
        module = self.layer(
            linear.in_features, linear.out_features, False, group=self.group, symmetric=self.symmetric,
            activations=self.activations, device="meta", dtype=self.scale_dtype or linear.weight.dtype,
        )  # fmt: skip
        module.weight_dtype = linear.weight.dtype
        if module.weight_zero_point is not None:
            module.weight_zero_point = module.weight_zero_point.to(self.zero_point_dtype or torch.uint8)
        if linear.bias is not None:  # its dtype may differ from that of the weight
            module.bias = linear.bias.detach().to("meta")
        return module

    def quantize(self, w: Tensor, hessian: Tensor | None) -> Rounded:
        assert hessian is not None
        return Rounded(gptq(w, hessian, self.group, **self._options))

    def convert(self, linear: nn.Linear, rounded: Rounded | None = None) -> PackedLinear:
        if rounded is not None:
            module = Int4Linear.from_quantized(rounded.weight, linear.bias, activations=self.activations)
            module.weight_dtype = linear.weight.dtype
            return module.train(linear.training)
        options = {**self._options, "group": self.group, "activations": self.activations}
        return self.layer.from_linear(linear, **options)

    @property
    def _options(self) -> dict[str, Any]:
        """The options of the quantiser, but for the group."""
        options: dict[str, Any] = {"symmetric": self.symmetric, "scale_dtype": self.scale_dtype}
        return options | ({"zero_point_dtype": self.zero_point_dtype} if self.takes_float_zeros else {})

    def has_made(self, module: PackedLinear) -> bool:
        return type(module) is self.layer and (module.symmetric, module.activations) == (
            self.symmetric,
            self.activations,
        )


@dataclass(frozen=True)
class Sparse24Scheme(Scheme):
    """The base class of the schemes with 2:4 weights."""

    # Blocks of rows that are dense, as in lamina.pack_sparse24.
    dense_rows: tuple[int, ...] = field(default=(), kw_only=True)

    is_sparse: ClassVar = True
    is_calibrated: ClassVar = True

    @property
    def dense(self) -> Scheme | None:
        """The scheme of layers that stay dense; None: they stay float."""
        return SCHEMES[self.name.removeprefix("sparse24-")]

    def problem(self, linear: nn.Linear) -> str | None:
        k = linear.in_features
        return f"its k = {k} is no multiple of {GROUP}" if k % GROUP else None

    def quantize(self, w: Tensor, hessian: Tensor | None) -> Rounded:
        w = w.detach()
        mask = w != 0 if is_sparse24(w) else None  # a weight that was pruned and trained keeps its mask
        pruned, values = self.prune(w, hessian, mask)
        return Rounded(pruned, OutputError(w, values, hessian))

    def blank(self, linear: nn.Linear) -> PackedLinear:
        module = super().blank(linear)
        if self.dense_rows:
            assert isinstance(module, WithDenseRows)
            module.reserve(self.dense_rows)
        return module

    def with_dense_rows(self, w: Tensor, rounded: Rounded) -> Rounded:
        """The weight whose dense rows are as the dense scheme rounds them."""
        is_dense = mask_of_dense(self.dense_rows, len(w)).to(w.device)
        return rounded._replace(weight=self.merged(w.detach(), rounded, is_dense))

    def merged(self, w: Tensor, rounded: Rounded, is_dense: Tensor) -> Any:
        """The rounded weight, whose rows `is_dense` [n] are those of the dense scheme."""
        raise NotImplementedError

    def prune(self, w: Tensor, hessian: Tensor | None, mask: Tensor | None) -> tuple[Any, Tensor]:
        """The pruned and rounded weight, and its values."""
        raise NotImplementedError


@dataclass(frozen=True)
class Sparse24Int8Scheme(Sparse24Scheme, Int8Scheme):
    """W8A8 with 2:4 weights."""

    layer: ClassVar[type[Int8Linear]] = Sparse24Int8Linear

    def prune(self, w: Tensor, hessian: Tensor | None, mask: Tensor | None) -> tuple[Any, Tensor]:
        pruned = prune_sparse24_int8(w, hessian, mask=mask)
        return pruned, pruned.q * pruned.scale[:, None]

    def merged(self, w: Tensor, rounded: Rounded, is_dense: Tensor) -> Any:
        q, scale = quantize_weight_int8(w.cpu())
        pruned, where = rounded.weight, is_dense.cpu()
        return pruned._replace(
            q=torch.where(where[:, None], q, pruned.q.cpu()),
            scale=torch.where(where, scale, pruned.scale.cpu()),
        )

    def convert(self, linear: nn.Linear, rounded: Rounded | None = None) -> PackedLinear:
        if rounded is None:
            return super().convert(linear)
        return Sparse24Int8Linear.from_pruned(
            linear, rounded.weight, symmetric=self.symmetric, dense_rows=self.dense_rows
        )


@dataclass(frozen=True)
class Sparse24Int4Scheme(Sparse24Scheme, Int4Scheme):
    """W4A16 and W4A8 with 2:4 weights."""

    layer: ClassVar[type[Int4Linear]] = Sparse24Int4Linear

    @property
    def dense(self) -> Scheme | None:
        scheme = super().dense
        assert isinstance(scheme, Int4Scheme)
        return replace(scheme, group=self.group, scale_dtype=self.scale_dtype)

    @property
    def takes_float_zeros(self) -> bool:
        """False: the code of a pruned weight is its zero point."""
        return False

    def prune(self, w: Tensor, hessian: Tensor | None, mask: Tensor | None) -> tuple[Any, Tensor]:
        pruned = prune_sparse24_int4(w, hessian, self.group, mask=mask, **self._options)
        return pruned, pruned.quantized.dequantize()

    def merged(self, w: Tensor, rounded: Rounded, is_dense: Tensor) -> Any:
        if rounded.dense is None:
            dense = quantize_weight_int4(w, self.group, search=True, **self._options)
        else:
            dense = rounded.dense.weight
        sparse = rounded.weight.quantized
        zero_point = sparse.zero_point
        if zero_point is not None and dense.zero_point is not None:
            zero_point = torch.where(is_dense, dense.zero_point, zero_point)
        merged = sparse._replace(
            q=torch.where(is_dense[:, None], dense.q, sparse.q),
            scale=torch.where(is_dense, dense.scale, sparse.scale),
            zero_point=zero_point,
        )
        return rounded.weight._replace(quantized=merged)

    def convert(self, linear: nn.Linear, rounded: Rounded | None = None) -> PackedLinear:
        if rounded is None:
            return super().convert(linear)
        return Sparse24Int4Linear.from_pruned(
            linear, rounded.weight, activations=self.activations, dense_rows=self.dense_rows
        )


@dataclass(frozen=True)
class Sparse24FloatScheme(Sparse24Scheme):
    """2:4 weights and activations in a float dtype."""

    dtype: torch.dtype

    @property
    def op(self) -> str:
        return "gemm_int4"  # which has the limit of every float sum

    @property
    def dense(self) -> Scheme | None:
        return None

    def blank(self, linear: nn.Linear) -> PackedLinear:
        k, n = linear.in_features, linear.out_features
        module = Sparse24Linear(k, n, False, device="meta", dtype=self.dtype)
        module.bias = None if linear.bias is None else linear.bias.detach().to("meta")
        module.weight_dtype = linear.weight.dtype
        return module

    def prune(self, w: Tensor, hessian: Tensor | None, mask: Tensor | None) -> tuple[Any, Tensor]:
        pruned = prune_sparse24(w.to(self.dtype), hessian, mask=mask)
        return pruned, pruned.weight

    def convert(self, linear: nn.Linear, rounded: Rounded | None = None) -> PackedLinear:
        if rounded is None:
            return Sparse24Linear.from_linear(linear, dtype=self.dtype)
        return Sparse24Linear.from_pruned(linear, rounded.weight)

    def has_made(self, module: PackedLinear) -> bool:
        return isinstance(module, Sparse24Linear) and module.packed_weight.dtype == self.dtype


SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Int8Scheme("w8a8", "int8 weights per channel, int8 activations per token", True),
        Int8Scheme("w8a8_asymmetric", "as w8a8, activations with a zero point", False),
        Int4Scheme("w4a16", "int4 weights per group, float activations", True, "float"),
        Int4Scheme("w4a16_asymmetric", "as w4a16, weights with zero points", False, "float"),
        Int4Scheme("w4a8", "int4 weights per group, int8 activations per token", True, "int8"),
        Int4Scheme("w4a8_asymmetric", "as w4a8, weights with zero points", False, "int8"),
        Sparse24Int8Scheme("sparse24-w8a8", "2:4 int8 weights per channel, int8 activations", True),
        Sparse24Int8Scheme(
            "sparse24-w8a8_asymmetric", "as sparse24-w8a8, activations with a zero point", False
        ),
        Sparse24FloatScheme("sparse24-bf16", "2:4 weights and activations in bfloat16", torch.bfloat16),
        Sparse24Int4Scheme("sparse24-w4a16", "2:4 int4 weights per group, float activations", True, "float"),
        Sparse24Int4Scheme("sparse24-w4a16_asymmetric", "as sparse24-w4a16, zero points", False, "float"),
        Sparse24Int4Scheme("sparse24-w4a8", "2:4 int4 weights per group, int8 activations", True, "int8"),
        Sparse24Int4Scheme("sparse24-w4a8_asymmetric", "as sparse24-w4a8, zero points", False, "int8"),
    )
}
