"""Why lamina.compress leaves a layer: the user asked for it, or the layer itself does not allow packing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from types import MethodType

from torch import nn
from torch.nn.utils import parametrize

from lamina.compression.candidates import Candidate, linear_types
from lamina.compression.memory import is_wrapper, tensor_bytes
from lamina.compression.schemes import Scheme
from lamina.ops.pack_int4 import TILE_K, TILE_N
from lamina.quant import WEIGHT_DTYPES

Skip = str | Callable[[str, nn.Module], bool]

HOOKS = {
    "forward": ("_forward_hooks", "_forward_pre_hooks"),
    "backward": ("_backward_hooks", "_backward_pre_hooks"),
    "state-dict": (
        "_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks",
        "_load_state_dict_post_hooks",
    ),
}  # fmt: skip
COMPILED = "its own compilation would be lost; compress before compiling"
# The two halves of a LoRA layer, as peft, torchtune and diffusers name them.
ADAPTERS = (("lora_A", "lora_B"), ("lora_a", "lora_b"), ("lora_down", "lora_up"))
PLAIN_ATTRIBUTES = frozenset({*vars(nn.Module()), "in_features", "out_features", "nf", "nx"})
# transformers sets this on every module that it loads; it is copied, and the report does not mention it.
QUIET_ATTRIBUTES = frozenset({"_is_hf_initialized"})


def checked_filters(skip: Skip | Sequence[Skip], argument: str = "skip") -> Sequence[Skip]:
    """The entries of `skip`, each a pattern or a function."""
    filters = [skip] if isinstance(skip, str) or not isinstance(skip, Sequence) else skip
    for wanted in filters:
        if not isinstance(wanted, str) and (isinstance(wanted, type) or not callable(wanted)):
            raise TypeError(
                f"compress: {argument} must hold name patterns or functions (name, module) -> bool, got "
                f"{wanted!r}"
            )
    return filters


def filtered(candidates: list[Candidate], filters: Sequence[Skip]) -> tuple[dict[str, str], list[str]]:
    """The reason for each layer that a filter leaves, and the patterns that match no layer."""
    reasons: dict[str, str] = {}
    unmatched: list[str] = []
    for wanted in filters:
        if isinstance(wanted, str):
            hits = [c for c in candidates if any(fnmatchcase(name, wanted) for name in c.names)]
            reason = f"skip pattern {wanted!r}"
            unmatched += [] if hits else [wanted]
        else:
            hits = [c for c in candidates if any(wanted(name, c.module) for name in c.names)]
            reason = f"skip function {getattr(wanted, '__name__', repr(wanted))}"
        for candidate in hits:
            reasons.setdefault(candidate.name, reason)
    return reasons, unmatched


def unsuitable(model: nn.Module, candidate: Candidate, scheme: Scheme, must_shrink: bool) -> str | None:
    """Why this layer cannot or should not be packed, or None. leave_ties looks at shared weights."""
    module, linear = candidate.module, candidate.linear
    for name in candidate.names:
        if isinstance(model.get_submodule(name.rpartition(".")[0]), nn.MultiheadAttention):
            return "nn.MultiheadAttention reads its .weight"
        if adapter := _adapter(model, name):
            rank = min(linear.in_features, linear.out_features)
            return (
                f"it is the {adapter} of a LoRA layer, rank {rank}, whose .weight is read; "
                "merge adapters before compressing to pack them too"
            )
        if name.rpartition(".")[2] == "_orig_mod":
            return COMPILED
    problem = not_plain(module) or scheme.problem(linear) or _would_be_lost(candidate, scheme)
    if problem is not None:
        return problem
    if linear.in_features > scheme.max_k:
        return (
            f"its k = {linear.in_features} is above {scheme.max_k}, the most that {scheme.name} sums exactly"
        )
    for tensor in (linear.weight, linear.bias):
        if tensor is not None and tensor.dtype not in WEIGHT_DTYPES:
            return f"its weight or bias is {tensor.dtype}, not float32, float16 or bfloat16"
    if must_shrink:
        before = sum(tensor_bytes(tensor) for tensor in candidate.tensors)
        after = scheme.blank(linear).nbytes
        if after > before:
            tile = f"tiles of {TILE_N} x {TILE_K}"
            return f"it would grow from {before} to {after} bytes: weights are packed in {tile}"
    return None


def extra_attributes(module: nn.Module) -> dict[str, object]:
    """Attributes that were set on this layer, beside those that every linear layer has."""
    return {name: value for name, value in vars(module).items() if name not in PLAIN_ATTRIBUTES}


def _adapter(model: nn.Module, name: str) -> str | None:
    """The part of the name that marks the layer as an adapter, such as lora_A, or None."""
    parent = model
    for part in name.split("."):
        for pair in ADAPTERS:
            if part in pair and all(isinstance(getattr(parent, half, None), nn.Module) for half in pair):
                return part
        parent = parent.get_submodule(part)
    return None


def not_plain(module: nn.Module) -> str | None:
    """Why the layer is or does more than a plain linear layer, or None."""
    if parametrize.is_parametrized(module):
        return "its weight is parametrized; torch.nn.utils.parametrize.remove_parametrizations makes it plain"
    if type(module) not in linear_types():
        base = next(kind for kind in linear_types() if isinstance(module, kind))
        kind = "nn.Linear" if base is nn.Linear else base.__name__
        return f"{type(module).__name__} is a subclass of {kind}, whose forward may differ"
    if "_hf_hook" in vars(module):
        return "accelerate moves its weight (_hf_hook); load the model without offloading to pack it"
    if "forward" in vars(module):
        return "its forward was replaced on the instance"
    for name in ("weight", "bias"):
        tensor = module._parameters.get(name)
        if tensor is None and name == "weight":
            return "its weight is not a parameter"
        if tensor is not None and is_wrapper(tensor):
            return f"its {name} is a {type(tensor).__name__}, which is not a plain tensor"
    for kind, names in HOOKS.items():
        if any(getattr(module, name, None) for name in names):
            return f"it has {kind} hooks, which would be lost"
    if more := list(_registered(module)):
        return f"it has more than a weight and a bias: {', '.join(more)}"
    return None


def _would_be_lost(candidate: Candidate, scheme: Scheme) -> str | None:
    """Which attribute of the layer a packed layer would not have, as a reason to leave it, or None."""
    module = candidate.module
    extras = extra_attributes(module)
    if extras.keys() <= QUIET_ATTRIBUTES:
        return None
    packed = scheme.blank(candidate.linear)
    for name, value in extras.items():
        if name == "_compiled_call_impl":
            return COMPILED
        if hasattr(packed, name):
            return f"its attribute {name!r} would be lost: a packed layer has its own"
        if isinstance(value, MethodType) and value.__self__ is module:
            return f"its attribute {name!r} is a method of the layer itself, which would be lost"
    return None


def _registered(module: nn.Module) -> Iterator[str]:
    yield from (name for name in module._parameters if name not in ("weight", "bias"))
    yield from module._buffers
    yield from module._modules
