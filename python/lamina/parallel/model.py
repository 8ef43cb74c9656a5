"""lamina.parallel.tensor_parallel."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import torch.distributed as dist
from torch import nn

from lamina.compression.reasons import HOOKS
from lamina.compression.swap import set_everywhere
from lamina.nn.packed_linear import PackedLinear
from lamina.parallel.layers import ColumnParallel, ParallelLinear, RowParallel

Model = TypeVar("Model", bound=nn.Module)

STYLES: dict[str, tuple[type[ParallelLinear], dict[str, bool]]] = {
    "colwise": (ColumnParallel, {}),
    "rowwise": (RowParallel, {}),
    "colwise_gather_output": (ColumnParallel, {"gather_output": True}),
    "rowwise_split_input": (RowParallel, {"split_input": True}),
}
# Styles of transformers for modules that every process may as well keep whole: the result is the same.
WHOLE = ("embedding_rowwise", "embedding_colwise", "replicate", "replicated_with_grad_allreduce")


def tensor_parallel(
    model: Model,
    plan: Mapping[str, str] | None = None,
    group: dist.ProcessGroup | None = None,
    *,
    rank: int | None = None,
    size: int | None = None,
    ordered: bool = False,
) -> Model:
    """Divides the linear layers of a model among the processes of a group, in place. For inference.

    model    the same in every process. Its layers may be packed (lamina.compress), float, or both
    plan     maps patterns of layers' names, as fnmatch reads them, to "colwise" or "rowwise": ColumnParallel
             or RowParallel. "colwise_gather_output" also gathers the output, and "rowwise_split_input" takes
             its part of a whole input. The first pattern that matches a layer counts. None: the model's own
             `tp_plan`, which models of transformers have
    group    torch.distributed process group; None is the default group
    rank, size  the place of this process and the number of processes; None: those of the group. With both
             given no group is needed here, so that one process can make the part of any rank and save it
    ordered  RowParallel adds the outputs in the order of the ranks
    returns  model, whose layers of the plan hold only the part of this process. Code around them sees fewer
             features: attention must take its number of heads from the shape, as transformers does
    Raises   ValueError naming layer, size and allowed values: for a pattern of `plan` without a layer, a
             style that is unknown, a layer of another kind or with hooks, heads or features that cannot be
             divided, and 2:4 weights that would be cut inside a tile. The model is then unchanged
    """
    if (rank is None) != (size is None):
        raise ValueError(f"tensor_parallel: rank = {rank} and size = {size}; give both or neither")
    if rank is None or size is None:
        rank, size = dist.get_rank(group), dist.get_world_size(group)
    if not 0 <= rank < size:
        raise ValueError(f"tensor_parallel: rank = {rank}; must be at least 0 and below size = {size}")
    parts: dict[object, tuple[ParallelLinear, list[str]]] = {}
    for name, style in _styles(model, plan).items():
        layer = model.get_submodule(name)
        if (layer, style) not in parts:
            kind, options = STYLES[style]
            options = options | ({"ordered": ordered} if kind is RowParallel else {})
            try:
                _require_divisible(model, name, layer, style, size)
                part = kind(layer, rank, size, group=group, **options)
            except ValueError as error:
                raise ValueError(f"tensor_parallel: layer {name!r}, size = {size}: {error}") from error
            parts[layer, style] = part, []
        parts[layer, style][1].append(name)
    for part, names in parts.values():
        set_everywhere(model, names, part)
    return model


def _styles(model: nn.Module, plan: Mapping[str, str] | None) -> dict[str, str]:
    """The style of each layer by its name, checked."""
    own: Any = getattr(model, "tp_plan", None)
    wanted: Mapping[str, str] | None = own if plan is None else plan
    if not wanted:
        raise ValueError(
            "tensor_parallel: plan is None, and the model has no tp_plan; pass a plan such as "
            '{"*.up_proj": "colwise", "*.down_proj": "rowwise"}'
        )
    inside = {id(m) for p in model.modules() if isinstance(p, ParallelLinear) for m in p.children()}
    styles: dict[str, str] = {}
    unmatched = set(wanted)
    modules = {
        name: m for name, m in model.named_modules(remove_duplicate=False) if name and id(m) not in inside
    }
    for name, named in (modules | dict(model.named_parameters(remove_duplicate=False))).items():
        pattern = next((p for p in wanted if fnmatchcase(name, p)), None)
        if pattern is None:
            continue
        unmatched.discard(pattern)
        if (style := wanted[pattern]) in WHOLE:
            continue
        if style not in STYLES:
            raise ValueError(
                f"tensor_parallel: layer {name!r}: style {style!r} of the pattern {pattern!r}; allowed: "
                f"{', '.join([*STYLES, *WHOLE])}"
            )
        _require_linear(name, named)
        styles[name] = style
    if unmatched and plan is not None:
        raise ValueError(f"tensor_parallel: pattern {min(unmatched)!r} of plan matches no layer")
    return styles


def _require_linear(name: str, layer: nn.Module | nn.Parameter) -> None:
    """Raises a ValueError for a layer that has no part of its kind."""
    kind = type(layer).__name__
    if type(layer) is not nn.Linear and not isinstance(layer, PackedLinear):
        raise ValueError(f"tensor_parallel: layer {name!r} is {kind}; allowed: nn.Linear, packed layers")
    for when, hooks in HOOKS.items():
        if any(getattr(layer, at, None) for at in hooks):
            raise ValueError(f"tensor_parallel: layer {name!r} has {when} hooks, which would be lost")


def _require_divisible(model: nn.Module, name: str, layer: nn.Module, style: str, size: int) -> None:
    """Heads of attention are never cut. Attention of transformers has their size in head_dim."""
    extents = {"colwise": "out_features", "rowwise": "in_features"}
    head = getattr(model.get_submodule(name.rpartition(".")[0]), "head_dim", None)
    if style not in extents or not isinstance(head, int) or head < 1:
        return
    extent = getattr(layer, extents[style])
    heads = extent // head
    if extent % head == 0 and heads % size:
        allowed = ", ".join(str(d) for d in range(1, heads + 1) if heads % d == 0)
        raise ValueError(f"it has {heads} heads of {head} features; allowed sizes: {allowed}")
