"""How DTensor may shard the products and quantize_int8: by rows, output features and input features."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor._op_schema import RuntimeSchemaInfo
from torch.distributed.tensor.experimental import register_sharding
from torch.distributed.tensor.placement_types import Placement

from lamina.ops.pack_int8 import GROUP, TILE_K, TILE_N
from lamina.ops.registration import Arguments, Schema

# The placements of the results, and of the arguments by name; those that are not named are replicated.
Sharding = tuple[list[Placement], dict[str, Placement]]
Rule = Callable[[Arguments], Iterator[Sharding]]


def register() -> None:
    """Registers the rules of all ops with DTensor."""
    for op, rule in RULES.items():
        _register(op, rule)


def _register(op: str, rule: Rule) -> None:
    overload, schema = getattr(torch.ops.lamina, op).default, Schema("lamina", op)
    replicated: Sharding = [Replicate() for _ in overload._schema.returns], {}

    def choices(*args: Any, **kwargs: Any) -> list[tuple[list[Placement], list[Placement | None]]]:
        given = schema.bind(args, kwargs)
        tensors = {name: _is_tensor(argument) for name, argument in vars(given).items()}
        return [
            (results, [by_name.get(name, Replicate()) if there else None for name, there in tensors.items()])
            for results, by_name in [replicated, *rule(given)]
        ]

    add: Any = register_sharding(overload)
    add(choices)
    # register_sharding lets DTensor reuse a decision for calls that differ in a str or a dtype only.
    info = RuntimeSchemaInfo(static_argnum=0, needs_pytree=True)
    DTensor._op_dispatcher.sharding_propagator.op_to_schema_info[overload] = info


def _is_tensor(argument: Any) -> bool:
    return hasattr(argument, "placements")


def _by_rows(given: Arguments, x: str, *per_token: str) -> dict[str, Placement]:
    """The arguments with a row for each row of the argument x are sharded."""
    m = getattr(given, x).shape[0]
    named = {at: getattr(given, at) for at in (x, "gate", "residual", *per_token) if hasattr(given, at)}
    return {at: Shard(0) for at, t in named.items() if _is_tensor(t) and t.ndim == 2 and t.shape[0] == m > 1}


def _gemm_int8(given: Arguments) -> Iterator[Sharding]:
    (_, k), n, size = given.a.shape, given.w_sums.shape[-1], given.a.mesh.size()
    is_grouped = given.w_sums.ndim == 2
    yield [Shard(0)], _by_rows(given, "a", "a_scale", "a_zero_point")
    last = given.w_scale.ndim - 1
    if n % (TILE_N * size) == 0:
        yield (
            [Shard(1)],
            {
                "w": Shard(0),
                "w_sums": Shard(given.w_sums.ndim - 1),
                "w_scale": Shard(last) if given.w_scale.shape[last] == n else Replicate(),
                **_AFTER_N,
            },
        )
    # The kernels subtract the column sums of the features that they multiply, so each shard needs its own.
    has_own_sums = is_grouped or all(placement.is_partial() for placement in given.w_sums.placements)
    if given.activation is None and has_own_sums and k % ((GROUP if is_grouped else TILE_K) * size) == 0:
        by_group: dict[str, Placement] = {"w_sums": Shard(0) if is_grouped else Partial()}
        if given.a_scale.ndim == 2 and given.a_scale.shape[1] > 1:
            by_group["a_scale"] = Shard(1)
        if given.w_scale.ndim == 2:
            by_group["w_scale"] = Shard(0)
        yield [Partial()], {"a": Shard(1), "w": Shard(1), **by_group, **_AFTER_K}


def _gemm_int4(given: Arguments) -> Iterator[Sharding]:
    (_, k), (groups, n), size = given.a.shape, given.w_scale.shape, given.a.mesh.size()
    is_quantized_inside = hasattr(given, "a_scale") and given.a_scale is None
    yield [Shard(0)], _by_rows(given, "a", "a_scale", "a_zero_point")
    if n % (TILE_N * size) == 0:
        by_column = {"w_scale": Shard(1), "w_zero_point": Shard(1)}
        yield [Shard(1)], {"w": Shard(0), **by_column, **_AFTER_N}
    is_divisible = k % (TILE_K * size) == 0 and (groups == 1 or k % (given.group * size) == 0)
    # A token that is quantised inside has one scale over all input features.
    if is_divisible and given.activation is None and given.perm is None and not is_quantized_inside:
        by_group = {at: Replicate() if groups == 1 else Shard(0) for at in ("w_scale", "w_zero_point")}
        yield [Partial()], {"a": Shard(1), "w": Shard(1), **by_group, **_AFTER_K}


def _quantize_int8(given: Arguments) -> Iterator[Sharding]:
    zero_point = Replicate() if given.symmetric else Shard(0)  # if symmetric it is empty
    yield [Shard(0), Shard(0), zero_point], _by_rows(given, "x", "scale", "zero_point")
    if given.scale is not None:  # a scale that is found needs whole rows
        yield [Shard(1), Replicate(), Replicate()], {"x": Shard(1)}


_AFTER_N: dict[str, Placement] = {"bias": Shard(0), "gate": Shard(1), "residual": Shard(1)}
_AFTER_K: dict[str, Placement] = {"bias": Partial(), "residual": Partial()}  # gate multiplies all parts
RULES: dict[str, Rule] = {
    "gemm_int8": _gemm_int8,
    "gemm_int4": _gemm_int4,
    "gemm_int4_int8": _gemm_int4,
    "quantize_int8": _quantize_int8,
}
