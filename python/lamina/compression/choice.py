"""Which scheme each layer gets: one for all, a mapping of name patterns, one for the head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from torch import nn

from lamina._checks import require_optional_int
from lamina.compression.candidates import LINEAR_KINDS, Candidate
from lamina.compression.schemes import SCHEMES, Int4Scheme, Scheme
from lamina.quant import WEIGHT_DTYPES
from lamina.quant.checks import checked_zero_dtype, require_group


class Assigned(NamedTuple):
    """The schemes of the layers of a model."""

    schemes: dict[str, Scheme]  # by the name of each layer
    reasons: dict[str, str]  # layers that no pattern matches
    untied: frozenset[str]  # layers that are packed although their weight is tied to a float tensor
    unmatched: list[str]  # patterns that match no layer


class Choice(NamedTuple):
    """The arguments `scheme`, `group`, `scale_dtype`, `zero_point_dtype` and `head` of lamina.compress."""

    rules: tuple[tuple[str, Scheme], ...]  # the first pattern that matches a name of the layer counts
    head: Scheme | None

    @property
    def schemes(self) -> tuple[Scheme, ...]:
        """Every scheme that may be used."""
        return (*(scheme for _, scheme in self.rules), *([] if self.head is None else [self.head]))

    @property
    def text(self) -> str:
        """The schemes in one line."""
        names = ", ".join(dict.fromkeys(scheme.name for _, scheme in self.rules))
        return names if self.head is None else f"{names}, head {self.head.name}"

    def assign(self, model: nn.Module, candidates: list[Candidate]) -> Assigned:
        """Gives each layer its scheme. Raises ValueError for a head that the model lacks."""
        schemes: dict[str, Scheme] = {}
        reasons: dict[str, str] = {}
        head = None if self.head is None else _head(model, candidates)
        used: set[str] = set()
        untied: set[str] = set() if head is None else {head}
        for candidate in candidates:
            hits = [at for at, _ in self.rules if any(fnmatchcase(name, at) for name in candidate.names)]
            used.update(hits)
            if candidate.name == head and self.head is not None:
                schemes[candidate.name] = self.head
            elif candidate.weight_owner in schemes and candidate.weight_owner != candidate.name:
                schemes[candidate.name] = schemes[candidate.weight_owner]  # they share one packed weight
            elif hits:
                schemes[candidate.name] = dict(self.rules)[hits[0]]
            else:
                reasons[candidate.name] = "no pattern of the mapping of schemes matches it"
                schemes[candidate.name] = self.rules[0][1]
            if any(name == at for at, _ in self.rules for name in candidate.names):
                untied.add(candidate.name)
        unmatched = [at for at, _ in self.rules if at not in used and at != ALL]
        return Assigned(schemes, reasons, frozenset(untied), unmatched)


ALL = "*"


def checked_choice(
    scheme: str | Mapping[str, str],
    group: int | None,
    scale_dtype: torch.dtype | None,
    head: str | None,
    zero_point_dtype: torch.dtype | None = None,
) -> Choice:
    """The arguments as a Choice. Raises ValueError for an unknown scheme, or an option that none has."""
    if isinstance(scheme, Mapping):
        if not scheme or not all(isinstance(pattern, str) for pattern in scheme):
            raise ValueError(
                f"compress: scheme must map name patterns to schemes, got {dict(scheme)!r}; allowed: "
                '{"lm_head": "w8a8", "*": "w4a8"}'
            )
        rules = [(pattern, _named(f"scheme[{pattern!r}]", name)) for pattern, name in scheme.items()]
    else:
        rules = [(ALL, _named("scheme", scheme))]
    own_head = None if head is None else _named("head", head)
    choice = Choice(tuple(rules), own_head)
    for name, value, takes in (
        ("group", group, _is_int4),
        ("scale_dtype", scale_dtype, _is_int4),
        ("zero_point_dtype", zero_point_dtype, _takes_float_zeros),
    ):
        is_taken = any(takes(one) for one in choice.schemes)
        require_option(name, value, choice, is_taken, [one for one in SCHEMES.values() if takes(one)])
    require_optional_int("compress", "group", group)
    if group is not None:
        require_group("compress", group)
    if scale_dtype not in (None, *WEIGHT_DTYPES):
        raise ValueError(f"compress: scale_dtype must be float32, float16 or bfloat16, got {scale_dtype}")
    if zero_point_dtype is not None:
        checked_zero_dtype("compress", zero_point_dtype, symmetric=False)

    def with_options(one: Scheme) -> Scheme:
        if not isinstance(one, Int4Scheme):
            return one
        zeros = zero_point_dtype if one.takes_float_zeros else None
        own = one.group if group is None else group
        return replace(one, group=own, scale_dtype=scale_dtype, zero_point_dtype=zeros)

    return Choice(
        tuple((pattern, with_options(one)) for pattern, one in rules),
        None if own_head is None else with_options(own_head),
    )


def require_option(name: str, value: Any, choice: Choice, is_taken: bool, takers: list[Scheme]) -> None:
    """Raises ValueError for an option that was given and that none of the schemes takes."""
    if value is not None and not is_taken:
        allowed = ", ".join(scheme.name for scheme in takers)
        raise ValueError(f"compress: {name} was given with scheme {choice.text}; allowed with {allowed}")


def _is_int4(one: Scheme) -> bool:
    return isinstance(one, Int4Scheme)


def _takes_float_zeros(one: Scheme) -> bool:
    return isinstance(one, Int4Scheme) and one.takes_float_zeros


def _named(argument: str, name: object) -> Scheme:
    if not isinstance(name, str) or name not in SCHEMES:
        raise ValueError(f"compress: {argument} must be one of {', '.join(SCHEMES)}, got {name!r}")
    return SCHEMES[name]


def _head(model: nn.Module, candidates: list[Candidate]) -> str:
    """The first name of the output layer of a language model of transformers."""
    find: Any = getattr(model, "get_output_embeddings", None)
    module = None if find is None else find()
    for candidate in candidates:
        if candidate.module is module:
            return candidate.name
    got = "none" if module is None else type(module).__name__
    raise ValueError(
        f"compress: head was given, and get_output_embeddings() of the model gives {got}, not an "
        f"{LINEAR_KINDS}; name the layer in a mapping of schemes"
    )
