"""lamina.compress: swaps the linear layers of a model for packed ones, in place, and reports what it did."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lamina._checks import call, require_optional_int
from lamina._int4 import require_group
from lamina.calibration import Calibration, quantize_calibrated
from lamina.nn.packed_linear import PackedLinear
from lamina.quant import WEIGHT_DTYPES, QuantizedInt4, require_finite
from lamina.report import CompressionReport, CompressionRow
from lamina.schemes import SCHEMES, Int4Scheme, Scheme

__all__ = ["SCHEMES", "compress"]

Item = TypeVar("Item")
Skip = str | Callable[[str, nn.Module], bool]


def compress(
    model: nn.Module,
    scheme: str = "w8a8",
    *,
    group: int | None = None,
    calibration: Calibration | None = None,
    skip: Skip | Sequence[Skip] = (),
    skip_growing: bool = True,
    dry_run: bool = False,
    progress: bool | None = None,
) -> CompressionReport:
    """Replaces the nn.Linear layers of `model` by packed ones, in place, for inference.

    model         any nn.Module with nn.Linear layers inside, on any device: weights are quantised and packed
                  on the CPU, one layer at a time, and the result is where the layer was. Nothing is changed
                  unless all layers can be.
    scheme        one of lamina.compression.SCHEMES: "w8a8", "w8a8_asymmetric"; "w4a16", "w4a8" and the same
                  with "_asymmetric", which run on the CPU only
    group         w4 schemes: input features that share a scale, a multiple of 16, or -1 for all; None is 128.
                  A layer's last group may be ragged, and a layer of fewer input features has one
    calibration   w4 schemes: inputs of the model, some hundred typical ones. Each is a tensor, a mapping of
                  keyword arguments or a sequence of positional ones; or a function that runs the model it is
                  given. The float model runs on them, and weights are rounded by GPTQ (lamina.quant.gptq),
                  on the layers' device, instead of to nearest. It costs the Hessians, 4 k^2 bytes a layer:
                  where they exceed 2 GiB the model runs again for the next layers. A layer that no input
                  reaches warns and is rounded to nearest
    skip          layers to leave: shell patterns on qualified names ("lm_head", "*.attention.*") and
                  functions (name, module) -> bool. A pattern that matches no layer warns.
    skip_growing  True: leave layers that packing would make larger, as it does below a tile of 16 x 64
    dry_run       report only. Works on a model on the meta device too.
    progress      True: show a bar (needs rich); None: if rich is installed and stderr is a terminal
    returns       CompressionReport: one row per layer, with the reason where it was left; print it
    Raises        ValueError for an unknown scheme, an option that the scheme lacks, a model that is itself an
                  nn.Linear, a NaN or Inf in a weight or in a layer's calibration inputs, naming the layer,
                  and a LAMINA_CPU_ISA that cannot run

    A module registered in several places is packed once and stays shared; so does a weight or a bias that
    several nn.Linear share. A layer whose weight something else uses (a tied embedding,
    nn.MultiheadAttention) is left, with a reason.
    """
    chosen = _check_arguments(model, scheme, group, calibration)
    filters = _check_filters(skip)
    candidates = _find_linears(model)
    reasons = _skip_reasons(model, candidates, filters, chosen, skip_growing)
    if not dry_run:
        call(torch.ops.lamina.cpu_isa)  # a bad LAMINA_CPU_ISA is no fault of a layer
        for candidate in candidates:
            if candidate.name not in reasons:
                _require_packable(candidate)
    quantized: dict[str, QuantizedInt4] = {}  # by the first layer that has the weight
    if calibration is not None and isinstance(chosen, Int4Scheme) and not dry_run:
        packed = [candidate for candidate in candidates if candidate.name not in reasons]
        quantized = _calibrate(model, packed, calibration, chosen, progress)

    model_bytes = _tensor_bytes(model)
    rows: list[CompressionRow] = []
    ledger = _Ledger(chosen, _kept(model, candidates, reasons))
    replaced: dict[str, nn.Module] = {}  # by the first layer that has the weight
    biases: dict[str, nn.Module] = {}  # by the first layer that has the bias
    for candidate in _with_progress(candidates, len(candidates), "compressing", progress):
        row = ledger.row(candidate, reasons.get(candidate.name))
        rows.append(row)
        if row.action == "compress" and not dry_run:
            module = _convert(candidate, chosen, quantized.get(candidate.weight_owner))
            _share(module, replaced.setdefault(candidate.weight_owner, module), chosen.weight_buffers)
            _share(module, biases.setdefault(candidate.bias_owner, module), ("bias",))
            for name in candidate.names:
                parent, _, attribute = name.rpartition(".")
                setattr(model.get_submodule(parent), attribute, module)
        candidate.release()
    if not dry_run:
        _leave_fused_paths(model)
    return CompressionReport(scheme, dry_run, tuple(rows), model_bytes)


class _Candidate:
    """An nn.Linear, all its names, and the first layers with the same weight and bias (mostly itself)."""

    def __init__(self, names: list[str], linear: nn.Linear, weight_owner: str, bias_owner: str) -> None:
        self.names = names
        self.weight_owner = weight_owner
        self.bias_owner = bias_owner
        self._linear: nn.Linear | None = linear

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def linear(self) -> nn.Linear:
        assert self._linear is not None, "used after release"
        return self._linear

    def release(self) -> None:
        """Drops the float weight: compressing a model must not need a second copy of all of them."""
        self._linear = None


def _check_arguments(
    model: nn.Module, scheme: str, group: int | None, calibration: Calibration | None
) -> Scheme:
    if not isinstance(model, nn.Module):
        raise TypeError(f"compress: model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, nn.Linear):
        raise ValueError(
            "compress: model is itself an nn.Linear, which cannot be swapped in place; "
            "use lamina.nn.Int8Linear.from_linear(model) or lamina.nn.Int4Linear.from_linear(model)"
        )
    if not isinstance(scheme, str) or scheme not in SCHEMES:
        raise ValueError(f"compress: scheme must be one of {', '.join(SCHEMES)}, got {scheme!r}")
    chosen = SCHEMES[scheme]
    if isinstance(chosen, Int4Scheme):
        require_optional_int("compress", "group", group)
        require_group("compress", chosen.group if group is None else group)
        return chosen if group is None else replace(chosen, group=group)
    for name, value in (("group", group), ("calibration", calibration)):
        if value is not None:
            allowed = ", ".join(s.name for s in SCHEMES.values() if isinstance(s, Int4Scheme))
            raise ValueError(f"compress: {name} was given with scheme {scheme}; allowed with {allowed}")
    return chosen


def _check_filters(skip: Skip | Sequence[Skip]) -> Sequence[Skip]:
    filters = [skip] if isinstance(skip, str) or not isinstance(skip, Sequence) else skip
    for wanted in filters:
        if not isinstance(wanted, str) and (isinstance(wanted, type) or not callable(wanted)):
            raise TypeError(
                f"compress: skip must hold name patterns or functions (name, module) -> bool, got {wanted!r}"
            )
    return filters


def _find_linears(model: nn.Module) -> list[_Candidate]:
    names: dict[nn.Linear, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Linear):
            names.setdefault(module, []).append(name)
    weights: dict[int, str] = {}
    biases: dict[int, str] = {}
    return [
        _Candidate(
            all_names,
            linear,
            weights.setdefault(_parameter_id(linear, "weight"), all_names[0]),
            biases.setdefault(_parameter_id(linear, "bias"), all_names[0]),
        )
        for linear, all_names in names.items()
    ]


def _parameter_id(linear: nn.Linear, name: str) -> int:
    """Of the layer itself without such a parameter: a parametrized one is computed anew by every access."""
    tensor = None if parametrize.is_parametrized(linear) else getattr(linear, name)
    return id(linear if tensor is None else tensor)


def _skip_reasons(
    model: nn.Module,
    candidates: list[_Candidate],
    filters: Sequence[Skip],
    scheme: Scheme,
    must_shrink: bool,
) -> dict[str, str]:
    """The reason per layer that is left, by the first of its names."""
    reasons = _filtered(candidates, filters)
    for candidate in candidates:
        if candidate.name not in reasons and (reason := _unsuitable(model, candidate, scheme, must_shrink)):
            reasons[candidate.name] = reason
    kept = _kept(model, candidates, reasons)
    for candidate in candidates:
        tied = kept.get(id(candidate.linear.weight))
        if candidate.name not in reasons and tied:
            reasons[candidate.name] = f"its weight is also {tied}, which stays float"
    return reasons


def _kept(model: nn.Module, candidates: list[_Candidate], reasons: dict[str, str]) -> dict[int, str]:
    """The parameters that stay, by id, each with a name: those of every module that is not packed."""
    packed = {name for c in candidates if c.name not in reasons for name in c.names}
    kept: dict[int, str] = {}
    for name, module in model.named_modules():
        if name not in packed:
            for parameter_name, parameter in module.named_parameters(recurse=False):
                kept.setdefault(id(parameter), ".".join(part for part in (name, parameter_name) if part))
    return kept


def _filtered(candidates: list[_Candidate], filters: Sequence[Skip]) -> dict[str, str]:
    reasons: dict[str, str] = {}
    for wanted in filters:
        matched = False
        for candidate in candidates:
            if isinstance(wanted, str):
                hit = any(fnmatchcase(name, wanted) for name in candidate.names)
                reason = f"skip pattern {wanted!r}"
            else:
                hit = any(wanted(name, candidate.linear) for name in candidate.names)
                reason = f"skip function {getattr(wanted, '__name__', repr(wanted))}"
            matched |= hit
            if hit:
                reasons.setdefault(candidate.name, reason)
        if not matched and isinstance(wanted, str):
            warnings.warn(f"lamina.compress: skip pattern {wanted!r} matches no nn.Linear", stacklevel=4)
    return reasons


def _unsuitable(model: nn.Module, candidate: _Candidate, scheme: Scheme, must_shrink: bool) -> str | None:
    linear = candidate.linear
    for name in candidate.names:
        if isinstance(model.get_submodule(name.rpartition(".")[0]), nn.MultiheadAttention):
            return "nn.MultiheadAttention reads its .weight"
    if parametrize.is_parametrized(linear):
        return "its weight is parametrized; torch.nn.utils.parametrize.remove_parametrizations makes it plain"
    if type(linear) is not nn.Linear:
        return f"{type(linear).__name__} is a subclass of nn.Linear, whose forward may differ"
    if "forward" in vars(linear):
        return "its forward was replaced on the instance"
    if linear._forward_hooks or linear._forward_pre_hooks:
        return "it has forward hooks, which would be lost"
    if linear.in_features > scheme.max_k:
        return (
            f"its k = {linear.in_features} is above {scheme.max_k}, the most that {scheme.name} sums exactly"
        )
    for tensor in (linear.weight, linear.bias):
        if tensor is not None and tensor.dtype not in WEIGHT_DTYPES:
            return f"its {tensor.dtype} is not float32, float16 or bfloat16"
    if must_shrink:
        before = _bytes([linear.weight, linear.bias])
        after = _bytes([*scheme.blank(linear).buffers()])
        if after > before:
            return f"it would grow from {before} to {after} bytes: weights are packed in tiles of 16 x 64"
    return None


def _require_packable(candidate: _Candidate) -> None:
    for what, tensor in (("weight", candidate.linear.weight), ("bias", candidate.linear.bias)):
        if tensor is None:
            continue
        if tensor.is_meta:
            raise ValueError(
                f"compress: {what} of layer {candidate.name!r} is on the meta device; load the model first "
                "(dry_run=True works without)"
            )
        require_finite(f"compress: {what} of layer {candidate.name!r}", tensor.detach())


class _Ledger:
    """Makes the rows of the report; counts a tensor that several layers share in one of them."""

    def __init__(self, scheme: Scheme, kept: Container[int]) -> None:
        self._scheme = scheme
        self._kept = kept
        self._floats: set[int] = set()  # ids of the model's own tensors, all alive when the ledger opens
        self._biases: set[str] = set()

    def row(self, candidate: _Candidate, reason: str | None) -> CompressionRow:
        linear = candidate.linear
        extents = (candidate.name, linear.out_features, linear.in_features)
        if reason is not None:
            count = self._first([linear.weight, linear.bias])
            return CompressionRow(*extents, "skip", reason, count, count)
        # What a layer that is left holds too stays in the model, and is counted there.
        before = self._first([t for t in (linear.weight, linear.bias) if id(t) not in self._kept])
        tied = candidate.weight_owner != candidate.name
        shared = set(self._scheme.weight_buffers) if tied else set()
        if candidate.bias_owner in self._biases:
            shared.add("bias")
        self._biases.add(candidate.bias_owner)
        after = _bytes([b for name, b in self._scheme.blank(linear).named_buffers() if name not in shared])
        reason = f"tied with {candidate.weight_owner}" if tied else ""
        return CompressionRow(*extents, "compress", reason, before, after)

    def _first(self, tensors: Sequence[Tensor | None]) -> int:
        """Bytes of the tensors that no row has counted yet."""
        new = [tensor for tensor in tensors if id(tensor) not in self._floats]
        # What a parametrization computes dies at once, and its id may come back.
        self._floats.update(id(tensor) for tensor in new if isinstance(tensor, nn.Parameter))
        return _bytes(new)


def _calibrate(
    model: nn.Module,
    candidates: list[_Candidate],
    calibration: Calibration,
    scheme: Int4Scheme,
    progress: bool | None,
) -> dict[str, QuantizedInt4]:
    layers: dict[str, list[nn.Linear]] = {}
    for candidate in candidates:
        layers.setdefault(candidate.weight_owner, []).append(candidate.linear)
    found = quantize_calibrated(model, layers, calibration, scheme.quantize)
    quantized: dict[str, QuantizedInt4] = {}
    for name, weight in _with_progress(found, len(layers), "calibrating", progress):
        if weight is None:
            text = f"lamina.compress: no calibration input reaches layer {name!r}: it is rounded to nearest"
            warnings.warn(text, stacklevel=3)
        else:
            quantized[name] = weight
    return quantized


def _convert(candidate: _Candidate, scheme: Scheme, quantized: QuantizedInt4 | None) -> nn.Module:
    try:
        return scheme.convert(candidate.linear, quantized)
    except (ValueError, RuntimeError) as error:
        raise type(error)(f"compress: layer {candidate.name!r}: {error}") from error


def _share(module: nn.Module, first: nn.Module, buffers: Sequence[str]) -> None:
    for name in buffers:
        setattr(module, name, getattr(first, name))


def _leave_fused_paths(model: nn.Module) -> None:
    """Keeps torch's own encoder off its fused inference path, which reads the float weights of its layers."""
    packed = PackedLinear
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and (
            isinstance(module.linear1, packed) or isinstance(module.linear2, packed)
        ):
            module.activation_relu_or_gelu = 0
        if isinstance(module, nn.TransformerEncoder) and any(isinstance(m, packed) for m in module.modules()):
            module.use_nested_tensor = False


def _bytes(tensors: Sequence[Tensor | None]) -> int:
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def _tensor_bytes(model: nn.Module) -> int:
    """Bytes of parameters and buffers, shared ones once."""
    return _bytes([*model.parameters(), *model.buffers()])


def _with_progress(items: Iterable[Item], total: int, what: str, wanted: bool | None) -> Iterator[Item]:
    if wanted is False or (wanted is None and not sys.stderr.isatty()):
        yield from items
        return
    try:
        from rich.console import Console
        from rich.progress import track
    except ImportError:
        if wanted:
            raise ImportError("compress: progress=True needs rich: pip install rich") from None
        yield from items
        return
    yield from track(items, what, total, console=Console(stderr=True), transient=True)
