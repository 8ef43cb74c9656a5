"""lamina.prune: makes the linear layers of a float model 2:4, for lamina.distill and lamina.compress."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lamina._progress import with_progress
from lamina.compression.budget import OutputError, dense_layers, require_budget
from lamina.compression.candidates import LINEAR_KINDS, Candidate, find_candidates, linears_see_inputs
from lamina.compression.reasons import Skip, checked_filters, filtered, not_plain
from lamina.quant import prune_sparse24
from lamina.quant.calibration import Calibration, quantize_calibrated
from lamina.quant.sparse24_masks import GROUP
from lamina.quant.sparse24_pass import METHODS


@dataclass(frozen=True)
class PrunedLayer:
    """One linear layer with weight [n, k]."""

    name: str
    n: int
    k: int
    is_sparse: bool  # whether it is 2:4 now
    error: float | None  # of its outputs on the calibration inputs, as 2:4; None: it was not pruned
    reason: str  # why it was left, or what is to be noted


@dataclass(frozen=True)
class PruneReport:
    """Result of lamina.prune; print it."""

    method: str
    layers: tuple[PrunedLayer, ...]

    def __str__(self) -> str:
        lines = [
            f"{layer.name}  {layer.n} x {layer.k}  {'2:4' if layer.is_sparse else 'left'}"
            + ("" if layer.error is None else f"  error {layer.error:.4f}")
            + (f"  {layer.reason}" if layer.reason else "")
            for layer in self.layers
        ]
        sparse = sum(layer.is_sparse for layer in self.layers)
        return "\n".join([*lines, f"{self.method}: {sparse} of {len(self.layers)} linear layers are 2:4"])


def prune(
    model: nn.Module,
    method: str | None = None,
    *,
    calibration: Calibration | None = None,
    skip: Skip | Sequence[Skip] = (),
    sparse24_fraction: float = 1.0,
    max_layer_error: float | None = None,
    progress: bool | None = None,
) -> PruneReport:
    """Prunes the linear layers of `model` to 2:4, in place; they stay float, and can be trained.

    model         any nn.Module; its layers as in lamina.compress
    method        as in lamina.quant.prune_sparse24; None: "sparsegpt" with calibration, else "magnitude"
    calibration   as in lamina.compress. "magnitude" uses it for the errors alone. A layer that no input
                  reaches is pruned by magnitude, and a warning names it
    skip          layers to leave, as in lamina.compress
    sparse24_fraction  from 0 to 1: the share of the weights of the layers that may become 2:4. In the
                  order of their errors, the smallest first, layers become 2:4 as long as they fit into the
                  share; the others stay dense
    max_layer_error    the largest |x (w_pruned - w).T| / |x w.T| of a layer on the calibration inputs x, or
                  of its weights without calibration; layers above it stay dense. None: no limit
    progress      as in lamina.compress
    returns       PruneReport, with the error of each layer
    Raises        ValueError naming argument, value and allowed values, and for a NaN or Inf in a weight

    Layers that share a weight are pruned once. A layer is left if its input features are no multiple of 4,
    if it is no plain linear layer, or if its weight is 2:4 already.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"prune: model must be a torch.nn.Module, got {type(model).__name__}")
    if method not in (None, *METHODS):
        raise ValueError(f"prune: method must be one of {', '.join(METHODS)}, got {method!r}")
    if calibration is None and method not in (None, "magnitude"):
        raise ValueError(f"prune: method {method!r} needs calibration, got None")
    require_budget("prune", sparse24_fraction, max_layer_error)
    candidates = find_candidates(model)
    reasons, unmatched = filtered(candidates, checked_filters(skip))
    for pattern in unmatched:
        warnings.warn(f"lamina.prune: skip pattern {pattern!r} matches no {LINEAR_KINDS}", stacklevel=2)
    for candidate in candidates:
        if candidate.name not in reasons and (reason := _unsuitable(candidate)):
            reasons[candidate.name] = reason
    chosen = [candidate for candidate in candidates if candidate.name not in reasons]
    name = method or ("magnitude" if calibration is None else "sparsegpt")
    weights, errors = _pruned(model, chosen, calibration, name, progress)
    owners = {candidate.name: candidate for candidate in chosen if candidate.name in weights}
    elements = {owner: candidate.linear.weight.numel() for owner, candidate in owners.items()}
    dense = dense_layers(errors, elements, sparse24_fraction, max_layer_error)
    with torch.no_grad():
        for owner, candidate in owners.items():
            if owner not in dense:
                candidate.linear.weight.copy_(weights[owner])
    return PruneReport(name, tuple(_row(c, reasons, errors, dense) for c in candidates))


def _row(
    candidate: Candidate, reasons: Mapping[str, str], errors: Mapping[str, float], dense: Mapping[str, str]
) -> PrunedLayer:
    n, k = candidate.linear.weight.shape
    if candidate.name in reasons:
        return PrunedLayer(candidate.name, n, k, False, None, reasons[candidate.name])
    owner = candidate.weight_owner
    shared = "" if owner == candidate.name else f"shares its weight with {owner}"
    return PrunedLayer(candidate.name, n, k, owner not in dense, errors[owner], dense.get(owner, shared))


def _unsuitable(candidate: Candidate) -> str | None:
    k = candidate.linear.in_features
    if k % GROUP:
        return f"its k = {k} is no multiple of {GROUP}"
    return not_plain(candidate.module)


def _pruned(
    model: nn.Module,
    chosen: list[Candidate],
    calibration: Calibration | None,
    method: str,
    progress: bool | None,
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The 2:4 weights and their errors, by the first layer that has the weight."""
    layers: dict[str, list[nn.Linear]] = {}
    for candidate in chosen:
        layers.setdefault(candidate.weight_owner, []).append(candidate.linear)

    def one(name: str, w: Tensor, hessian: Tensor | None) -> tuple[Tensor, float]:
        weight = prune_sparse24(w, hessian, method="magnitude" if hessian is None else method).weight
        return weight, OutputError(w, weight, hessian).without()

    made: dict[str, tuple[Tensor, float]] = {}
    if calibration is not None:
        with linears_see_inputs(chosen):
            found = quantize_calibrated(model, layers, calibration, one, "prune")
            for name, result in with_progress(found, len(layers), "pruning", progress, "prune"):
                if result is None:
                    warnings.warn(
                        f"lamina.prune: no calibration input reaches layer {name!r}: magnitude", stacklevel=3
                    )
                else:
                    made[name] = result
    for name, linears in layers.items():
        if name not in made:
            made[name] = one(name, linears[0].weight, None)
    return {n: weight for n, (weight, _) in made.items()}, {n: error for n, (_, error) in made.items()}
