"""A linear layer on gemm_int4 or gemm_int4_int8."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lamina.nn.gptq_tensors import unpack_gptq
from lamina.nn.packed_linear import (
    PackedLinear,
    checked_bias,
    flag_problem,
    ordinary_tensors,
    require_loaded,
)
from lamina.nn.parts import Layer, part_of_int4
from lamina.ops import PackedInt4, PackedSparse24, QuantizedInt8, gemm_int4, gemm_int4_int8, pack_int4
from lamina.ops.decoder_layers import ProductKind
from lamina.ops.dequantize import add_to_features
from lamina.ops.gemm_int4 import GROUP_STEP
from lamina.ops.pack_int4 import CPU_LAYOUT, CUDA_LAYOUT, packed_int4_shape
from lamina.ops.tiles import Range
from lamina.quant import WEIGHT_DTYPES, QuantizedInt4, act_order, quantize_weight_int4
from lamina.quant.checks import ZERO_DTYPES, count_groups, is_group, require_g_idx, require_group

ACTIVATIONS = ("float", "int8")  # by their number in weight_format


class Int4Linear(PackedLinear):
    """nn.Linear with an int4 weight: y = x @ ((q - zero point) * scale).T + bias.

    activations  "float": W4A16, which multiplies x [..., k] in f32, f16 or bf16. "int8": W4A8, which
                 quantises x per token, symmetric. The result has the dtype of x. "float" has gradients of x
                 and bias, so that earlier layers can be trained; the weight has none
    group        input features that share a scale: a multiple of 16, or -1 for all of k. A group of k or
                 more means -1
    symmetric    True: there are no zero points stored; every zero point is 8

    A new module is zero; fill it with `from_linear`, `from_quantized`, `from_gptq` or `load_state_dict`.
    The state dict holds what the kernels read, all of it buffers: `weight_packed` uint8, `weight_scale`
    [groups, n], `weight_zero_point` uint8 or floats [groups, n] unless symmetric, `perm` int32 where a g_idx
    needs one (lamina.quant.act_order), `weight_format` int64 and `bias`. A loaded state dict sets group,
    symmetric, activations, perm and the dtype of the scales. Scales and zero points keep their dtype under
    .half() and .to(dtype), because the codes were made with them. On CUDA "float" takes x of f16 or bf16 and
    rounds both to the dtype of x.

    .to() between CPU and CUDA repacks the weight for the kernels of the new device, and so does loading the
    state dict of a module on another device.
    """

    FORMATS: ClassVar = {3: CPU_LAYOUT, 2: CUDA_LAYOUT}
    VERSION = PackedInt4.VERSION
    HEADER = 8  # [format, version, n, k, group, symmetric, activations, whether there is a perm]
    DTYPES: ClassVar = {
        "weight_packed": (torch.uint8,),
        "weight_scale": WEIGHT_DTYPES,
        "weight_zero_point": ZERO_DTYPES,
        "perm": (torch.int32,),
    }
    OPERANDS = ("weight_packed", "weight_scale")
    PRODUCTS: ClassVar[dict[str, Callable[..., Tensor]]] = {"float": gemm_int4, "int8": gemm_int4_int8}

    weight_scale: Tensor
    weight_zero_point: Tensor | None
    perm: Tensor | None

    @ordinary_tensors
    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        group: int = 128,
        symmetric: bool = True,
        activations: str = "float",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, dtype)
        require_group("Int4Linear", group)
        _require_activations(activations)
        n, k = out_features, in_features
        more = [group if group < k else -1, int(symmetric), ACTIVATIONS.index(activations), 0]
        self._set(more)
        scales = (count_groups(k, self.group), n)
        zero_point = None if symmetric else torch.full(scales, 8, dtype=torch.uint8, device=device)
        place = torch.empty(0, device=device).device
        self._layout = self._layout_for(place)
        self.register_buffer("weight_packed", self._zeros(n, k, place))
        self.register_buffer("weight_scale", torch.ones(scales, dtype=dtype, device=device))
        self.register_buffer("weight_zero_point", zero_point)
        self.register_buffer("perm", None)
        self.register_buffer("weight_format", torch.tensor(self._header(*more), device=device))
        self.register_buffer("bias", torch.zeros(n, dtype=dtype, device=device) if bias else None)

    @classmethod
    @ordinary_tensors
    def from_linear(
        cls,
        linear: nn.Linear,
        *,
        group: int = 128,
        symmetric: bool = True,
        activations: str = "float",
        search: bool = True,
        scale_dtype: torch.dtype | None = None,
        zero_point_dtype: torch.dtype | None = None,
    ) -> Int4Linear:
        """Makes an int4 layer from `linear`, rounded to nearest, with the options of quantize_weight_int4.

        `linear` must hold finite f32, f16 or bf16, and is not changed.
        The CPU quantises the weight wherever `linear` is, so that the codes are the same from every device.
        The device of `linear` packs them, and holds the result.
        """
        require_loaded("Int4Linear", linear.weight)
        weight = linear.weight.detach()
        quantized = quantize_weight_int4(
            weight.cpu(), group, symmetric=symmetric, scale_dtype=scale_dtype,
            zero_point_dtype=zero_point_dtype, search=search,
        )  # fmt: skip
        module = cls.from_quantized(quantized.to(weight.device), linear.bias, activations=activations)
        module.weight_dtype = weight.dtype
        return module.train(linear.training)

    @classmethod
    @ordinary_tensors
    def from_quantized(
        cls,
        quantized: QuantizedInt4,
        bias: Tensor | None = None,
        *,
        activations: str = "float",
        **options: Any,
    ) -> Int4Linear:
        """Makes a layer from a weight that is quantised already (lamina.quant) and a copy of `bias` [n]."""
        q, scale, zero_point, group, g_idx = quantized
        if q.dim() != 2:
            raise ValueError(f"Int4Linear: q must be 2-D [n, k], got {q.dim()}-D {list(q.shape)}")
        n, k = q.shape
        symmetric, perm = zero_point is None, None
        if g_idx is not None:
            require_g_idx("Int4Linear", g_idx, k, len(scale))
            perm, group, rows = act_order(g_idx)
            scale, zero_point = scale[rows], None if zero_point is None else zero_point[rows]
        group = group if group < (k if perm is None else len(perm)) else -1
        module = cls(
            k, n, False, group=group, symmetric=symmetric, activations=activations,
            device="meta", dtype=scale.dtype,
        )  # fmt: skip
        state = {"weight_scale": scale, "weight_zero_point": zero_point, "perm": perm}
        given = {name: tensor for name, tensor in state.items() if tensor is not None}
        problem = module._dtype_problem(given) or module._shape_problem(given, group)
        if problem is None and bias is not None and bias.shape != (n,):
            problem = f"bias must be [n] with n = {n}, got {list(bias.shape)}"
        if problem is not None:
            raise ValueError(f"Int4Linear: {problem}")
        module._layout = module._layout_for(q.device)
        module._own(module._packed(q, zero_point, perm, **options), scale.detach(), zero_point, perm, group)
        copied = checked_bias("Int4Linear", bias)
        module.bias = None if copied is None else copied.to(q.device)
        return module

    @classmethod
    def from_gptq(
        cls,
        qweight: Tensor,
        qzeros: Tensor,
        scales: Tensor,
        g_idx: Tensor | None,
        bias: Tensor | None = None,
        *,
        checkpoint_format: str = "gptq",
        qzeros_borrow: bool | None = None,
        activations: str = "float",
    ) -> Int4Linear:
        """Makes a layer from a 4-bit layer of AutoGPTQ or GPTQModel, or from a slice of one along k or n.

        qweight  [k / 8, n]  int32, eight codes along k in an element, the first in its low bits
        qzeros   [groups, n / 8]  int32, likewise along n
        scales   [groups, n]  f16 | bf16 | f32, finite, of any sign
        g_idx    [k]  int32, the group of each input feature, with or without act-order (desc_act). If it is
                 None, or 0 everywhere beside several groups, groups are consecutive input features
        bias     [n]  f32 | f16 | bf16
        checkpoint_format  "gptq": qzeros hold zero points minus one; "gptq_v2": they hold zero points. Some
                 files name the wrong format, so qzeros that are all 8 are refused as "gptq"
        qzeros_borrow  "gptq" stores a zero point of 0 as 15. True: the writer then borrowed from the next
                 code of the int32, which is one too small (GPTQModel). False: the writer did not borrow
                 (AutoGPTQ, neural-compressor). None: if the two readings differ, a ValueError shows both
        Raises   ValueError naming argument, value and allowed values

        AutoGPTQ on x86 overwrote the codes that follow a zero point of 0 in its int32 with 15.
        qzeros_borrow=False reads those as 0, as AutoGPTQ's kernels do.
        A slice along k has all groups of the layer, or only the group in which it lies. The outputs of the
        slices add up to the output of the layer.
        """
        quantized = unpack_gptq(qweight, qzeros, scales, g_idx, checkpoint_format, qzeros_borrow)
        return cls.from_quantized(quantized, bias, activations=activations)

    @property
    def group(self) -> int:
        """Input features that share a scale, -1 for all."""
        return self._group

    @property
    def symmetric(self) -> bool:
        """Whether the weight has no zero points."""
        return self._symmetric

    @property
    def activations(self) -> str:
        """The activations that the product takes, "float" or "int8". Assigning to it keeps the weight."""
        return self._activations

    @activations.setter
    @ordinary_tensors
    def activations(self, wanted: str) -> None:
        _require_activations(wanted)
        self._activations = wanted
        self.weight_format = self.weight_format.clone()  # tied layers share it
        self.weight_format[6] = ACTIVATIONS.index(wanted)

    @property
    def packed_weight(self) -> PackedInt4:
        """The weight as lamina.ops.gemm_int4 takes it."""
        held: dict[str, Any] = self._buffers  # nn.Module.__getattr__ takes long to find a buffer
        return PackedInt4(held["weight_packed"], self.out_features, self.packed_features, self._layout)

    @property
    def packed_features(self) -> int:
        """k of packed_weight: with a perm the number of its entries."""
        perm = self._buffers["perm"]
        return self.in_features if perm is None else len(perm)

    def dequantize_weight(self) -> Tensor:
        """The weight [n, k] in f32 that this module computes with."""
        group = max(self.packed_features, 1) if self.group == -1 else self.group
        q = self.packed_weight.unpack()
        weight = QuantizedInt4(q, self.weight_scale, self.weight_zero_point, group).dequantize()
        return weight if self.perm is None else add_to_features(weight, self.perm, self.in_features)

    def extra_repr(self) -> str:
        """The text in the parentheses of print(model)."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, group={self.group}, symmetric={self.symmetric}, "
            f"activations={self.activations}" + ("" if self.perm is None else ", act_order=True")
        )

    @property
    def _has_gradient(self) -> bool:
        return self.activations == "float"

    def _own(
        self,
        packed: PackedInt4 | PackedSparse24,
        scale: Tensor,
        zero: Tensor | None,
        perm: Tensor | None,
        group: int,
    ) -> None:
        """Takes a packed weight and a perm, and copies of scales and zero points, all on one device."""
        self._hold(packed)
        self.perm = perm
        self.weight_scale = scale.clone()
        self.weight_zero_point = None if zero is None else zero.clone()
        self._group = group if group < self.packed_features else -1
        more = (self.group, int(self.symmetric), ACTIVATIONS.index(self.activations), int(perm is not None))
        self.weight_format = torch.tensor(self._header(*more), device=packed.device)

    def _part(self: Layer, n: Range, k: Range) -> Layer:
        return part_of_int4(self, n, k)

    @property
    def quantizes(self) -> str | None:
        return "symmetric" if self.activations == "int8" else None

    @property
    def _product_kind(self) -> ProductKind | None:
        return ProductKind.W4A8 if self._activations == "int8" else ProductKind.W4A16

    def _product(self, rows: Tensor, residual: Tensor | None = None) -> Tensor:
        return self._multiply(rows, rows.dtype, residual=residual)

    def _product_int8(self, a: QuantizedInt8, dtype: torch.dtype, residual: Tensor | None) -> Tensor:
        return self._multiply(a.q, dtype, a_scale=a.scale, a_zero_point=a.zero_point, residual=residual)

    def _multiply(
        self,
        rows: Tensor,
        dtype: torch.dtype,
        a_scale: Tensor | None = None,
        a_zero_point: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        held: dict[str, Any] = self._buffers  # nn.Module.__getattr__ takes long to find a buffer
        scale, zero_point = held["weight_scale"], held["weight_zero_point"]
        bias, is_int8 = self._bias, self._activations == "int8"
        if self._is_ready(rows, CPU_LAYOUT):
            of_a = (a_scale, zero_point, a_zero_point) if is_int8 else (zero_point,)
            try:
                out: Tensor = (torch.ops.lamina.gemm_int4_int8 if is_int8 else torch.ops.lamina.gemm_int4)(
                    rows, held["weight_packed"], scale, self._group, *of_a, bias, dtype, None, None, residual,
                    held["perm"], None,
                )  # fmt: skip
                return out
            except (RuntimeError, TypeError, ValueError):
                pass  # the function below raises an error that names the argument
        of_a8 = {"a_scale": a_scale, "a_zero_point": a_zero_point} if is_int8 else {}
        if rows.is_cuda and self.activations == "float":
            scale = scale.to(rows.dtype)  # itself, where it has that dtype
            if zero_point is not None and zero_point.is_floating_point():
                zero_point = zero_point.to(rows.dtype)
        return self.PRODUCTS[self._activations](
            rows,
            self.packed_weight,
            scale,
            group=self._group,
            w_zero_point=zero_point,
            bias=bias,
            out_dtype=dtype,
            residual=residual,
            perm=held["perm"],
            **of_a8,
        )

    def _packed_shape(self, state: dict[str, Tensor], k: int) -> tuple[int, ...]:
        """Shape of weight_packed in a state dict, for k packed features."""
        return packed_int4_shape(self.out_features, k)

    def _packed(
        self, q: Tensor, zero_point: Tensor | None, perm: Tensor | None
    ) -> PackedInt4 | PackedSparse24:
        """The codes [n, k] in the layout of this module."""
        return pack_int4(q, self._layout, perm)

    def _zeros(self, n: int, k: int, device: torch.device) -> Tensor:
        """Packed codes 8, with their padding."""
        if device.type == "meta":
            return torch.empty(packed_int4_shape(n, k), dtype=torch.uint8, device=device)
        return self._packed(torch.full((n, k), 8, dtype=torch.uint8, device=device), None, None).data

    def _set(self, more: list[int]) -> None:
        self._group, self._symmetric, self._activations = more[0], bool(more[1]), ACTIVATIONS[more[2]]

    def _header_problem(self, more: list[int], state: dict[str, Tensor]) -> str | None:
        group, symmetric, activations, has_perm = more
        if not is_group(group):
            return f"weight_format[4] (group) must be a positive multiple of {GROUP_STEP}, or -1, got {group}"
        problem = flag_problem("[5] (symmetric)", symmetric) or flag_problem("[6] (activations)", activations)
        if problem is None and bool(symmetric) == ("weight_zero_point" in state):
            there = "there" if symmetric else "missing"
            problem = f"weight_zero_point is {there}, and weight_format[5] (symmetric) is {symmetric}"
        problem = problem or flag_problem("[7] (perm)", has_perm)
        if problem is None and bool(has_perm) != ("perm" in state):
            problem = (
                f"perm is {'missing' if has_perm else 'there'}, and weight_format[7] (perm) is {has_perm}"
            )
        for name in ("weight_packed", "weight_scale"):
            if name not in state:
                problem = problem or f"{name} is missing"
        return problem or self._shape_problem(state, group)

    def _shape_problem(self, state: dict[str, Tensor], group: int) -> str | None:
        k = self.in_features
        if (perm := state.get("perm")) is not None:
            if perm.dim() != 1:
                return f"perm must be 1-D, got {list(perm.shape)}"
            if perm.numel() and not perm.is_meta and not -1 <= perm.min() <= perm.max() < k:
                return f"perm must hold -1 to {k - 1}, got {perm.min()} to {perm.max()}"
            k = len(perm)
        scales = (count_groups(k, group), self.out_features)
        shapes = {
            "weight_packed": self._packed_shape(state, k),
            "weight_scale": scales,
            "weight_zero_point": scales,
        }
        for name, shape in shapes.items():
            if name in state and state[name].shape != shape:
                return f"{name} must be {list(shape)}, got {list(state[name].shape)}"
        return None

    def _adopt(self, more: list[int], state: dict[str, Tensor]) -> None:
        self._set(more)
        device = self.weight_packed.device
        for name in ("weight_zero_point", "perm"):
            loaded = state.get(name)
            setattr(self, name, None if loaded is None else torch.empty_like(loaded, device=device))
        if self.weight_packed.shape != state["weight_packed"].shape:
            self.weight_packed = torch.empty_like(state["weight_packed"], device=device)
        self.weight_scale = torch.empty_like(state["weight_scale"], device=device)


def _require_activations(wanted: str) -> None:
    if wanted not in ACTIVATIONS:
        raise ValueError(f'Int4Linear: activations = {wanted!r}; allowed: "float", "int8"')
