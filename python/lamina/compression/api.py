"""lamina.compress: plans, packs and reports."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lamina._checks import call
from lamina._progress import with_progress
from lamina.compression.budget import OutputError, common_limit, dense_layers, require_budget
from lamina.compression.candidates import (
    LINEAR_KINDS,
    Candidate,
    find_candidates,
    is_linear,
    linears_see_inputs,
)
from lamina.compression.choice import checked_choice, require_option
from lamina.compression.outliving import outliving_text
from lamina.compression.reasons import (
    QUIET_ATTRIBUTES,
    Skip,
    checked_filters,
    extra_attributes,
    filtered,
    unsuitable,
)
from lamina.compression.report import CompressionReport, make_report
from lamina.compression.schemes import SCHEMES, Rounded, Scheme, Sparse24Scheme
from lamina.compression.swap import leave_fused_paths, replace_layers
from lamina.compression.ties import forget_ties, leave_ties, tie_notes
from lamina.quant import require_finite
from lamina.quant.calibration import Calibration, Tokenizer, quantize_calibrated, text_batches


def compress(
    model: nn.Module,
    scheme: str | Mapping[str, str] = "w8a8",
    *,
    group: int | None = None,
    scale_dtype: torch.dtype | None = None,
    zero_point_dtype: torch.dtype | None = None,
    head: str | None = None,
    calibration: Calibration | Sequence[str] | None = None,
    tokenizer: Tokenizer | None = None,
    sparse24_fraction: float = 1.0,
    max_layer_error: float | None = None,
    dense_rows: bool = False,
    dense: Skip | Sequence[Skip] = (),
    skip: Skip | Sequence[Skip] = (),
    skip_growing: bool = True,
    dry_run: bool = False,
    progress: bool | None = None,
) -> CompressionReport:
    """Replaces the linear layers of `model` by packed ones, in place, for inference.

    model         any nn.Module on any device. Each layer that is an nn.Linear, or transformers' Conv1D, is
                  replaced by a packed layer on its device, one at a time: the CPU quantises the weight, and
                  the device packs it (the CPU, if it is int8 or 2:4). Errors that can be found beforehand are
                  raised before any layer changes. On the meta device the packed layers have no values: fill
                  them with lamina.load_compressed or with load_state_dict(..., assign=True)
    scheme        one of lamina.compression.SCHEMES: "w8a8", "w4a16" or "w4a8", each also with "_asymmetric",
                  and with "sparse24-" before it for 2:4 weights; "sparse24-bf16" rounds activations to bf16
                  too. A mapping of shell patterns on qualified names to schemes, {"lm_head": "w8a8",
                  "*.down_proj": "w8a8", "*": "w4a8"}: the first pattern that matches counts, and a layer that
                  none matches stays float
    group         w4 schemes: input features that share a scale, a multiple of 16, or -1 for all; None is 128.
                  The last group of a layer may be smaller; a layer with fewer input features has one group
    scale_dtype   w4 schemes: float32, float16 or bfloat16; None is the dtype of the weight
    zero_point_dtype  w4a16_asymmetric and w4a8_asymmetric: uint8 (None means it), float32, float16 or
                  bfloat16. Floats keep more accuracy and take more time (docs/quantization.md)
    head          a scheme for the output layer of a language model (get_output_embeddings()). The layer is
                  packed although its weight is tied to the embedding, which stays float: the two are untied,
                  and model.config says so. A mapping with the full name of a tied layer does likewise
    calibration   w4 and sparse24 schemes: some hundred typical inputs of the model, each a tensor or a NumPy
                  array, a mapping of keyword arguments or a sequence of positional ones; or a function that
                  runs the model that it is given. The float model runs on them, a compiled one eagerly. On
                  the layer's device, weights are rounded by GPTQ (lamina.quant.gptq), or pruned and rounded
                  by SparseGPT (lamina.quant.prune_sparse24_int8), not to nearest and by magnitude. The
                  Hessians take 4 k^2 bytes a layer; the model runs again for each further 2 GiB of them. If
                  no input reaches a layer, a warning names it and its weight is rounded to nearest. With a
                  tokenizer: texts, each of them one call, of which the first 2048 tokens count
    tokenizer     of transformers, for calibration with texts
    sparse24_fraction  sparse24 schemes, from 0 to 1: the share of the weights that may be 2:4. In the
                  order of their errors, the smallest first, layers become 2:4 as long as they fit into the
                  share; the others get the scheme without "sparse24-", or with "sparse24-bf16" stay as
                  they are
    max_layer_error    sparse24 schemes: the largest |x (w_packed - w).T| / |x w.T| of a 2:4 layer on the
                  calibration inputs x, or of its weights without calibration; layers above it stay dense
    dense_rows    sparse24 schemes of int8 and int4: True: of a layer whose error is too large only a block of
                  rows stays dense, the smallest one without which the error is small enough. For
                  sparse24_fraction, that is the same error for all layers. One call computes all rows
    dense         sparse24 schemes: layers that stay dense, given as in skip: lamina.plan_sparse24(...).dense
    skip          layers to leave: shell patterns on qualified names ("lm_head", "*.attention.*") and
                  functions (name, module) -> bool. A pattern that matches no layer warns.
    skip_growing  True: leave layers that packing would make larger, such as those below one tile of 16 x 64
    dry_run       True: only report, change nothing
    progress      True: show a bar (needs rich); None: show it if rich is installed and stderr is a terminal
    returns       CompressionReport, which can be printed: one row per layer, with a reason if it was left,
                  and the large tensors that belong to no linear layer
    Raises        ValueError for an unknown scheme, an option that the scheme lacks, a model that is itself a
                  linear layer, a NaN or Inf in a weight or in a layer's calibration inputs, naming the layer,
                  a model of which only a part is on the meta device, and a LAMINA_CPU_ISA that cannot run

    Layers share a weight if it lies in the same memory, whatever tensor objects they hold. A module that is
    registered in several places is packed once and stays shared. A weight or a bias that several layers share
    as a whole stays shared too; weights that overlap in part are packed separately. A layer is left, with a
    reason, if its weight shares memory with a tensor that stays float (a tied embedding), if other code reads
    its weight (nn.MultiheadAttention, LoRA adapters), or if it has hooks. Other attributes of a layer are
    copied to the packed layer, and its row says so. A warning names layers whose float original is still
    referenced after compression.
    """
    _require_model(model)
    choice = checked_choice(scheme, group, scale_dtype, head, zero_point_dtype)
    is_calibrated = any(one.is_calibrated for one in choice.schemes)
    takers = [one for one in SCHEMES.values() if one.is_calibrated]
    require_option("calibration", calibration, choice, is_calibrated, takers)
    if tokenizer is not None:
        calibration = text_batches(model, calibration, tokenizer)
    require_budget("compress", sparse24_fraction, max_layer_error)
    filters = tuple(checked_filters(dense, "dense"))
    mixed = _Mixed(sparse24_fraction, max_layer_error, dense_rows, filters)
    if mixed != _Mixed() and (isinstance(scheme, Mapping) or not SCHEMES[scheme].is_sparse):
        raise ValueError(
            f"compress: sparse24_fraction, max_layer_error, dense_rows or dense was given with scheme "
            f"{choice.text}; allowed with {', '.join(s.name for s in SCHEMES.values() if s.is_sparse)}"
        )
    if dense_rows and any(isinstance(one, Sparse24Scheme) and one.dense is None for one in choice.schemes):
        raise ValueError(
            f"compress: dense_rows was given with scheme {choice.text}, which has no product of dense rows"
        )
    candidates = find_candidates(model)
    schemes, reasons, untied, unmatched = choice.assign(model, candidates)
    for pattern in unmatched:
        warnings.warn(f"lamina.compress: scheme pattern {pattern!r} matches no {LINEAR_KINDS}", stacklevel=2)
    skipped, unmatched = filtered(candidates, checked_filters(skip))
    reasons |= skipped
    for pattern in unmatched:
        warnings.warn(f"lamina.compress: skip pattern {pattern!r} matches no {LINEAR_KINDS}", stacklevel=2)
    for candidate in candidates:
        name = candidate.name
        if name not in reasons and (reason := unsuitable(model, candidate, schemes[name], skip_growing)):
            reasons[name] = reason
    leave_ties(model, candidates, reasons, untied)
    notes = _notes(model, candidates, reasons, untied)
    report_of = partial(make_report, model, candidates, choice.text, schemes=schemes, notes=notes)
    if dry_run:
        return report_of(reasons=reasons, is_calibrated=calibration is not None, dry_run=True)

    call(torch.ops.lamina.cpu_isa)  # raises for a bad LAMINA_CPU_ISA, before any layer is named in an error
    packed = [candidate for candidate in candidates if candidate.name not in reasons]
    _require_packable(packed, calibration is not None)
    rounded: dict[str, Rounded] = {}  # by the first layer that has the weight
    if calibration is not None:
        rounded, unreached = _calibrate(model, packed, calibration, schemes, mixed != _Mixed(), progress)
        for name in unreached:
            text = f"lamina.compress: no calibration input reaches layer {name!r}: it is rounded to nearest"
            warnings.warn(text, stacklevel=2)
    stay_dense = mixed.dense(packed, schemes, rounded)
    mixed.keep_rows(packed, schemes, rounded, stay_dense)
    for candidate in packed:
        one, owner, note = schemes[candidate.name], candidate.weight_owner, None
        if not isinstance(one, Sparse24Scheme):
            continue
        if (reason := stay_dense.get(owner)) and one.dense is None:
            note = reasons[candidate.name] = reason
        elif reason and one.dense is not None:
            note, schemes[candidate.name] = reason, one.dense
        elif (done := rounded.get(owner)) and done.error is not None:
            rows = one.dense_rows
            but = f" but for rows {rows[0]} to {rows[1]}" if rows else ""
            note = f"2:4{but}, output error {done.error.without(rows):.4f}"
        if note:
            notes[candidate.name] = "; ".join(filter(None, (note, notes.get(candidate.name))))
    for owner in stay_dense.keys() & rounded.keys():
        dense_weight = rounded.pop(owner).dense
        rounded |= {} if dense_weight is None else {owner: dense_weight}
    packed = [candidate for candidate in packed if candidate.name not in reasons]
    report = report_of(reasons=reasons, is_calibrated=calibration is not None, dry_run=False)
    originals = [(candidate.name, weakref.ref(candidate.module)) for candidate in packed]
    for candidate in candidates:
        if candidate.name in reasons:
            candidate.release()
    replace_layers(model, with_progress(packed, len(packed), "compressing", progress), schemes, rounded)
    leave_fused_paths(model)
    if freed := untied - reasons.keys():
        forget_ties(model, freed)
    if outliving := outliving_text(model, originals):
        warnings.warn(outliving, stacklevel=2)
    return report


def _require_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"compress: model must be a torch.nn.Module, got {type(model).__name__}")
    if is_linear(model):
        raise ValueError(
            f"compress: model is itself an {LINEAR_KINDS}, which cannot be swapped in place; for an "
            "nn.Linear use lamina.nn.Int8Linear.from_linear(model) or lamina.nn.Int4Linear.from_linear(model)"
        )


def _notes(
    model: nn.Module, candidates: list[Candidate], reasons: Mapping[str, str], untied: frozenset[str]
) -> dict[str, str]:
    """The notes in the rows of packed layers, by the first name of the layer."""
    notes: dict[str, list[str]] = {}
    for name, note in tie_notes(model, candidates, reasons, untied):
        notes.setdefault(name, []).append(note)
    for candidate in candidates:
        carried = sorted(extra_attributes(candidate.module).keys() - QUIET_ATTRIBUTES)
        if carried:
            notes.setdefault(candidate.name, []).append(f"keeps attributes set on it: {', '.join(carried)}")
    return {name: "; ".join(texts) for name, texts in notes.items()}


def _require_packable(packed: list[Candidate], is_calibrated: bool) -> None:
    """Raises a ValueError unless all weights and biases are finite, or all are on the meta device."""
    is_empty = bool(packed) and packed[0].linear.weight.is_meta
    if is_empty and is_calibrated:
        raise ValueError(
            f"compress: calibration runs the model, and the weight of layer {packed[0].name!r} is on the "
            "meta device; load the model first"
        )
    for candidate in packed:
        for what, tensor in (("weight", candidate.linear.weight), ("bias", candidate.linear.bias)):
            if tensor is None:
                continue
            where = f"compress: {what} of layer {candidate.name!r}"
            if tensor.is_meta is not is_empty:
                raise ValueError(
                    f"{where} is on {tensor.device}, and the weight of layer {packed[0].name!r} on "
                    f"{packed[0].linear.weight.device}; either all layers are on the meta device or none"
                )
            if not is_empty:
                require_finite(where, tensor.detach())


def _calibrate(
    model: nn.Module,
    packed: list[Candidate],
    calibration: Calibration,
    schemes: Mapping[str, Scheme],
    is_mixed: bool,
    progress: bool | None,
) -> tuple[dict[str, Rounded], list[str]]:
    """The rounded weights, by the first layer that has the weight, and the layers that no input reached."""
    layers: dict[str, list[nn.Linear]] = {}
    for candidate in packed:
        if schemes[candidate.name].is_calibrated:
            layers.setdefault(candidate.weight_owner, []).append(candidate.linear)
    rounded: dict[str, Rounded] = {}
    unreached: list[str] = []

    def quantize(name: str, w: Tensor, hessian: Tensor) -> Rounded:
        return _quantize(schemes[name], is_mixed, w, hessian)

    with linears_see_inputs(packed):
        found = quantize_calibrated(model, layers, calibration, quantize)
        for name, weight in with_progress(found, len(layers), "calibrating", progress):
            if weight is None:
                unreached.append(name)
            else:
                rounded[name] = weight
    return rounded, unreached


def _quantize(scheme: Scheme, is_mixed: bool, w: Tensor, hessian: Tensor) -> Rounded:
    rounded = scheme.quantize(w, hessian)
    dense = scheme.dense if is_mixed and isinstance(scheme, Sparse24Scheme) else None
    if dense is not None and dense.is_calibrated:
        return rounded._replace(dense=dense.quantize(w, hessian))
    return rounded


class _Mixed(NamedTuple):
    """The arguments that say which layers of a sparse24 scheme stay dense."""

    fraction: float = 1.0
    max_layer_error: float | None = None
    dense_rows: bool = False
    filters: Sequence[Skip] = ()

    def dense(
        self, packed: list[Candidate], schemes: Mapping[str, Scheme], rounded: Mapping[str, Rounded]
    ) -> dict[str, str]:
        """The layers that stay dense, with a reason, by the first layer that has the weight."""
        named, unmatched = filtered(packed, self.filters)
        for pattern in unmatched:
            text = f"lamina.compress: dense pattern {pattern!r} matches no {LINEAR_KINDS} to pack"
            warnings.warn(text, stacklevel=3)
        asked = {
            c.weight_owner: f"dense: {named[c.name]}".replace("skip ", "") for c in packed if c.name in named
        }
        if self.dense_rows or (self.fraction == 1 and self.max_layer_error is None):
            return asked
        errors: dict[str, float] = {}
        elements: dict[str, int] = {}
        for candidate in packed:
            owner, weight = candidate.weight_owner, candidate.linear.weight
            if owner not in errors and isinstance(schemes[candidate.name], Sparse24Scheme):
                done = rounded.get(owner) or schemes[candidate.name].quantize(weight, None)
                errors[owner] = torch.inf if owner in asked or done.error is None else done.error.without()
                elements[owner] = weight.numel()
        return dense_layers(errors, elements, self.fraction, self.max_layer_error) | asked

    def keep_rows(
        self,
        packed: list[Candidate],
        schemes: dict[str, Scheme],
        rounded: dict[str, Rounded],
        stay_dense: dict[str, str],
    ) -> None:
        """Makes rows dense as `dense_rows` says: in `schemes` and `rounded`, all rows in `stay_dense`."""
        weights: dict[str, Tensor] = {}
        errors: dict[str, OutputError] = {}
        for candidate in packed if self.dense_rows else ():
            owner, one = candidate.weight_owner, schemes[candidate.name]
            if owner in errors or owner in stay_dense or not isinstance(one, Sparse24Scheme):
                continue
            weights[owner] = candidate.linear.weight
            done = rounded.setdefault(owner, rounded.get(owner) or one.quantize(weights[owner], None))
            assert done.error is not None
            errors[owner] = done.error
        features = {owner: weight.shape[1] for owner, weight in weights.items()}
        limit = min(
            torch.inf if self.max_layer_error is None else self.max_layer_error,
            torch.inf if self.fraction == 1 else common_limit(errors, features, self.fraction),
        )
        for owner, weight in weights.items():
            rows, one = errors[owner].dense_rows(limit), schemes[owner]
            if rows == (0, len(weight)):
                stay_dense[owner] = f"dense: its output error as 2:4 is {errors[owner].without():.4f}"
            elif rows:
                assert isinstance(one, Sparse24Scheme)
                one = replace(one, dense_rows=rows)
                rounded[owner] = one.with_dense_rows(weight, rounded[owner])
                schemes |= {c.name: one for c in packed if c.weight_owner == owner}
