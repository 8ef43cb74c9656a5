"""Layers of compressed-tensors (quant_method "compressed-tensors"), which llm-compressor writes."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lamina.checkpoint.formats import sparse24
from lamina.checkpoint.formats.layer import (
    FLOAT,
    FLOATS,
    INT8,
    Activations,
    Get,
    Int8Weight,
    Layer,
    Spec,
    dequantized,
    groups_of,
)
from lamina.checkpoint.formats.words import unpack_columns, unpack_rows
from lamina.quant import QuantizedInt4

FP8 = (torch.float8_e4m3fn,)
INTS = (torch.int32,)
FORMATS = (
    *("dense", "pack-quantized", "int-quantized", "float-quantized", "naive-quantized"),
    *("sparse-24-bitmask", "marlin-24"),
)


class CompressedTensors:
    """Reads quantization_config of config.json; a layer belongs to the first group that targets its name."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.format = str(config.get("format", "dense"))
        self.version = str(config.get("version", "unknown"))
        self.groups = [group for group in dict(config.get("config_groups") or {}).values()]
        sparsity = dict(config.get("sparsity_config") or {})
        self.is_bitmask = sparsity.get("format") == "sparse-24-bitmask" or self.format == "sparse-24-bitmask"
        for name in (self.format, sparsity.get("format", "dense")):
            if name not in FORMATS:
                raise ValueError(f"format is {name!r}; allowed: {', '.join(FORMATS)}")

    def is_packed(self, name: str, own: frozenset[str]) -> bool:
        return bool(own & {"weight_packed", "compressed", "weight_scale"})

    def specs(self, name: str, n: int, k: int, own: frozenset[str]) -> Mapping[str, Spec]:
        if "meta" in own:
            return _marlin_specs(self._weights(name), n, k)
        if "weight_packed" in own:
            return _packed_specs(self._weights(name), n, k)
        specs = self._bitmask_specs(n, k) if "compressed" in own else {}
        if "weight_scale" not in own:
            return specs
        scheme = self._weights(name)
        dtypes = (torch.int8,) if scheme["type"] == "int" else FP8
        if "compressed" in own:
            specs["compressed"] = Spec(dtypes, ((n, k // 2),))
        else:
            specs["weight"] = Spec(dtypes, ((n, k),))
        scales = _scale_shapes(scheme, n, k)
        specs["weight_scale"] = Spec(FLOATS, scales)
        specs["weight_zero_point"] = Spec((torch.int8, *FP8), scales, is_needed=not scheme["symmetric"])
        specs["input_scale"] = Spec(FLOATS, ((), (1,)), is_needed=self._is_static(name))
        specs["input_zero_point"] = Spec((torch.int8, *FP8), ((), (1,)), is_needed=False)
        return specs

    def read(self, name: str, n: int, k: int, get: Get, own: frozenset[str]) -> Layer:
        if "meta" in own:
            return _read_marlin(self._weights(name), k, get, self.version)
        if "weight_packed" in own:
            return _read_packed(self._weights(name), n, k, get, own)
        w = _from_bitmask(n, k, get) if "compressed" in own else get("weight")
        if "weight_scale" not in own:
            return Layer(w, stored="float")
        scheme = self._weights(name)
        scale, zero = get("weight_scale"), get("weight_zero_point") if "weight_zero_point" in own else None
        if scheme["type"] == "float":
            values = dequantized(w.float(), scale.reshape(-1, 1).expand(n, 1), None, -1)
            return Layer(values, stored="float8_e4m3fn (float-quantized)")
        return _read_int8(scheme, w, scale, zero, self._activations(name, get, own), "int-quantized")

    def _scheme(self, name: str) -> Mapping[str, Any]:
        for group in self.groups:
            if any(_targets(str(target), name) for target in group.get("targets", ["Linear"])):
                found: Mapping[str, Any] = group
                return found
        raise ValueError("no group of quantization_config.config_groups targets it")

    def _weights(self, name: str) -> dict[str, Any]:
        weights = dict(self._scheme(name).get("weights") or {})
        kind, bits = weights.get("type", "int"), weights.get("num_bits", 8)
        if (kind, bits) not in (("int", 4), ("int", 8), ("float", 8)):
            raise ValueError(f"its weights are {kind} of {bits} bits; allowed: int of 4 or 8, float of 8")
        strategy = weights.get("strategy") or ("group" if weights.get("group_size", -1) > 0 else "channel")
        if strategy not in ("tensor", "channel", "group"):
            raise ValueError(f"strategy is {strategy!r}; allowed: 'tensor', 'channel', 'group'")
        group = int(weights["group_size"]) if strategy == "group" else -1
        return {
            "type": kind,
            "bits": bits,
            "group": group,
            "is_tensor": strategy == "tensor",
            "symmetric": bool(weights.get("symmetric", True)),
            "is_int8_activated": _is_int8(self._scheme(name).get("input_activations")),
        }

    def _is_static(self, name: str) -> bool:
        inputs = self._scheme(name).get("input_activations") or {"dynamic": True}
        return not inputs.get("dynamic", False)

    def _activations(self, name: str, get: Get, own: frozenset[str]) -> Activations:
        inputs = self._scheme(name).get("input_activations")
        if not inputs:
            return FLOAT
        if not _is_int8(inputs):
            raise ValueError(
                f"its activations are {inputs.get('type')} of {inputs.get('num_bits')} bits; int of 8 is"
            )
        symmetric = bool(inputs.get("symmetric", True))
        if not self._is_static(name):
            return Activations("int8", symmetric)
        scale = get("input_scale").float().reshape(1)
        if symmetric:
            return Activations("int8", True, scale)
        return Activations("int8", False, scale, get("input_zero_point").reshape(1))

    def _bitmask_specs(self, n: int, k: int) -> dict[str, Spec]:
        return {
            "compressed": Spec((*FLOATS, torch.int8, *FP8), ((n, k // 2),)),
            "bitmask": Spec((torch.uint8,), ((n, -(-k // 8)),)),
            "shape": Spec((torch.int64,), ((2, 1), (2,))),
        }


def _is_int8(inputs: Any) -> bool:
    return bool(inputs) and (inputs.get("type", "int"), inputs.get("num_bits", 8)) == ("int", 8)


def _targets(target: str, name: str) -> bool:
    """Whether a target of a group, a class, a name or a pattern "re:...", means this linear layer."""
    if target.startswith("re:"):
        return re.match(target[3:], name) is not None
    return target in ("Linear", name)


def _scale_shapes(scheme: Mapping[str, Any], n: int, k: int) -> tuple[tuple[int, ...], ...]:
    if scheme["is_tensor"]:
        return (1,), (), (1, 1)
    return ((n, groups_of(k, scheme["group"])),) + (((n,),) if scheme["group"] == -1 else ())


def _packed_specs(scheme: Mapping[str, Any], n: int, k: int) -> dict[str, Spec]:
    per_word = 32 // scheme["bits"]
    groups = groups_of(k, scheme["group"])
    return {
        "weight_packed": Spec(INTS, ((n, -(-k // per_word)),)),
        "weight_scale": Spec(FLOATS, _scale_shapes(scheme, n, k)),
        "weight_shape": Spec((torch.int64, torch.int32), ((2,),), is_needed=False),
        "weight_zero_point": Spec(INTS, ((-(-n // per_word), groups),), is_needed=not scheme["symmetric"]),
        "weight_g_idx": Spec((torch.int32, torch.int64), ((k,),), is_needed=False),
    }


def _read_packed(scheme: Mapping[str, Any], n: int, k: int, get: Get, own: frozenset[str]) -> Layer:
    bits, group = scheme["bits"], scheme["group"]
    if "weight_shape" in own and (shape := get("weight_shape").tolist()) != [n, k]:
        raise ValueError(f"weight_shape is {shape}; the model's layer is {[n, k]}")
    q = unpack_columns(get("weight_packed"), bits, k)
    groups = groups_of(k, group)
    scale = get("weight_scale").reshape(-1, groups).expand(n, groups)
    zero = None if scheme["symmetric"] else unpack_rows(get("weight_zero_point"), bits, n)
    g_idx = get("weight_g_idx").int() if "weight_g_idx" in own else None
    if g_idx is not None and (not g_idx.numel() or bool((g_idx < 0).all())):
        g_idx = None  # compressed-tensors fills an index that is not used with -1
    activations = INT8 if scheme["is_int8_activated"] else FLOAT
    if bits == 4:
        zero_point = None if zero is None else zero.T.contiguous()
        size = max(k, 1) if group == -1 else group
        return Layer(QuantizedInt4(q, scale.T.contiguous(), zero_point, size, g_idx), activations)
    if g_idx is not None:
        raise ValueError("it has a weight_g_idx beside 8-bit weights; allowed: 4-bit weights")
    signed = (q ^ 128).view(torch.int8)
    shift = None if zero is None else zero.int() - 128
    return _read_int8(scheme, signed, scale, shift, activations, "pack-quantized")


def _read_int8(
    scheme: Mapping[str, Any],
    q: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    activations: Activations,
    stored: str,
) -> Layer:
    """An int8 weight as it is where one scale a channel is enough; otherwise its values."""
    n = q.shape[0]
    if zero is not None and bool((zero == 0).all()):
        zero = None
    if scheme["group"] == -1 and zero is None:
        return Layer(Int8Weight(q, scale.float().reshape(-1, 1).expand(n, 1)[:, 0].contiguous()), activations)
    kind = "in groups" if scheme["group"] != -1 else "with zero points"
    groups = groups_of(q.shape[1], scheme["group"])
    wide = [None if t is None else t.reshape(-1, groups).expand(n, groups) for t in (scale, zero)]
    assert wide[0] is not None
    w = dequantized(q, wide[0], wide[1], scheme["group"])
    return Layer(w, activations, f"8-bit integers {kind} ({stored})")


def _marlin_specs(scheme: Mapping[str, Any], n: int, k: int) -> dict[str, Spec]:
    return {
        "weight_packed": Spec(INTS, ((k // 32, n * scheme["bits"] // 2),)),
        "scale_packed": Spec((torch.float16,), ((groups_of(k, scheme["group"]), n),)),
        "meta": Spec((torch.int16,), ((k // 32, 2 * n),)),
    }


def _read_marlin(scheme: Mapping[str, Any], k: int, get: Get, version: str) -> Layer:
    group = None if scheme["group"] == -1 else scheme["group"]
    if group is not None and group < k // 2 and re.match(r"unknown|0\.[0-7](\.|$)", version):
        text = (
            f"lamina.load_checkpoint: version of this marlin-24 checkpoint is {version}: compressed-tensors "
            "before 0.8 wrote the scales of groups in another order, with which the weights come out wrong"
        )
        warnings.warn(text, stacklevel=2)
    read = sparse24.from_marlin24(
        get("weight_packed"), get("scale_packed"), get("meta"), scheme["bits"], group
    )
    if scheme["bits"] == 4:
        return Layer(QuantizedInt4(read.weight.decompress(fill=8), read.scale, None, read.group))
    return _read_int8(scheme, read.weight.decompress(), read.scale.T, None, FLOAT, "marlin-24")


def _from_bitmask(n: int, k: int, get: Get) -> Tensor:
    if (shape := get("shape").flatten().tolist()) != [n, k]:
        raise ValueError(f"shape is {shape}; the model's layer is {[n, k]}")
    values, dtype = get("compressed"), get("compressed").dtype
    if dtype in FP8:  # the bits of a zero are zero too
        values = values.view(torch.uint8)
    return sparse24.from_bitmask(values, get("bitmask"), n, k).decompress().view(dtype)
