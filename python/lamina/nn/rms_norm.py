"""The RMS norm of a transformer block on rms_norm and rms_norm_int8."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor, nn

from lamina.nn.packed_linear import TOKENWISE, Activations, PackedLinear
from lamina.nn.rows import as_rows
from lamina.ops import QuantizedInt8, rms_norm, rms_norm_int8


class RMSNorm(nn.Module):
    """LlamaRMSNorm of transformers on one kernel: weight * (x / rms(x)). For inference only.

    The input [..., n] is f32, f16 or bf16, of the dtype of `weight` [n]. Qwen, Mistral and others have the
    same norm. Gemma multiplies by 1 + weight: from_module adds the 1. `forward_quantized` gives the int8
    input that the layers after the norm share. `variance_epsilon` is eps.
    """

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-6,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size, device=device, dtype=dtype))
        self.variance_epsilon = eps

    @classmethod
    def from_module(cls, norm: nn.Module) -> RMSNorm:
        """Makes a norm that shares the weight of `norm`, a LlamaRMSNorm, torch.nn.RMSNorm or the like.

        eps is norm.variance_epsilon or norm.eps. The norm of Gemma, in f32, gives a norm with 1 + its weight;
        in f16 and bf16 the sum would be rounded.

        Raises   ValueError if `norm` has no such weight or eps, or if the two modules differ on a row of
                 numbers
        """
        kind, weight = type(norm).__name__, getattr(norm, "weight", None)
        eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
        if not isinstance(weight, nn.Parameter) or weight.dim() != 1 or weight.is_meta:
            raise ValueError(f"RMSNorm.from_module: {kind}.weight must be a parameter [n] that is loaded")
        if not isinstance(eps, float):
            raise ValueError(
                f"RMSNorm.from_module: {kind} must have a float variance_epsilon or eps, got {eps}"
            )
        module = cls(0, eps)
        module.weight = weight
        if not module._agrees_with(norm) and weight.dtype is torch.float32:
            module.weight = nn.Parameter(1 + weight.detach(), weight.requires_grad)
        if not module._agrees_with(norm):
            raise ValueError(
                f"RMSNorm.from_module: {kind} computes neither weight * (x / rms(x)) nor, in f32, that "
                "with 1 + weight; leave it as it is"
            )
        return module.train(norm.training)

    @overload
    def forward(self, x: Tensor, residual: None = ...) -> Tensor: ...
    @overload
    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]: ...

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """x [..., n] -> [..., n]; with a residual of the shape of x: (that, x + residual)."""
        rows, residual_rows = self._rows(x, residual)
        if residual_rows is None:
            return rms_norm(rows, self.weight, eps=self.variance_epsilon).view(x.shape)
        out, added = rms_norm(rows, self.weight, eps=self.variance_epsilon, residual=residual_rows)
        return out.view(x.shape), added.view(x.shape)

    @overload
    def forward_quantized(
        self, x: Tensor, residual: None = ..., *, symmetric: bool = ...
    ) -> QuantizedInt8: ...
    @overload
    def forward_quantized(
        self, x: Tensor, residual: Tensor, *, symmetric: bool = ...
    ) -> tuple[QuantizedInt8, Tensor]: ...

    def forward_quantized(
        self, x: Tensor, residual: Tensor | None = None, *, symmetric: bool = True
    ) -> QuantizedInt8 | tuple[QuantizedInt8, Tensor]:
        """quantize_int8 of the rows of forward(x, residual): q [m, n] for x [..., n] with m rows.

        With a residual: (that, x + residual in the shape of x). The result is the argument of
        Int8Linear.forward_quantized and of Int4Linear.forward_quantized.
        """
        rows, residual_rows = self._rows(x, residual)
        eps = self.variance_epsilon
        if residual_rows is None:
            return rms_norm_int8(rows, self.weight, eps=eps, symmetric=symmetric)
        q, added = rms_norm_int8(rows, self.weight, eps=eps, residual=residual_rows, symmetric=symmetric)
        return q, added.view(x.shape)

    def input_of(self, layer: PackedLinear, x: Tensor) -> Activations:
        """The rows of forward(x), as layer.multiply takes them with the least work.

        They are int8 where the layer, and all that share its input, quantises each token by itself.
        """
        if layer.quantizes in TOKENWISE:
            return self.forward_quantized(x, symmetric=layer.quantizes == "symmetric")
        return as_rows(self.forward(x))

    def extra_repr(self) -> str:
        """The text in the parentheses of print(model)."""
        return f"{len(self.weight)}, eps={self.variance_epsilon}"

    def _rows(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor | None]:
        weight = self.weight
        n = weight.shape[0]
        if x.dim() == 0 or x.shape[-1] != n:
            raise ValueError(f"RMSNorm: x must be [..., n] with n = {n}, got {list(x.shape)}")
        if residual is not None and residual.shape != x.shape:
            raise ValueError(f"RMSNorm: residual must be {list(x.shape)} like x, got {list(residual.shape)}")
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, residual)):
            raise RuntimeError(
                "lamina.nn.RMSNorm has no backward pass, and its input or its weight requires grad; "
                "call the model under torch.inference_mode() or torch.no_grad()"
            )
        return as_rows(x), None if residual is None else as_rows(residual)

    @torch.no_grad()
    def _agrees_with(self, norm: nn.Module) -> bool:
        weight = self.weight
        x = torch.linspace(-1.0, 3.0, len(weight), device=weight.device, dtype=weight.dtype)[None]
        want = norm(x)
        # Other modules may round in other places: at most three times more or less.
        most = 4 * torch.finfo(weight.dtype).eps * want.abs() + torch.finfo(weight.dtype).tiny
        return want.dtype == weight.dtype and bool(((self(x) - want).abs() <= most).all())
