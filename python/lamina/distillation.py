"""lamina.distill: trains a pruned model to give what the model that it was made of gives."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lamina._progress import with_progress
from lamina.compression.candidates import find_candidates
from lamina.distillation_loss import distill_loss
from lamina.nn.packed_linear import PackedLinear
from lamina.ops import is_sparse24
from lamina.quant.calibration import Batch, call_model, checked_batches

# (student, teacher, batch) -> the loss of the batch, with gradients of the student.
Loss = Callable[[nn.Module, nn.Module, Batch], Tensor]
WARM_UP = 0.05  # of all steps


@dataclass(frozen=True)
class DistillReport:
    """Result of lamina.distill; print it."""

    losses: tuple[float, ...]  # of every step
    masked: tuple[str, ...]  # the layers that are 2:4, and stay so
    trained: int  # elements of the parameters that were trained, dropped ones among them
    seconds: float

    def __str__(self) -> str:
        if not self.losses:
            return "distill: no steps"
        tenth = max(1, len(self.losses) // 10)
        first, last = (sum(part) / tenth for part in (self.losses[:tenth], self.losses[-tenth:]))
        return (
            f"distill: {len(self.losses)} steps in {self.seconds:.0f} s, {self.trained} parameters, "
            f"{len(self.masked)} 2:4 layers; loss {first:.4g} -> {last:.4g} (means of {tenth} steps)"
        )


def distill(
    student: nn.Module,
    teacher: nn.Module,
    data: Iterable[Batch],
    *,
    loss: str | Loss = "layers",
    epochs: int = 1,
    learning_rate: float = 5e-4,
    parameters: Iterable[nn.Parameter] | None = None,
    progress: bool | None = None,
) -> DistillReport:
    """Trains `student` in place until it gives what `teacher` gives; the masks of 2:4 layers stay frozen.

    student   a float model, such as lamina.prune leaves it. The zeros of a linear layer that is 2:4 along
              its input features get no gradient, so that the layer stays 2:4; kept weights are trained.
              lamina.compress packs it afterwards
    teacher   the model before pruning, on the device of the student; it is not changed
    data      batches as in the calibration of lamina.compress: each a tensor, a mapping of keyword arguments
              or a sequence of positional ones; kept in memory. An "attention_mask" [rows, tokens] in a
              mapping leaves out padding
    loss      "layers": |s - t|^2 / |t|^2, where s are the outputs of the student and t those of the teacher:
              of the models, plus the mean over the 2:4 layers of the student. "vocabulary":
              lamina.distill_loss of the last hidden states, for models of transformers whose logits are the
              output embeddings of them, without a softcap or a factor.
              Or a function (student, teacher, batch) -> 0-D tensor, which runs both
    epochs    >= 0: how often to go through `data`, in order
    learning_rate  > 0, of Adam; it rises over the first 5 % of the steps, then falls to 0 along a cosine
    parameters     to train; None: all that require gradients and belong to no nn.Embedding
    progress  True: show a bar (needs rich); None: show it if rich is installed and stderr is a terminal
    returns   DistillReport
    Raises    ValueError naming argument, value and allowed values, and for a loss that is not finite, which
              names the step; TypeError for anything but batches, and for a model with packed layers

    Both models run in eval mode, without dropout; their modes are restored.
    """
    for name, model in (("student", student), ("teacher", teacher)):
        if not isinstance(model, nn.Module):
            raise TypeError(f"distill: {name} must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(epochs, int) or epochs < 0:
        raise ValueError(f"distill: epochs = {epochs!r}; must be an int, at least 0")
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"distill: learning_rate = {learning_rate}; must be above 0 and finite")
    for name, module in student.named_modules():
        if isinstance(module, PackedLinear):
            raise TypeError(
                f"distill: layer {name!r} of student is packed and cannot be trained; distill first, then "
                "call lamina.compress"
            )
    batches = checked_batches(student, data, "distill: data")
    if loss == "vocabulary" and batches:
        for model in (student, teacher):
            _require_plain_head(model, batches[0])
    trained = _trainable(student) if parameters is None else list(parameters)
    if not trained:
        raise ValueError("distill: parameters has none; allowed: at least one, or None")
    masks = _masks(student)
    step_loss = _checked_loss(loss, list(masks))
    optimizer = torch.optim.Adam(trained, lr=learning_rate, betas=(0.9, 0.98))
    total = epochs * len(batches)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, total))
    losses: list[float] = []
    began = time.monotonic()

    def text() -> str:
        return f"distilling, loss {losses[-1]:.4g}" if losses else "distilling"

    with _in_eval_mode(student, teacher), _frozen(masks.values()), torch.enable_grad():
        for step in with_progress(range(total), total, text, progress, "distill"):
            value = step_loss(student, teacher, batches[step % len(batches)])
            losses.append(float(value.detach()))
            if not math.isfinite(losses[-1]):
                raise ValueError(
                    f"distill: the loss of step {step} is {losses[-1]}; try a lower learning_rate"
                )
            optimizer.zero_grad(set_to_none=True)
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    optimizer.zero_grad(set_to_none=True)
    elements = sum(parameter.numel() for parameter in trained)
    return DistillReport(tuple(losses), tuple(masks), elements, time.monotonic() - began)


def layers_loss(names: Sequence[str], student: nn.Module, teacher: nn.Module, batch: Batch) -> Tensor:
    """The loss "layers" of lamina.distill, for 2:4 layers of these names."""
    with torch.no_grad(), _outputs(teacher, names) as wanted:
        whole = _main_tensor(call_model(teacher, batch))
    with _outputs(student, names) as got:
        loss = _relative(_main_tensor(call_model(student, batch)), whole, batch)
    of_layers = [_relative(got[name], wanted[name], batch) for name in names if name in got]
    return loss + torch.stack(of_layers).mean() if of_layers else loss


def vocabulary_loss(student: nn.Module, teacher: nn.Module, batch: Batch) -> Tensor:
    """The loss "vocabulary" of lamina.distill."""
    with torch.no_grad():
        wanted, teacher_head = _hidden_and_head(teacher, batch)
    hidden, head = _hidden_and_head(student, batch)
    return distill_loss(
        hidden, wanted, head.weight, teacher_head.weight, bias=head.bias, teacher_bias=teacher_head.bias,
        token_weight=_token_mask(batch, hidden),
    )  # fmt: skip


def _hidden_and_head(model: Any, batch: Batch) -> tuple[Tensor, nn.Linear]:
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if not isinstance(head, nn.Linear) or getattr(model, "base_model", model) is model:
        raise ValueError(
            f"distill: loss 'vocabulary' needs a model of transformers with a language head, got "
            f"{type(model).__name__}; give a function (student, teacher, batch) -> loss"
        )
    return call_model(model.base_model, batch).last_hidden_state, head


def _require_plain_head(model: Any, batch: Batch) -> None:
    """Raises a ValueError if the logits of a model are more than its output embeddings of the last states."""
    with torch.no_grad(), _in_eval_mode(model):
        hidden, head = _hidden_and_head(model, batch)
        logits = getattr(call_model(model, batch), "logits", None)
        few = head(hidden[..., :8, :])
        if isinstance(logits, Tensor) and logits.shape[:-1] == hidden.shape[:-1]:
            logits = logits[..., :8, :]
            if logits.shape == few.shape and bool(((logits - few).abs() <= 0.01 * few.abs().amax()).all()):
                return
    raise ValueError(
        f"distill: loss 'vocabulary' needs logits that are the output embeddings of the last hidden states; "
        f"those of {type(model).__name__} differ (a softcap, a factor or layers between); give a function "
        "(student, teacher, batch) -> loss"
    )


def _relative(got: Tensor, wanted: Tensor, batch: Batch) -> Tensor:
    """|got - wanted|^2 / |wanted|^2 over the tokens that are no padding."""
    mask = _token_mask(batch, wanted)
    if mask is not None:
        got, wanted = got[mask], wanted[mask]
    wanted = wanted.float()
    size = wanted.square().sum().clamp(min=torch.finfo(torch.float32).tiny)
    return (got.float() - wanted).square().sum() / size


def _token_mask(batch: Batch, like: Tensor) -> Tensor | None:
    """The mask of a batch if it is one of the tokens of `like`."""
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    is_of_tokens = isinstance(mask, Tensor) and like.dim() == 3 and mask.shape == like.shape[:2]
    return mask.bool() if is_of_tokens and mask is not None else None


def _main_tensor(output: Any) -> Tensor:
    """The tensor that a model returns, or the first of several, such as last_hidden_state."""
    while not isinstance(output, Tensor):
        output = next(iter(output.values())) if isinstance(output, Mapping) else output[0]
    return output


@contextmanager
def _outputs(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Inside this context the dict gets the outputs of the layers of these names."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda _module, _args, output: found.__setitem__(name, output)

    with ExitStack() as hooks:
        for name in names:
            hooks.callback(model.get_submodule(name).register_forward_hook(keep(name)).remove)
        yield found


def _masks(model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """By name the float weight of each 2:4 layer, as the model holds it, and where it is not zero."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for candidate in find_candidates(model):
        weight = candidate.linear.weight.detach()
        if candidate.weight_owner == candidate.name and weight.shape[1] % 4 == 0 and is_sparse24(weight):
            held = candidate.module.get_parameter("weight")
            found[candidate.name] = (held, held.detach() != 0)
    return found


@contextmanager
def _frozen(masks: Iterable[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Inside this context gradients of dropped weights are 0, so that Adam leaves them 0."""
    with ExitStack() as hooks:
        for weight, mask in masks:
            if weight.requires_grad:
                handle = weight.register_hook(partial(torch.mul, mask))  # type: ignore[no-untyped-call]
                hooks.callback(handle.remove)
        yield


@contextmanager
def _in_eval_mode(*models: nn.Module) -> Iterator[None]:
    training = {module: module.training for model in models for module in model.modules()}
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module, was in training.items():
            module.training = was


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    of_embeddings = {
        parameter
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters()
    }
    found = [p for p in model.parameters() if p.requires_grad and p not in of_embeddings]
    if not found:
        raise ValueError("distill: no parameter of student requires a gradient")
    return found


def _rate(step: int, total: int) -> float:
    warm_up = max(1, round(WARM_UP * total))
    return min(1.0, (step + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * step / max(total, 1)))


def _checked_loss(loss: str | Loss, names: Sequence[str]) -> Loss:
    known: dict[str, Loss] = {"layers": partial(layers_loss, names), "vocabulary": vocabulary_loss}
    if callable(loss):
        return loss
    if loss not in known:
        raise ValueError(f"distill: loss must be one of {', '.join(known)} or a function, got {loss!r}")
    return known[loss]
