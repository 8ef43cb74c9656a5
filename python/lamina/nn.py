"""Modules that hold packed weights and run on lamina's ops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lamina.ops import gemm_int8, quantize_int8
from lamina.pack import PackedInt8, pack_int8, packed_shape
from lamina.quant import WEIGHT_DTYPES, quantize_weight_int8, require_finite

# weight_format is [format, version, n, k, symmetric activations]. The shape alone does not say what a weight
# is: k = 65 and k = 100 pack into the same.
FORMAT_INT8_TILE = 1


class Int8Linear(nn.Module):
    """nn.Linear with an int8 weight: y = dequantize(quantize(x) @ w.T) + bias. For inference only.

    Activations [..., k] in f32, f16 or bf16 are quantised per token on the fly, symmetric or with a zero
    point (symmetric=False), which suits inputs mostly of one sign. The result has the dtype of the input.
    The weight is int8 with one scale per output channel, packed once for the kernels.

    A new module is zero; fill it with `from_linear` or `load_state_dict`. Saved is what the kernels read:
    `weight_packed` int8, `weight_sums` int32, `weight_scale` f32, `weight_format` int64, `bias`: buffers all.
    `weight_scale` stays f32 under .half() and .to(dtype).
    """

    weight_packed: Tensor
    weight_sums: Tensor
    weight_scale: Tensor
    weight_format: Tensor
    bias: Tensor | None

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
        super().__init__()
        if in_features < 0 or out_features < 0:
            raise ValueError(
                f"Int8Linear: in_features = {in_features} and out_features = {out_features} must be >= 0"
            )
        self.in_features = in_features
        self.out_features = out_features
        self._symmetric = symmetric
        n, k = out_features, in_features
        header = torch.tensor([FORMAT_INT8_TILE, PackedInt8.VERSION, n, k, int(symmetric)], device=device)
        self.register_buffer(
            "weight_packed", torch.zeros(packed_shape(n, k), dtype=torch.int8, device=device)
        )
        self.register_buffer("weight_sums", torch.zeros(n, dtype=torch.int32, device=device))
        self.register_buffer("weight_scale", torch.ones(n, dtype=torch.float32, device=device))
        self.register_buffer("weight_format", header)
        self.register_buffer("bias", torch.zeros(n, dtype=dtype, device=device) if bias else None)

    @classmethod
    def from_linear(cls, linear: nn.Linear, *, symmetric: bool = True) -> Int8Linear:
        """The int8 form of `linear`, which is left as it is; it must hold finite f32, f16 or bf16.

        Quantised and packed on the CPU wherever `linear` is, so its bytes are the same from every device;
        the result is where `linear` is.
        """
        weight, bias = linear.weight, linear.bias
        if weight.is_meta:
            raise ValueError("Int8Linear.from_linear: the weight is on the meta device; load the model first")
        q, scale = quantize_weight_int8(weight.detach().cpu())
        if bias is not None:
            if bias.dtype not in WEIGHT_DTYPES:
                raise ValueError(f"Int8Linear.from_linear: bias must be f32, f16 or bf16, got {bias.dtype}")
            require_finite("Int8Linear.from_linear: bias", bias)
        # On meta: the zeros of a new module would be allocated only to be dropped.
        module = cls(linear.in_features, linear.out_features, False, symmetric=symmetric, device="meta")
        packed = pack_int8(q).to(weight.device)
        header = [FORMAT_INT8_TILE, packed.VERSION, packed.n, packed.k, int(symmetric)]
        module.weight_packed = packed.data
        module.weight_sums = packed.column_sums
        module.weight_scale = scale.to(weight.device)
        module.weight_format = torch.tensor(header, device=weight.device)
        module.bias = None if bias is None else bias.detach().clone()
        return module.train(linear.training)

    @property
    def symmetric(self) -> bool:
        """Whether activations are quantised without a zero point; a loaded state dict decides it."""
        return self._symmetric

    @property
    def packed_weight(self) -> PackedInt8:
        """The weight as lamina.ops.gemm_int8 takes it."""
        return PackedInt8(self.weight_packed, self.weight_sums, self.out_features, self.in_features)

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(buffer.nbytes for buffer in self.buffers())

    def dequantize_weight(self) -> Tensor:
        """The weight [n, k] in f32 that this module computes with."""
        return self.packed_weight.unpack().float() * self.weight_scale[:, None]

    def forward(self, x: Tensor) -> Tensor:
        """x [..., k] in f32, f16 or bf16 -> [..., n] in the dtype of x."""
        if x.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                "lamina.nn.Int8Linear has no backward pass, and its input requires grad; "
                "call the model under torch.inference_mode() or torch.no_grad()"
            )
        if x.dim() == 0 or x.shape[-1] != self.in_features:
            raise ValueError(
                f"Int8Linear: x must be [..., k] with k = {self.in_features}, got {list(x.shape)}"
            )
        rows = x.flatten(0, -2) if x.dim() > 1 else x.unsqueeze(0)
        if rows.stride(1) != 1:
            rows = rows.contiguous()
        a = quantize_int8(rows, symmetric=self.symmetric)
        out = gemm_int8(
            a.q,
            self.packed_weight,
            a.scale,
            self.weight_scale,
            a_zero_point=a.zero_point,
            bias=self.bias,
            out_dtype=x.dtype,
        )
        return out.reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """What print(model) shows."""
        activations = "symmetric" if self.symmetric else "asymmetric"
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, activations={activations}"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Int8Linear:
        scale, shape = self.weight_scale, self.weight_packed.shape
        # Flat meanwhile: .to(memory_format=...) gives every 5-D tensor other strides.
        self.weight_packed = self.weight_packed.reshape(-1)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.weight_packed = self.weight_packed.reshape(shape)
        if self.weight_scale.dtype is not torch.float32:  # .half() and its kin: follow the device only
            self.weight_scale = scale.to(self.weight_scale.device)
        return self

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
        problem = self._state_problem(state_dict, prefix)
        if problem is not None:
            error_msgs.append(f"{prefix.rstrip('.') or 'Int8Linear'}: {problem}")
            return
        header = state_dict.get(prefix + "weight_format")
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if header is not None and not header.is_meta:
            self._symmetric = bool(header[4].item())

    def _state_problem(self, state_dict: dict[str, Any], prefix: str) -> str | None:
        """Why the entries under prefix are not a weight for this module, or None.

        Copying would convert a wrong dtype without a word; only the header tells one layout from another.
        """
        if prefix + "weight" in state_dict and prefix + "weight_packed" not in state_dict:
            return (
                "the state dict holds a float weight; load it into the float model, then call lamina.compress"
            )
        header = state_dict.get(prefix + "weight_format")
        for name in ("weight_format", *_STATE_DTYPES):
            entry = state_dict.get(prefix + name)
            if entry is not None and not isinstance(entry, Tensor):
                return f"{name} must be a torch.Tensor, got {type(entry).__name__}"
        if header is None:
            return None if prefix + "weight_packed" not in state_dict else "weight_format is missing"
        if header.is_meta:
            return None
        if header.dtype is not torch.int64 or header.shape != (5,):
            return f"weight_format must be int64 [5], got {header.dtype} {list(header.shape)}"
        kind, version, n, k, symmetric = header.tolist()
        if kind != FORMAT_INT8_TILE:
            return f"weight_format is {kind}; this module reads {FORMAT_INT8_TILE} ({PackedInt8.FORMAT})"
        if version != PackedInt8.VERSION:
            return (
                f"weight format {PackedInt8.FORMAT} has version {version}; this lamina reads version "
                f"{PackedInt8.VERSION}; save the model again from its float weights"
            )
        if (n, k) != (self.out_features, self.in_features):
            return f"the weight is [{n}, {k}]; this module is [{self.out_features}, {self.in_features}]"
        if symmetric not in (0, 1):
            return f"weight_format[4] (symmetric activations) must be 0 or 1, got {symmetric}"
        for name, dtypes in _STATE_DTYPES.items():
            tensor = state_dict.get(prefix + name)
            if tensor is not None and tensor.dtype not in dtypes:
                allowed = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
                return f"{name} must be {allowed}, got {tensor.dtype}"
        return None


_STATE_DTYPES = {
    "weight_packed": (torch.int8,),
    "weight_sums": (torch.int32,),
    "weight_scale": (torch.float32,),
    "bias": WEIGHT_DTYPES,
}
