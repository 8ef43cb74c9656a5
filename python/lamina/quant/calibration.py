"""Rounding and pruning of a model's layers, with the inputs that they get on calibration data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lamina.quant.hessians import Hessian

# The arguments of one call of a model: a tensor, keyword arguments or positional ones.
Batch = Tensor | Mapping[str, Any] | Sequence[Any]
Calibration = Iterable[Batch] | Callable[[nn.Module], object]
# A tokenizer of transformers turns texts into a mapping of keyword arguments.
Tokenizer = Callable[..., Mapping[str, Any]]
MAX_TOKENS = 2048  # of a text

Result = TypeVar("Result")

# The most bytes of Hessians held at a time, 4 k^2 each. A single larger Hessian is still held.
HESSIAN_BYTES = 2 << 30


def quantize_calibrated(
    model: nn.Module,
    layers: Mapping[str, Sequence[nn.Linear]],
    calibration: Calibration,
    quantize: Callable[[str, Tensor, Tensor], Result],
    op: str = "compress",
) -> Iterator[tuple[str, Result | None]]:
    """Yields (name, quantize(name, weight, hessian)) for each layer; None for one that no input reached.

    layers       name -> the layers that share this weight, usually one; their inputs are added up
    calibration  batches, which are kept in memory, or a function that runs the model that it is given.
                 docs/quantization.md describes the batches

    The model runs in eval mode, once for each set of layers whose Hessians fit in HESSIAN_BYTES. A compiled
    model runs eagerly: compiled code does not call the hooks that record a layer's inputs.
    """
    batches = (
        calibration if callable(calibration) else checked_batches(model, calibration, f"{op}: calibration")
    )
    for names in _rounds(layers):
        hessians = {name: Hessian() for name in names}
        with _observed({linear: hessians[name] for name in names for linear in layers[name]}):
            run_model(model, batches)
        for name in names:
            seen = hessians.pop(name)
            try:
                weight = quantize(name, layers[name][0].weight, seen.mean()) if seen.rows else None
            except (ValueError, RuntimeError) as error:
                raise type(error)(f"{op}: layer {name!r}: {error}") from error
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


def run_model(model: nn.Module, batches: Iterable[Batch] | Callable[[nn.Module], object]) -> None:
    """Runs the model on all batches in eval mode, eagerly and without gradients."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            if callable(batches):
                batches(model)
                return
            for batch in batches:
                call_model(model, batch)
    finally:
        for module, mode in training.items():
            module.training = mode


def call_model(model: nn.Module, batch: Batch) -> Any:
    """The result of the model for the arguments of one call."""
    if isinstance(batch, Tensor):
        return model(batch)
    return model(**batch) if isinstance(batch, Mapping) else model(*batch)


def text_batches(model: nn.Module, texts: Any, tokenizer: Tokenizer) -> list[Batch]:
    """Texts as keyword arguments of a model, each text a batch. Raises TypeError for anything but texts."""
    is_texts = isinstance(texts, Sequence) and not isinstance(texts, str)
    if not is_texts or not all(isinstance(text, str) for text in texts):
        raise TypeError(
            "compress: tokenizer was given, so calibration must be a sequence of texts, got "
            f"{type(texts).__name__}; leave out the tokenizer for batches of tensors"
        )
    like = next(model.parameters(), torch.empty(0, device="cpu"))
    made = (tokenizer(text, return_tensors="pt", truncation=True, max_length=MAX_TOKENS) for text in texts)
    return [{name: tensor.to(like.device) for name, tensor in batch.items()} for batch in made]


def checked_batches(model: nn.Module, calibration: Iterable[Batch], argument: str) -> list[Batch]:
    """The batches with their NumPy arrays as tensors. Raises TypeError for anything else but batches."""
    is_one = isinstance(calibration, Tensor | Mapping | str | bytes) or _is_array(calibration)
    if is_one or not isinstance(calibration, Iterable):
        raise TypeError(
            f"{argument} must hold batches, got {type(calibration).__name__}; put one into a list"
        )
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0, device="cpu"))
    batches: list[Batch] = []
    for at, batch in enumerate(calibration):
        if isinstance(batch, Tensor) or _is_array(batch):
            batches.append(_as_tensor(f"{argument}[{at}]", batch, like))
        elif isinstance(batch, Mapping):
            batches.append(
                {name: _as_tensor(f"{argument}[{at}]", value, like) for name, value in batch.items()}
            )
        elif isinstance(batch, Sequence) and not isinstance(batch, str | bytes):
            batches.append([_as_tensor(f"{argument}[{at}]", value, like) for value in batch])
        else:
            raise TypeError(
                f"{argument}[{at}] must be a tensor, a NumPy array, a mapping of keyword "
                f"arguments or a sequence of positional ones, got {type(batch).__name__}"
                + ("; texts need tokenizer=" if isinstance(batch, str) else "")
            )
    return batches


def _is_array(value: object) -> bool:
    """Whether value is a NumPy array or scalar. Does not import NumPy, which may be missing."""
    return type(value).__module__ == "numpy" and hasattr(value, "shape")


def _as_tensor(where: str, value: Any, like: Tensor) -> Any:
    """A NumPy array as a tensor on the device of `like`, floats in its dtype; other values unchanged."""
    if not _is_array(value):
        return value
    try:
        tensor = torch.as_tensor(value.copy(), device="cpu")  # which has no negative strides
    except (TypeError, ValueError) as error:
        raise type(error)(f"{where}: {error}") from error
    return tensor.to(like if tensor.is_floating_point() else like.device)
