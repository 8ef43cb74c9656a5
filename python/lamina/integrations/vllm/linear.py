"""Linear layers of vLLM with int4 and int8 weights, computed by lamina's products.

vLLM makes the parameters, loads a checkpoint into them, shards them, and asks kernels in order whether they
can compute a layer. These kernels pack the loaded weights in place: a layer keeps one copy of its weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from vllm.model_executor.kernels.linear import Int8ScaledMMLinearKernel, MPLinearKernel
from vllm.model_executor.layers.quantization.utils import replace_parameter
from vllm.platforms import current_platform

from lamina.checkpoint.formats.words import unpack_columns
from lamina.integrations.vllm import option
from lamina.nn import Int4Linear
from lamina.ops import PackedInt4, PackedInt8, gemm_int8, pack_int8, quantize_int8
from lamina.ops.gemm_int4 import GROUP_STEP
from lamina.ops.pack_int4 import layout_for
from lamina.quant import QuantizedInt4

MIN_CAPABILITY = 80
BITS = 4


class LaminaInt4LinearKernel(MPLinearKernel):  # type: ignore[misc]
    """Weights uint4b8, or uint4 with zero points, in groups: W4A16, or W4A8 by LAMINA_VLLM_ACTIVATIONS=int8.

    Reads what compressed-tensors, GPTQ and AWQ layers hand over, with a g_idx where the version of vLLM has
    one. After loading, the weight parameter is PackedInt4.data, scales and zero points are [groups, n], and
    the g_idx is the perm of the products.
    """

    @classmethod
    def get_min_capability(cls) -> int:
        return MIN_CAPABILITY

    @classmethod
    def can_implement(cls, c: Any) -> tuple[bool, str | None]:
        reason = int4_refusal(c, on_cpu=current_platform.is_cpu())
        return reason is None, reason

    def process_weights_after_loading(self, layer: Any) -> None:
        k, n = self.config.partition_weight_shape
        size = self.config.group_size
        g_idx = _parameter(layer, getattr(self, "w_gidx_name", None))
        zero_points = _parameter(layer, self.w_zp_name) if self.config.zero_points else None
        weight = QuantizedInt4(
            unpack_columns(_laid_out(_parameter(layer, self.w_q_name), output_dim=0), BITS, k),
            _laid_out(_parameter(layer, self.w_s_name), output_dim=1),
            None if zero_points is None else unpack_columns(_laid_out(zero_points, output_dim=1), BITS, n),
            max(k, 1) if size == -1 else size,
            g_idx if g_idx is not None and g_idx.numel() else None,
        )
        self.activations = option("LAMINA_VLLM_ACTIVATIONS")
        packed = Int4Linear.from_quantized(weight, activations=self.activations)
        self.group = packed.group
        replace_parameter(layer, self.w_q_name, packed.weight_packed)
        replace_parameter(layer, self.w_s_name, packed.weight_scale)
        for name, made in (("w_zp_name", packed.weight_zero_point), ("w_gidx_name", packed.perm)):
            if (of_layer := getattr(self, name, None)) is not None and hasattr(layer, of_layer):
                if made is None:
                    setattr(layer, of_layer, None)
                else:
                    replace_parameter(layer, of_layer, made)

    def apply_weights(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [..., k] -> [..., n] in the dtype of x."""
        k, n = self.config.partition_weight_shape
        perm = _parameter(layer, getattr(self, "w_gidx_name", None))
        weight = PackedInt4(
            getattr(layer, self.w_q_name), n, k if perm is None else len(perm), layout_for(x.device)
        )
        out = Int4Linear.PRODUCTS[self.activations](
            x.reshape(-1, k),
            weight,
            getattr(layer, self.w_s_name),
            group=self.group,
            w_zero_point=_parameter(layer, self.w_zp_name),
            bias=bias,
            out_dtype=x.dtype,
            perm=perm,
        )
        return out.view(*x.shape[:-1], n)


def int4_refusal(c: Any, on_cpu: bool) -> str | None:
    """Why lamina cannot compute a layer with the MPLinearLayerConfig c, or None."""
    wanted = "uint4" if c.zero_points else "uint4b8"
    if str(c.weight_type) != wanted:
        return f"weight_type is {c.weight_type}; allowed with zero_points = {c.zero_points}: {wanted}"
    if c.group_size != -1 and (c.group_size <= 0 or c.group_size % GROUP_STEP):
        return f"group_size is {c.group_size}; allowed: -1 and multiples of {GROUP_STEP}"
    allowed = (torch.float16, torch.bfloat16, *((torch.float32,) if on_cpu else ()))
    if c.act_type not in allowed:
        return f"act_type is {c.act_type}; allowed: {', '.join(map(str, allowed))}"
    if c.out_type not in (None, c.act_type):
        return f"out_type is {c.out_type}; allowed: None and act_type = {c.act_type}"
    return None


def _parameter(layer: Any, name: str | None) -> Any:
    return None if name is None else getattr(layer, name, None)


def _laid_out(parameter: Any, output_dim: int) -> Tensor:
    """A parameter of two dimensions with its output features along output_dim.

    Words of codes must be packed along the last dimension of the result, as compressed-tensors and GPTQ do.
    """
    is_turned = parameter.output_dim != output_dim
    if (packed := getattr(parameter, "packed_dim", None)) is not None and packed != (0 if is_turned else 1):
        raise ValueError(
            f"lamina: vLLM layer: a parameter {list(parameter.shape)} has output_dim = "
            f"{parameter.output_dim} and packed_dim = {packed}; codes of a weight must be packed along its "
            "input features, and zero points along the output features"
        )
    return cast(Tensor, parameter.data.T if is_turned else parameter.data).contiguous()


class LaminaInt8LinearKernel(Int8ScaledMMLinearKernel):  # type: ignore[misc]
    """int8 weights with a scale a channel or a tensor, times int8 activations: W8A8.

    Activations are quantised per token, or with the static scale of the checkpoint, symmetric or with zero
    points. After loading, the weight parameter is PackedInt8.data, azp_adj holds its column sums, and
    weight_scale is [n].
    """

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> tuple[bool, str | None]:
        if current_platform.is_cpu():
            return True, None
        if not current_platform.is_cuda():
            return False, "runs on CPUs and on CUDA"
        found = current_platform.get_device_capability()
        capability = compute_capability or (0 if found is None else found.to_int())
        if capability < MIN_CAPABILITY:
            return False, f"needs compute capability {MIN_CAPABILITY}; the device has {capability}"
        return True, None

    @classmethod
    def can_implement(cls, c: Any) -> tuple[bool, str | None]:
        return True, None

    def process_weights_after_loading(self, layer: Any) -> None:
        weight, scale, input_scale, input_zero_point, sums = self.layer_param_names
        n, self.k = getattr(layer, weight).shape
        packed = pack_int8(getattr(layer, weight).data)
        channels = _channel_scales(getattr(layer, scale).data, n, layer.logical_widths)
        replace_parameter(layer, weight, packed.data)
        replace_parameter(layer, sums, packed.column_sums)
        replace_parameter(layer, scale, channels)
        if self.config.is_static_input_scheme:
            zero_point = None if self.config.input_symmetric else getattr(layer, input_zero_point).data
            merged, zero_point = merge_input_ranges(getattr(layer, input_scale).data, zero_point)
            replace_parameter(layer, input_scale, merged)
            if zero_point is not None:
                replace_parameter(layer, input_zero_point, zero_point)

    def apply_weights(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [..., k] -> [..., n] in the dtype of x."""
        weight, scale, input_scale, input_zero_point, sums = (
            getattr(layer, name, None) for name in self.layer_param_names
        )
        assert weight is not None and scale is not None and sums is not None
        a = quantize_int8(
            x.reshape(-1, self.k),
            scale=input_scale,
            zero_point=input_zero_point,
            symmetric=self.config.input_symmetric,
        )
        out = gemm_int8(
            a.q,
            PackedInt8(weight, sums, len(scale), self.k),
            a.scale,
            scale,
            a_zero_point=a.zero_point,
            bias=bias,
            out_dtype=x.dtype,
        )
        return out.view(*x.shape[:-1], len(scale))


def _channel_scales(scale: Tensor, n: int, widths: Sequence[int]) -> Tensor:
    """Scales f32 [n], from scales [n, 1], from one, or from one for each layer that vLLM has fused."""
    flat = scale.float().flatten()
    if flat.numel() == n:
        return flat.contiguous()
    if flat.numel() == 1:
        return flat.repeat(n)
    if flat.numel() != len(widths):
        raise ValueError(
            f"lamina: vLLM layer: weight_scale is {list(scale.shape)}; allowed: [{n}, 1], [1] or "
            f"[{len(widths)}]"
        )
    return flat.repeat_interleave(torch.tensor(list(widths), device=flat.device))


def merge_input_ranges(scale: Tensor, zero_point: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """One scale f32 [1], and one zero point int8 [1], whose range holds those of all fused layers.

    scale       [parts]  f32, of a static quantisation to int8
    zero_point  [parts]  int8; None: symmetric
    """
    scale = scale.float().flatten()
    if zero_point is None:
        return scale.max().reshape(1), None
    if scale.numel() == 1:  # keeps the bits of the scale
        return scale.reshape(1), zero_point.to(torch.int8).reshape(1)
    zero = zero_point.float().flatten()
    low, high = (scale * (-128 - zero)).min(), (scale * (127 - zero)).max()
    merged = (high - low) / 255
    return merged.reshape(1), (-128 - low / merged).round().to(torch.int8).reshape(1)
