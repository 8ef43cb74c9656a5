"""A linear layer on gemm_int8."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from lamina.nn.packed_linear import (
    PackedLinear,
    checked_bias,
    flag_problem,
    ordinary_tensors,
    require_loaded,
)
from lamina.ops import PackedInt8, gemm_int8, pack_int8, quantize_int8
from lamina.ops.pack_int8 import packed_shape
from lamina.quant import quantize_weight_int8


class Int8Linear(PackedLinear):
    """nn.Linear with an int8 weight: y = dequantize(quantize(x) @ w.T) + bias. For inference only.

    Activations [..., k] in f32, f16 or bf16 are quantised per token on the fly, symmetric or with a zero
    point (symmetric=False), which suits inputs mostly of one sign. The result has the dtype of the input.
    The weight is int8 with one scale per output channel, packed once for the kernels.

    A new module is zero; fill it with `from_linear` or `load_state_dict`. The state dict holds what the
    kernels read, all of it buffers: `weight_packed` int8, `weight_sums` int32, `weight_scale` f32,
    `weight_format` int64 and `bias`. `weight_scale` stays f32 under .half() and .to(dtype).
    """

    FORMATS: ClassVar = {1: PackedInt8.FORMAT}
    VERSION = PackedInt8.VERSION
    HEADER = 5  # [format, version, n, k, symmetric activations]
    DTYPES: ClassVar = {
        "weight_packed": (torch.int8,),
        "weight_sums": (torch.int32,),
        "weight_scale": (torch.float32,),
    }

    weight_sums: Tensor

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
        self.register_buffer(
            "weight_packed", torch.zeros(packed_shape(n, k), dtype=torch.int8, device=device)
        )
        self.register_buffer("weight_sums", torch.zeros(n, dtype=torch.int32, device=device))
        self.register_buffer("weight_scale", torch.ones(n, dtype=torch.float32, device=device))
        self.register_buffer("weight_format", torch.tensor(self._header(int(symmetric)), device=device))
        self.register_buffer("bias", torch.zeros(n, dtype=dtype, device=device) if bias else None)

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
        bias = checked_bias("Int8Linear", linear.bias)
        # On meta: the zeros of a new module would be allocated only to be dropped.
        n, k = linear.weight.shape
        module = cls(k, n, False, symmetric=symmetric, device="meta", dtype=linear.weight.dtype)
        packed = pack_int8(q).to(device)
        module.weight_packed = packed.data
        module.weight_sums = packed.column_sums
        module.weight_scale = scale.to(device)
        module.weight_format = torch.tensor(module._header(int(symmetric)), device=device)
        module.bias = bias
        return module.train(linear.training)

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

    def _product(self, rows: Tensor) -> Tensor:
        a = quantize_int8(rows, symmetric=self.symmetric)
        return gemm_int8(
            a.q,
            self.packed_weight,
            a.scale,
            self.weight_scale,
            a_zero_point=a.zero_point,
            bias=self.bias,
            out_dtype=rows.dtype,
        )

    def _header_problem(self, more: list[int], state: dict[str, Tensor]) -> str | None:
        return flag_problem("[4] (symmetric activations)", more[0])

    def _adopt(self, more: list[int], state: dict[str, Tensor]) -> None:
        self._symmetric = bool(more[0])
