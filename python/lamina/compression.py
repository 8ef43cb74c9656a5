"""lamina.compress: swaps the linear layers of a model for packed ones, in place, and reports what it did."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lamina._checks import call
from lamina.nn import Int8Linear
from lamina.pack import MAX_K
from lamina.quant import WEIGHT_DTYPES, require_finite
from lamina.report import CompressionReport, CompressionRow

Skip = str | Callable[[str, nn.Module], bool]


@dataclass(frozen=True)
class Scheme:
    """One way to compress an nn.Linear."""

    name: str
    summary: str
    convert: Callable[[nn.Linear], nn.Module]
    blank: Callable[[nn.Linear], nn.Module]  # as convert, on the meta device: its buffers tell the bytes
    weight_buffers: tuple[str, ...]  # what depends on the weight alone, so that tied layers can share it


def _int8_scheme(name: str, summary: str, symmetric: bool) -> Scheme:
    def blank(linear: nn.Linear) -> nn.Module:
        bias = linear.bias
        dtype = None if bias is None else bias.dtype
        return Int8Linear(
            linear.in_features, linear.out_features, bias is not None, device="meta", dtype=dtype
        )

    def convert(linear: nn.Linear) -> nn.Module:
        return Int8Linear.from_linear(linear, symmetric=symmetric)

    buffers = ("weight_packed", "weight_sums", "weight_scale", "weight_format")
    return Scheme(name, summary, convert, blank, buffers)


SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        _int8_scheme("w8a8", "int8 weights per channel, int8 activations per token", True),
        _int8_scheme("w8a8_asymmetric", "as w8a8, activations with a zero point", False),
    )
}


def compress(
    model: nn.Module,
    scheme: str = "w8a8",
    *,
    skip: Skip | Sequence[Skip] = (),
    skip_growing: bool = True,
    dry_run: bool = False,
    progress: bool | None = None,
) -> CompressionReport:
    """Replaces the nn.Linear layers of `model` by packed ones, in place, for inference.

    model         any nn.Module with nn.Linear layers inside, on any device: weights are quantised and packed
                  on the CPU, one layer at a time, and the result is where the layer was. Nothing is changed
                  unless all layers can be.
    scheme        one of lamina.compression.SCHEMES: "w8a8", "w8a8_asymmetric"
    skip          layers to leave: shell patterns on qualified names ("lm_head", "*.attention.*") and
                  functions (name, module) -> bool. A pattern that matches no layer warns.
    skip_growing  True: leave layers that packing would make larger, as it does below a tile of 16 x 64
    dry_run       report only. Works on a model on the meta device too.
    progress      True: show a bar (needs rich); None: if rich is installed and stderr is a terminal
    returns       CompressionReport: one row per layer, with the reason where it was left; print it
    Raises        ValueError for an unknown scheme, a model that is itself an nn.Linear, a NaN or Inf in a
                  weight, naming the layer, and a LAMINA_CPU_ISA that cannot run

    A module registered in several places is packed once and stays shared; so does a weight or a bias that
    several nn.Linear share. A layer whose weight something else uses (a tied embedding,
    nn.MultiheadAttention) is left, with a reason.
    """
    chosen = _check_arguments(model, scheme)
    filters = _check_filters(skip)
    candidates = _find_linears(model)
    reasons = _skip_reasons(model, candidates, filters, chosen if skip_growing else None)
    if not dry_run:
        call(torch.ops.lamina.cpu_isa)  # a bad LAMINA_CPU_ISA is no fault of a layer
        for candidate in candidates:
            if candidate.name not in reasons:
                _require_packable(candidate)

    model_bytes = _tensor_bytes(model)
    rows: list[CompressionRow] = []
    ledger = _Ledger(chosen, _kept(model, candidates, reasons))
    replaced: dict[str, nn.Module] = {}  # by the first layer that has the weight
    biases: dict[str, nn.Module] = {}  # by the first layer that has the bias
    for candidate in _with_progress(candidates, progress):
        row = ledger.row(candidate, reasons.get(candidate.name))
        rows.append(row)
        if row.action == "compress" and not dry_run:
            module = _convert(candidate, chosen)
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


def _check_arguments(model: nn.Module, scheme: str) -> Scheme:
    if not isinstance(model, nn.Module):
        raise TypeError(f"compress: model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, nn.Linear):
        raise ValueError(
            "compress: model is itself an nn.Linear, which cannot be swapped in place; "
            "use lamina.nn.Int8Linear.from_linear(model)"
        )
    if not isinstance(scheme, str) or scheme not in SCHEMES:
        raise ValueError(f"compress: scheme must be one of {', '.join(SCHEMES)}, got {scheme!r}")
    return SCHEMES[scheme]


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
    model: nn.Module, candidates: list[_Candidate], filters: Sequence[Skip], must_shrink: Scheme | None
) -> dict[str, str]:
    """The reason per layer that is left, by the first of its names."""
    reasons = _filtered(candidates, filters)
    for candidate in candidates:
        if candidate.name not in reasons and (reason := _unsuitable(model, candidate, must_shrink)):
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


def _unsuitable(model: nn.Module, candidate: _Candidate, must_shrink: Scheme | None) -> str | None:
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
    if linear.in_features > MAX_K:
        return f"its k = {linear.in_features} is above {MAX_K}, the most that gemm_int8 sums exactly"
    for tensor in (linear.weight, linear.bias):
        if tensor is not None and tensor.dtype not in WEIGHT_DTYPES:
            return f"its {tensor.dtype} is not float32, float16 or bfloat16"
    if must_shrink is not None:
        before = _bytes([linear.weight, linear.bias])
        after = _bytes([*must_shrink.blank(linear).buffers()])
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


def _convert(candidate: _Candidate, scheme: Scheme) -> nn.Module:
    try:
        return scheme.convert(candidate.linear)
    except (ValueError, RuntimeError) as error:
        raise type(error)(f"compress: layer {candidate.name!r}: {error}") from error


def _share(module: nn.Module, first: nn.Module, buffers: Sequence[str]) -> None:
    for name in buffers:
        setattr(module, name, getattr(first, name))


def _leave_fused_paths(model: nn.Module) -> None:
    """Keeps torch's own encoder off its fused inference path, which reads the float weights of its layers."""
    packed = (Int8Linear,)
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


def _with_progress(candidates: list[_Candidate], wanted: bool | None) -> Iterator[_Candidate]:
    if wanted is False or (wanted is None and not sys.stderr.isatty()):
        yield from candidates
        return
    try:
        from rich.console import Console
        from rich.progress import track
    except ImportError:
        if wanted:
            raise ImportError("compress: progress=True needs rich: pip install rich") from None
        yield from candidates
        return
    yield from track(candidates, "compressing", console=Console(stderr=True), transient=True)
