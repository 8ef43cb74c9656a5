"""The schemes of lamina.compress: which packed layer each makes of a linear layer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from lamina._library import build_info
from lamina.nn import Int4Linear, Int8Linear
from lamina.nn.packed_linear import PackedLinear
from lamina.quant import QuantizedInt4, gptq


@dataclass(frozen=True)
class Scheme:
    """One way to compress an nn.Linear."""

    name: str
    summary: str

    @property
    def op(self) -> str:
        """The product that its layers call."""
        raise NotImplementedError

    @property
    def max_k(self) -> int:
        """The most input features that the product takes."""
        limit: int = build_info()["limits"][self.op]["max_k"]
        return limit

    def blank(self, linear: nn.Linear) -> PackedLinear:
        """The packed layer that `linear` becomes, on the meta device: its structure without values."""
        raise NotImplementedError

    def convert(self, linear: nn.Linear, quantized: QuantizedInt4 | None = None) -> PackedLinear:
        """The packed layer that `linear` becomes. `quantized` is its weight if calibration has rounded it."""
        raise NotImplementedError

    def has_made(self, module: PackedLinear) -> bool:
        """Whether this scheme makes layers like `module`; the group does not matter."""
        raise NotImplementedError


@dataclass(frozen=True)
class Int8Scheme(Scheme):
    """W8A8."""

    symmetric: bool  # activations

    @property
    def op(self) -> str:
        return "gemm_int8"

    def blank(self, linear: nn.Linear) -> PackedLinear:
        bias = linear.bias
        module = Int8Linear(
            linear.in_features, linear.out_features, bias is not None, symmetric=self.symmetric,
            device="meta", dtype=None if bias is None else bias.dtype,
        )  # fmt: skip
        module.weight_dtype = linear.weight.dtype  # the bias may have another dtype
        return module

    def convert(self, linear: nn.Linear, quantized: QuantizedInt4 | None = None) -> PackedLinear:
        return Int8Linear.from_linear(linear, symmetric=self.symmetric)

    def has_made(self, module: PackedLinear) -> bool:
        return type(module) is Int8Linear and module.symmetric == self.symmetric


@dataclass(frozen=True)
class Int4Scheme(Scheme):
    """W4A16 and W4A8."""

    symmetric: bool  # weights
    activations: str
    group: int = 128

    @property
    def op(self) -> str:
        return "gemm_int4_int8" if self.activations == "int8" else "gemm_int4"

    def blank(self, linear: nn.Linear) -> PackedLinear:
        module = Int4Linear(
            linear.in_features, linear.out_features, False, group=self.group, symmetric=self.symmetric,
            activations=self.activations, device="meta", dtype=linear.weight.dtype,
        )  # fmt: skip
        if linear.bias is not None:  # its dtype may differ from that of the weight
            module.bias = linear.bias.detach().to("meta")
        return module

    def quantize(self, w: Tensor, hessian: Tensor) -> QuantizedInt4:
        """GPTQ of the weight [n, k] of a layer whose inputs have this Hessian."""
        return gptq(w, hessian, self.group, symmetric=self.symmetric)

    def convert(self, linear: nn.Linear, quantized: QuantizedInt4 | None = None) -> PackedLinear:
        if quantized is not None:
            module = Int4Linear.from_quantized(quantized, linear.bias, activations=self.activations)
            return module.train(linear.training)
        return Int4Linear.from_linear(
            linear, group=self.group, symmetric=self.symmetric, activations=self.activations
        )

    def has_made(self, module: PackedLinear) -> bool:
        return type(module) is Int4Linear and (module.symmetric, module.activations) == (
            self.symmetric,
            self.activations,
        )


SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Int8Scheme("w8a8", "int8 weights per channel, int8 activations per token", True),
        Int8Scheme("w8a8_asymmetric", "as w8a8, activations with a zero point", False),
        Int4Scheme("w4a16", "int4 weights per group, float activations", True, "float"),
        Int4Scheme("w4a16_asymmetric", "as w4a16, weights with zero points", False, "float"),
        Int4Scheme("w4a8", "int4 weights per group, int8 activations per token", True, "int8"),
        Int4Scheme("w4a8_asymmetric", "as w4a8, weights with zero points", False, "int8"),
    )
}
