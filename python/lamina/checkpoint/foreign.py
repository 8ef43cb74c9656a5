"""lamina.load_checkpoint."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from lamina.checkpoint.formats.layer import Activations, Int8Weight, Layer
from lamina.checkpoint.sources import Source, open_source
from lamina.checkpoint.tensors import Slot, bare, compute_buffers, slots
from lamina.compression.candidates import is_linear
from lamina.compression.reasons import extra_attributes, not_plain
from lamina.compression.schemes import SCHEMES
from lamina.compression.swap import leave_fused_paths, set_everywhere
from lamina.nn import Int4Linear, Int8Linear
from lamina.nn.packed_linear import PackedLinear, ordinary_tensors
from lamina.quant import QuantizedInt4

Model = TypeVar("Model", bound=nn.Module)
SHOWN = 5
IGNORED = ("*.rotary_emb.inv_freq", "*.masked_bias")  # of old checkpoints: constants of the architecture
CACHE_SCALES = ("k_scale", "v_scale")
KEEP = "float"
KEEP_ALL = "all float"  # in place of a value of `convert`, for dequantize=True


@dataclass(frozen=True)
class CheckpointReport:
    """The layers that load_checkpoint has made. Printing it gives a line for each kind of layer.

    layers        name of a layer -> the scheme of lamina.compress that computes it, or "float"
    converted     name of a layer -> what the file holds, and the root mean square error of the new weight
                  relative to the stored one; for layers that `convert` has quantised anew
    cache_scales  name of a tensor -> scale of a quantised key-value cache, for lamina.kv
    """

    layers: dict[str, str] = field(default_factory=dict)
    converted: dict[str, tuple[str, float]] = field(default_factory=dict)
    cache_scales: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        kinds = sorted(set(self.layers.values()))
        lines = [f"{kind}: {sum(kind == made for made in self.layers.values())} layers" for kind in kinds]
        for name, (stored, error) in self.converted.items():
            lines.append(f"{name}: {self.layers[name]} from {stored}, relative error {error:.2e}")
        if self.cache_scales:
            lines.append(f"key-value cache: {len(self.cache_scales)} scales")
        return "\n".join(lines)


class _Planned(NamedTuple):
    """A linear layer that gets the weight of the file."""

    names: list[str]
    module: nn.Linear
    own: frozenset[str]  # the last parts of the names of its tensors


def load_checkpoint(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    activations: str | None = None,
    convert: str | None = None,
    dequantize: bool = False,
    qzeros_borrow: bool | None = None,
    device: torch.device | str | None = None,
    ignore: Sequence[str] = (),
) -> CheckpointReport:
    """Loads a checkpoint of another quantiser into a float model; its weights are taken as they are.

    model        a float model of the architecture, on any device. On the meta device
                 (`with torch.device("meta"): ...`) it takes no memory. Linear layers that are quantised in
                 the checkpoint are replaced by packed layers, in place
    path         a folder with config.json and safetensors files (one, or shards with an index), or a .gguf
                 file. docs/checkpoint.md lists the formats. No package of the quantiser is needed, but gguf
                 for types of GGUF other than Q4_0, Q4_1 and Q8_0
    activations  "float" or "int8" per token: what multiplies the weights. None: what the checkpoint says.
                 8-bit weights have a product with int8 activations alone
    convert      for weights that no product takes as they are stored, such as float8 or 8-bit groups: a
                 scheme of lamina.compress, which quantises them anew, or "float", which keeps the layer
                 float. None: such a layer raises an error. The report has the error of each new weight
    dequantize   True: every layer becomes an nn.Linear with the values of the file, in the dtype of the
                 model's own weight, to compress the model anew or to compare with. `activations` and
                 `convert` must then be None
    qzeros_borrow  of 4-bit GPTQ: see Int4Linear.from_gptq
    device       device of the loaded tensors. None: each goes to the device of the model's own tensor, or to
                 the CPU if that one is on the meta device
    ignore       shell patterns of names of tensors that the model may lack
    returns      CheckpointReport, which can be printed
    Raises       ValueError for a format that lamina does not read, a damaged file, and a tensor that is
                 missing, unknown to the model, or of another shape or dtype; the message names the tensor,
                 what it is and what is allowed. FileNotFoundError without such a path. ImportError without
                 safetensors (pip install 'lamina[save]') or gguf (pip install 'lamina[gguf]')

    Files are mapped into memory and read one layer at a time. Names, shapes and dtypes are checked before
    the model changes. Float tensors are cast to the dtype of the model.
    """
    _check_arguments(model, activations, convert, dequantize)
    inner = bare(model)
    source = open_source(Path(path), inner, qzeros_borrow)
    compute_buffers(inner)
    planned, problems = _planned(inner, source)
    taken = {f"{name}.{part}" for layer in planned for name in layer.names for part in layer.own}
    replaced = {f"{name}." for layer in planned for name in layer.names}
    floats = [slot for slot in slots(inner) if slot.name.rpartition(".")[0] + "." not in replaced]
    problems += [*_differences(floats, source), *_unknown(floats, source, taken, ignore)]
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise ValueError(f"load_checkpoint: {path}: {'; '.join(problems[:SHOWN])}{more}")
    report = CheckpointReport(cache_scales=_cache_scales(source))
    target = None if device is None else torch.device(device)
    with torch.inference_mode(False), torch.no_grad():
        for layer in planned:
            _replace(inner, layer, source, activations, KEEP_ALL if dequantize else convert, target, report)
        _fill(floats, source, target)
    leave_fused_paths(inner)
    return report


def _check_arguments(
    model: nn.Module, activations: str | None, convert: str | None, dequantize: bool
) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"load_checkpoint: model must be a torch.nn.Module, got {type(model).__name__}")
    if activations not in (None, "float", "int8"):
        raise ValueError(f'load_checkpoint: activations = {activations!r}; allowed: None, "float", "int8"')
    if convert not in (None, KEEP, *SCHEMES):
        raise ValueError(
            f"load_checkpoint: convert = {convert!r}; allowed: None, {KEEP}, {', '.join(SCHEMES)}"
        )
    for name, value in (("activations", activations), ("convert", convert)):
        if dequantize and value is not None:
            raise ValueError(f"load_checkpoint: {name} = {value!r} with dequantize=True; allowed: None")


def _planned(model: nn.Module, source: Source) -> tuple[list[_Planned], list[str]]:
    """The layers to replace, and what is wrong with their tensors."""
    layers: dict[int, _Planned] = {}
    problems: list[str] = []
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, own in source.layers.items():
        if not source.format.is_packed(name, own):
            continue
        module = modules.get(name)
        if module is None:
            problems.append(f"{name} is a quantised layer of the checkpoint, and the model has no such layer")
        elif not is_linear(module) or not isinstance(module, nn.Linear) or not_plain(module):
            problems.append(f"{name} is a quantised linear layer; in the model it is {type(module).__name__}")
        else:
            everywhere = [other for other, shared in modules.items() if shared is module]
            layers.setdefault(id(module), _Planned([name, *everywhere], module, own))
            problems += _layer_problems(name, module, own, source)
    return list(layers.values()), problems


def _layer_problems(name: str, module: nn.Linear, own: frozenset[str], source: Source) -> Iterator[str]:
    n, k = module.out_features, module.in_features
    try:
        specs = source.format.specs(name, n, k, own)
    except ValueError as error:
        yield f"{name}: {error}"
        return
    for part, spec in specs.items():
        if part in own:
            problem = spec.problem(source.meta(f"{name}.{part}"))
            yield from [] if problem is None else [f"{name}.{part} {problem} for a layer of [{n}, {k}]"]
        elif spec.is_needed:
            yield f"{name}.{part} is missing"
    for part in sorted(own - {*specs, "bias"}):
        yield f"{name}.{part} is not a tensor of such a layer; allowed: {', '.join([*specs, 'bias'])}"
    if ("bias" in own) != (module.bias is not None):
        yield f"{name} has a bias in {'the checkpoint' if 'bias' in own else 'the model'} alone"


def _differences(floats: list[Slot], source: Source) -> Iterator[str]:
    """The slots of the model that the checkpoint cannot fill."""
    loaded = {id(slot.tensor) for slot in floats if slot.name in source.names}
    for slot in floats:
        if slot.name not in source.names:
            is_tied = id(slot.tensor) in loaded
            if not is_tied and slot.is_persistent:
                yield f"{slot.name} is missing"
            elif not is_tied and slot.tensor.is_meta:
                yield f"{slot.name} is on the meta device, and neither the checkpoint nor the model has it"
            continue
        stored = source.meta(slot.name)
        if stored.shape != slot.tensor.shape or stored.is_floating_point() != slot.tensor.is_floating_point():
            yield (
                f"{slot.name} is {_text(stored)}; allowed: {_text(slot.tensor)}"
                + (", of any float dtype" if slot.tensor.is_floating_point() else "")
            )


def _text(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _unknown(floats: list[Slot], source: Source, taken: set[str], ignore: Sequence[str]) -> Iterator[str]:
    known = {slot.name for slot in floats} | taken
    for name in sorted(source.names - known):
        is_scale = name.rpartition(".")[2] in CACHE_SCALES
        if not is_scale and not any(fnmatchcase(name, pattern) for pattern in (*IGNORED, *ignore)):
            yield f"{name} ({_text(source.meta(name))}) is in the checkpoint, and the model lacks it"


def _cache_scales(source: Source) -> dict[str, float]:
    names = sorted(name for name in source.names if name.rpartition(".")[2] in CACHE_SCALES)
    return {name: float(source.tensor(name).float().flatten()[0]) for name in names}


def _replace(
    model: nn.Module,
    layer: _Planned,
    source: Source,
    activations: str | None,
    convert: str | None,
    device: torch.device | None,
    report: CheckpointReport,
) -> None:
    name, old = layer.names[0], layer.module
    place = device or (torch.device("cpu") if old.weight.is_meta else old.weight.device)

    def get(part: str) -> Tensor:
        return source.tensor(f"{name}.{part}").to(place)

    bias = None if old.bias is None else get("bias").to(old.bias.dtype, copy=True)
    try:
        read = source.format.read(name, old.out_features, old.in_features, get, layer.own)
        module = _module_of(name, read, bias, old.weight.dtype, activations, convert, report)
    except (ValueError, RuntimeError) as error:
        raise type(error)(f"load_checkpoint: layer {name!r}: {error}") from error
    module.train(old.training)
    for at, value in extra_attributes(old).items():
        if not hasattr(module, at):
            setattr(module, at, value)
    set_everywhere(model, layer.names, module)
    report.layers[name] = _scheme_of(module)


@ordinary_tensors
def _module_of(
    name: str,
    read: Layer,
    bias: Tensor | None,
    dtype: torch.dtype,
    activations: str | None,
    convert: str | None,
    report: CheckpointReport,
) -> nn.Module:
    if convert == KEEP_ALL:
        return _float_linear(_values(read.weight).to(dtype), bias)
    wanted = read.activations if activations in (None, read.activations.dtype) else Activations(activations)
    if isinstance(read.weight, QuantizedInt4):
        if wanted.scale is not None or not wanted.symmetric:
            raise ValueError("4-bit weights have no product with static or asymmetric int8 activations")
        module: PackedLinear = Int4Linear.from_quantized(read.weight, bias, activations=wanted.dtype)
    elif isinstance(read.weight, Int8Weight):
        if wanted.dtype == "float":
            raise ValueError(
                '8-bit weights have no product with float activations; pass activations="int8" to quantise '
                "them per token"
            )
        module = Int8Linear.from_quantized(
            *read.weight, bias, symmetric=wanted.symmetric, input_scale=wanted.scale,
            input_zero_point=wanted.zero_point,
        )  # fmt: skip
    else:
        return _converted(name, read, bias, dtype, convert, report)
    module.weight_dtype = dtype
    return module


def _converted(
    name: str,
    read: Layer,
    bias: Tensor | None,
    dtype: torch.dtype,
    convert: str | None,
    report: CheckpointReport,
) -> nn.Module:
    """The layer of a weight that no product takes as it is stored."""
    assert isinstance(read.weight, Tensor)
    w = read.weight
    if convert is None and read.stored != "float":
        raise ValueError(
            f'no product takes its weight, {read.stored}; pass convert="w8a8" or another scheme to quantise '
            'it anew, or convert="float" to keep the layer float'
        )
    keep = convert == KEEP or read.stored == "float"
    linear = _float_linear(w.to(dtype) if keep else w, bias)
    if keep:
        return linear
    assert convert is not None
    module = SCHEMES[convert].convert(linear)
    module.weight_dtype = dtype
    error = (module.dequantize_weight() - w).double().norm() / w.double().norm().clamp(min=1e-300)
    report.converted[name] = (read.stored, float(error))
    return module


def _float_linear(w: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(w.shape[1], w.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(w, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear


def _values(weight: QuantizedInt4 | Int8Weight | Tensor) -> Tensor:
    """The weight [n, k] of a layer, in f32 if it is quantised."""
    if isinstance(weight, QuantizedInt4):
        return weight.dequantize()
    return weight.q.float() * weight.scale.float()[:, None] if isinstance(weight, Int8Weight) else weight


def _scheme_of(module: nn.Module) -> str:
    found = (
        scheme.name
        for scheme in SCHEMES.values()
        if isinstance(module, PackedLinear) and scheme.has_made(module)
    )
    return next(found, KEEP)


def _fill(floats: list[Slot], source: Source, device: torch.device | None) -> None:
    """Loads float tensors; slots that held one tensor hold one tensor again."""
    tied: dict[int, list[Slot]] = {}
    for slot in floats:
        tied.setdefault(id(slot.tensor), []).append(slot)
    floats.clear()
    while tied:  # pop the slots, which keep the old tensor alive
        _, places = tied.popitem()
        stored = next((slot for slot in places if slot.name in source.names), None)
        old = places[0].tensor
        if stored is None or not (stored.is_persistent or old.is_meta):
            continue
        place = device or (torch.device("cpu") if old.is_meta else old.device)
        tensor = source.tensor(stored.name).to(place, old.dtype, copy=True)
        for slot in places:
            slot.put(tensor)
            if slot.is_parameter:  # the first place has made it one
                tensor = slot.module.get_parameter(slot.attribute)
