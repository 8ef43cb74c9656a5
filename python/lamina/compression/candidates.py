"""The layers that lamina.compress may pack: nn.Linear, and the Conv1D of transformers, which GPT-2 has."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from lamina.compression.memory import region

LINEAR_KINDS = "nn.Linear or Conv1D"


class Candidate:
    """A layer and all its names. weight_owner and bias_owner name the first layer with the same tensor."""

    def __init__(self, names: list[str], module: nn.Module, linear: nn.Linear) -> None:
        self.names = names
        self.weight_owner = self.bias_owner = names[0]
        self._held: tuple[nn.Module, nn.Linear] | None = module, linear

    @property
    def name(self) -> str:
        """The first of its names."""
        return self.names[0]

    @property
    def module(self) -> nn.Module:
        """The module that the model calls."""
        return self._alive[0]

    @property
    def linear(self) -> nn.Linear:
        """The module as an nn.Linear, itself where it is one: weight [n, k] and bias [n]."""
        return self._alive[1]

    @property
    def tensors(self) -> list[Tensor]:
        """All parameters and buffers of the module, including those of a parametrization."""
        return [*self.module.parameters(), *self.module.buffers()]

    def release(self) -> None:
        """Drops the float weight, so that compressing a model needs no second copy of all weights."""
        self._held = None

    @property
    def _alive(self) -> tuple[nn.Module, nn.Linear]:
        assert self._held is not None, "used after release"
        return self._held


def is_linear(module: nn.Module) -> bool:
    """Whether lamina.compress looks at this module."""
    return isinstance(module, linear_types())


def linear_types() -> tuple[type[nn.Module], ...]:
    """nn.Linear, and transformers' Conv1D if transformers is imported already; lamina does not import it."""
    conv1d = getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", None)
    return (nn.Linear,) if conv1d is None else (nn.Linear, conv1d)


def find_candidates(model: nn.Module) -> list[Candidate]:
    """The layers of a model in the order of named_modules; a module with several names is one."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if is_linear(module):
            names.setdefault(module, []).append(name)
    candidates = [Candidate(all_names, module, _as_linear(module)) for module, all_names in names.items()]
    weights: dict[Hashable, str] = {}
    biases: dict[Hashable, str] = {}
    for candidate in candidates:
        linear = candidate.linear
        if not parametrize.is_parametrized(linear):  # a parametrized weight is a new tensor at each access
            candidate.weight_owner = weights.setdefault(region(linear.weight), candidate.name)
            if linear.bias is not None:
                candidate.bias_owner = biases.setdefault(region(linear.bias), candidate.name)
    return candidates


@contextmanager
def linears_see_inputs(candidates: Sequence[Candidate]) -> Iterator[None]:
    """Inside this context, hooks on candidate.linear get the inputs of candidate.module."""
    with ExitStack() as hooks:
        for candidate in candidates:
            if candidate.linear is not candidate.module:
                relay = partial(_relay, candidate.linear)
                hooks.callback(candidate.module.register_forward_pre_hook(relay, with_kwargs=True).remove)
        yield


def _relay(linear: nn.Linear, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    linear(args[0] if args else kwargs["x"])


class _Transposed(nn.Linear):
    """An nn.Linear that views a layer with weight [k, n]. Its forward only returns the input."""

    def __init__(self, weight: Tensor, bias: nn.Parameter | None) -> None:
        k, n = weight.shape
        super().__init__(k, n, bias=False, device="meta")
        self.weight = nn.Parameter(weight.detach().t(), requires_grad=False)
        self.bias = bias  # type: ignore[assignment]

    def forward(self, input: Tensor) -> Tensor:
        return input


def _as_linear(module: nn.Module) -> nn.Linear:
    if isinstance(module, nn.Linear):
        return module
    weight, bias = module.weight, module.bias
    assert isinstance(weight, Tensor) and (bias is None or isinstance(bias, nn.Parameter))
    return _Transposed(weight, bias).train(module.training)
