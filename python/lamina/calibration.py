"""GPTQ of a model's layers, with what they see when the float model runs on calibration data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lamina.gptq import Hessian
from lamina.quant import QuantizedInt4

# What a model is called with: a tensor, keyword arguments or positional ones.
Batch = Tensor | Mapping[str, Any] | Sequence[Any]
Calibration = Iterable[Batch] | Callable[[nn.Module], object]

# Of Hessians held at a time, 4 k^2 each; those of one layer are held whatever their size.
HESSIAN_BYTES = 2 << 30


def quantize_calibrated(
    model: nn.Module,
    layers: Mapping[str, Sequence[nn.Linear]],
    calibration: Calibration,
    quantize: Callable[[Tensor, Tensor], QuantizedInt4],
) -> Iterator[tuple[str, QuantizedInt4 | None]]:
    """quantize(weight, hessian) by name, in turn; None for what no calibration input reached.

    layers       by name the layers that share a weight, mostly one: their inputs count together
    calibration  batches, which are kept, or a function that runs the model that it is given

    The model runs in eval mode once for as many layers as have Hessians in HESSIAN_BYTES.
    """
    if isinstance(calibration, Tensor | Mapping | str):
        raise TypeError(
            f"compress: calibration must hold batches, got {type(calibration).__name__}; put one into a list"
        )
    batches = calibration if callable(calibration) else list(calibration)
    for names in _rounds(layers):
        hessians = {name: Hessian() for name in names}
        with _observed({linear: hessians[name] for name in names for linear in layers[name]}):
            _run(model, batches)
        for name in names:
            seen = hessians.pop(name)
            try:
                weight = quantize(layers[name][0].weight, seen.mean()) if seen.rows else None
            except (ValueError, RuntimeError) as error:
                raise type(error)(f"compress: layer {name!r}: {error}") from error
            yield name, weight


def _rounds(layers: Mapping[str, Sequence[nn.Linear]]) -> Iterator[list[str]]:
    names: list[str] = []
    held = 0
    for name, linears in layers.items():
        size = 4 * linears[0].in_features ** 2
        if names and held + size > HESSIAN_BYTES:
            yield names
            names, held = [], 0
        names.append(name)
        held += size
    if names:
        yield names


@contextmanager
def _observed(hessians: Mapping[nn.Linear, Hessian]) -> Iterator[None]:
    def add(linear: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert isinstance(linear, nn.Linear)
        hessians[linear].add(args[0] if args else kwargs["input"])

    handles = [linear.register_forward_pre_hook(add, with_kwargs=True) for linear in hessians]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _run(model: nn.Module, batches: list[Batch] | Callable[[nn.Module], object]) -> None:
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            if callable(batches):
                batches(model)
                return
            for batch in batches:
                if isinstance(batch, Tensor):
                    model(batch)
                elif isinstance(batch, Mapping):
                    model(**batch)
                else:
                    model(*batch)
    finally:
        for module, mode in training.items():
            module.training = mode
