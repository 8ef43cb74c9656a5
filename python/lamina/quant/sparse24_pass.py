"""The pass of SparseGPT along k, which prunes, rounds and compensates; and the checks that precede it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from lamina.quant.checks import checked_weight
from lamina.quant.compensation import cuts, replace_columns, require_options
from lamina.quant.grid import rows_at_a_time
from lamina.quant.hessians import checked_hessian, inverse_factor
from lamina.quant.int8 import quantize_weight_int8
from lamina.quant.sparse24_masks import GROUP, keep_two, require_mask

METHODS = ("magnitude", "wanda", "sparsegpt")


class Rounding(Protocol):
    """Rounds the kept weights of some rows. Columns are the first dimension."""

    @property
    def span(self) -> int:
        """How many columns share a grid, which is fitted when the first of them is reached; 0: no grid."""

    def reach(self, begin: int, left: Tensor) -> None:
        """Fits the grid of the columns `left` [span, rows], 0 where they would be pruned."""

    def value(self, at: int, part: Tensor) -> Tensor:
        """The column part[0], rounded."""


R = TypeVar("R", bound=Rounding)


class FloatRounding:
    """Rounds to the dtype of the float weight."""

    span = 0

    def __init__(self, w: Tensor) -> None:
        self._dtype = w.dtype

    def reach(self, begin: int, left: Tensor) -> None:
        """Nothing to fit."""

    def value(self, at: int, part: Tensor) -> Tensor:
        """The column in the dtype of the weight, as f32."""
        return part[0].to(self._dtype).float()


class Int8Rounding:
    """Rounds to int8 with one scale for all of k."""

    def __init__(self, w: Tensor) -> None:
        self.span = w.shape[1]
        self.scale = torch.ones(len(w), dtype=torch.float32, device=w.device)

    def reach(self, begin: int, left: Tensor) -> None:
        """The scale of quantize_weight_int8."""
        self.scale = quantize_weight_int8(left.T.cpu())[1].to(left.device)

    def value(self, at: int, part: Tensor) -> Tensor:
        """The values of the codes nearest to a column."""
        return (part[0] / self.scale).round().clamp(-127, 127) * self.scale


class _Pruning(Generic[R]):
    """The rule of replace_columns that prunes some rows; it holds their values and their mask."""

    def __init__(self, w: Tensor, rounding: R, cost: Tensor, given: Tensor | None) -> None:
        self.rounding = rounding
        self.values = torch.empty(w.shape[1], len(w), dtype=torch.float32, device=w.device)
        self.mask = torch.empty_like(self.values, dtype=torch.bool)
        self._cost, self._given = cost, given

    def reach(self, begin: int, left: Tensor) -> None:
        span = self.rounding.span
        if span and begin % span == 0:
            ahead = left[:span]
            self.rounding.reach(begin, torch.where(self._choice(begin, ahead), ahead, 0.0))

    def value(self, at: int, part: Tensor) -> Tensor:
        if at % GROUP == 0:
            self.mask[at : at + GROUP] = self._choice(at, part[:GROUP])
        self.values[at] = torch.where(self.mask[at], self.rounding.value(at, part), 0.0)
        return self.values[at]

    def _choice(self, begin: int, columns: Tensor) -> Tensor:
        """The places that are kept of these columns."""
        places = slice(begin, begin + len(columns))
        if self._given is not None:
            return self._given[places]
        return keep_two((columns * self._cost[places]).abs(), 0)


class Compensated(NamedTuple, Generic[R]):
    """The pruned weight."""

    values: Tensor  # [n, k] f32
    mask: Tensor  # [n, k] bool
    roundings: Sequence[R]  # each of some rows, in order


class Task(NamedTuple):
    """A weight to prune: with a mask that is chosen already, or with a factor that compensates, or both."""

    w: Tensor
    mask: Tensor | None
    factor: Tensor | None  # [k, k] f32, from inverse_factor
    live: Tensor  # [k] bool: the features that are not always 0
    block: int

    def masked(self) -> tuple[Tensor, Tensor]:
        """The weight without what the mask drops, and the mask."""
        assert self.mask is not None
        return torch.where(self.mask, self.w, torch.zeros_like(self.w)), self.mask

    def compensate(self, rounding: Callable[[Tensor], R]) -> Compensated[R]:
        """Prunes where there is no mask, and rounds; later columns compensate the errors."""
        assert self.factor is not None
        # The weight of a column costs the outputs w^2 / u^2, u the factor's diagonal (SparseGPT, equation 3).
        cost = (self.live / self.factor.diagonal())[:, None]
        rows = rows_at_a_time(self.w, self.block)
        masks = self.w.new_empty(len(self.w), 0) if self.mask is None else self.mask
        made: list[_Pruning[R]] = []
        for w, mask in zip(torch.split(self.w, rows), torch.split(masks, rows), strict=True):
            made.append(_Pruning(w, rounding(w), cost, None if self.mask is None else mask.T))
            left = w.float().T.clone(memory_format=torch.contiguous_format)
            ends = cuts(len(left), self.block, made[-1].rounding.span)
            replace_columns(left, self.factor, ends, made[-1])
        values, mask = (torch.cat([getattr(part, name).T for part in made]) for name in ("values", "mask"))
        return Compensated(values, mask, [part.rounding for part in made])


def checked_task(
    op: str,
    w: Tensor,
    hessian: Tensor | None,
    method: str | None,
    mask: Tensor | None,
    damp: float,
    block: int,
) -> Task:
    """The arguments of prune_sparse24 as a Task. Raises a ValueError for bad ones."""
    w = checked_weight(op, w)
    k = w.shape[1]
    if k % GROUP:
        raise ValueError(f"{op}: w must be [n, k] with k a multiple of {GROUP}, got k = {k}")
    if method is None:
        method = "magnitude" if hessian is None else "sparsegpt"
    if method not in METHODS:
        raise ValueError(f"{op}: method must be one of {', '.join(METHODS)}, got {method!r}")
    if hessian is None and method != "magnitude":
        raise ValueError(f"{op}: method {method!r} needs a hessian, got None; without one: 'magnitude'")
    require_options(op, damp, block)
    if mask is not None:
        require_mask(op, mask, w)
    live, factor = torch.ones(k, dtype=torch.bool, device=w.device), None
    if hessian is not None and method != "magnitude":
        hessian = checked_hessian(op, hessian, w)
        live = hessian.diagonal() > 0
    if method == "sparsegpt":
        assert hessian is not None
        factor = inverse_factor(op, hessian, damp, torch.arange(k, device=w.device))
    elif mask is None:
        norms = None if method == "magnitude" or hessian is None else hessian.diagonal().double().sqrt()
        scores = [
            part.double().abs() if norms is None else part.double().abs() * norms
            for part in torch.split(w, 1024)
        ]
        mask = torch.cat([keep_two(part, 1) for part in scores])
    return Task(w, mask, factor, live, -(-block // GROUP) * GROUP)
