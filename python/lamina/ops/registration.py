"""Registers fake kernels and gradients, which take arguments by the names that the op's schema gives them."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor


class Arguments(SimpleNamespace):
    """The arguments of one call by name, with the defaults of the schema."""


Fake = Callable[[Arguments], Any]
FAKES: dict[str, Fake] = {}


def fake(op: str) -> Callable[[Fake], Fake]:
    """Makes the decorated function the fake kernel of an op: its results have the right shapes and dtypes."""

    def add(function: Fake) -> Fake:
        FAKES[op] = function
        return function

    return add


def register_fakes(namespace: str) -> None:
    """Registers the fake kernel of every op in torch.ops.<namespace>."""
    for op, function in FAKES.items():
        torch.library.register_fake(f"{namespace}::{op}")(_by_name(function, Schema(namespace, op)))


def register_gradients(
    op: str,
    save: Callable[[Any, Arguments], None],
    gradients: Callable[[Any, Tensor, set[str]], dict[str, Tensor]],
) -> None:
    """Registers the backward pass of torch.ops.lamina.<op>.

    save       (ctx, arguments): keeps in ctx what the backward pass needs
    gradients  (ctx, gradient of the result, names of the arguments that need one) -> gradients by name
    """
    schema = Schema("lamina", op)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        save(ctx, schema.bind(inputs, {}))

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # A call may leave the last arguments out; only those that it gave have a place in the result.
        needed = dict(zip(schema.names, ctx.needs_input_grad, strict=False))
        found = gradients(ctx, grad, {name for name, is_needed in needed.items() if is_needed})
        return tuple(found.get(name) for name in needed)

    torch.library.register_autograd(f"lamina::{op}", backward, setup_context=setup_context)


class Schema:
    """The names and defaults of an op's arguments, from its definition in csrc/torch."""

    def __init__(self, namespace: str, op: str) -> None:
        arguments = getattr(getattr(torch.ops, namespace), op).default._schema.arguments
        self.names = [argument.name for argument in arguments]
        self._defaults = {a.name: _default(a) for a in arguments if a.has_default_value()}

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        """The arguments of a call by name, in the order of the schema."""
        values = {**self._defaults, **dict(zip(self.names, args, strict=False)), **kwargs}
        return Arguments(**{name: values[name] for name in self.names})


def _by_name(function: Fake, schema: Schema) -> Callable[..., Any]:
    def kernel(*args: Any, **kwargs: Any) -> Any:
        return function(schema.bind(args, kwargs))

    return kernel


def _default(argument: Any) -> Any:
    if str(argument.real_type) != "ScalarType":
        return argument.default_value
    # The schema holds the number of the dtype, which torch turns into a dtype only where it makes a tensor.
    return torch.ops.aten.empty([0], dtype=argument.default_value, device="cpu").dtype
