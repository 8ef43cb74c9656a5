"""Which layers become 2:4: errors of their outputs, and the layers that a budget keeps dense."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from lamina.ops.pack_sparse24 import BLOCK_N, count_dense, mask_of_dense


class OutputError:
    """The error |x (pruned - w).T| / |x w.T| of a layer, Frobenius, for the inputs x of a Hessian.

    Without a Hessian it is |pruned - w| / |w|.
    """

    def __init__(self, w: Tensor, pruned: Tensor, hessian: Tensor | None) -> None:
        w, change = w.detach().float(), pruned.float() - w.detach().float()
        squares = [
            (part * (part if hessian is None else part @ hessian)).sum(1).cpu() for part in (change, w)
        ]
        size = float(squares[1].sum())
        # The share of each row in the square of the error.
        self._rows = squares[0].clamp(min=0).double() / size if size > 0 else torch.zeros(len(w)).double()

    def without(self, dense_rows: tuple[int, ...] = ()) -> float:
        """The error if these blocks of rows have none."""
        return math.sqrt(self._rows[~mask_of_dense(dense_rows, len(self._rows))].sum())

    def dense_rows(self, limit: float) -> tuple[int, ...]:
        """The smallest block of rows without which the error is at most `limit`; () if none is needed."""
        n = len(self._rows)
        blocks = torch.nn.functional.pad(self._rows, (0, -n % BLOCK_N)).reshape(-1, BLOCK_N).sum(1)
        excess, sums = float(blocks.sum()) - limit * limit, torch.nn.functional.pad(blocks.cumsum(0), (1, 0))
        for size in range(len(blocks) + 1):
            gained, at = (sums[size:] - sums[: len(sums) - size]).max(0)
            if float(gained) >= excess or size == len(blocks):
                break
        return (int(at) * BLOCK_N, min((int(at) + size) * BLOCK_N, n)) if size else ()

    def count_sparse(self, limit: float) -> int:
        """The rows that are 2:4 beside `dense_rows`."""
        return len(self._rows) - count_dense(self.dense_rows(limit), len(self._rows))


def common_limit(errors: Mapping[str, OutputError], features: Mapping[str, int], fraction: float) -> float:
    """The error to which dense rows bring all layers, so that at most `fraction` of the weights is 2:4.

    features  input features of each layer
    """

    def count(limit: float) -> int:
        """The weights of 2:4 rows."""
        sparse = {name: error.count_sparse(limit) for name, error in errors.items()}
        return sum(rows * features[name] for name, rows in sparse.items())

    low, high = 0.0, max((error.without() for error in errors.values()), default=0.0) * (1 + 1e-9)
    most = fraction * count(high) * (1 + 1e-9)  # a product may be rounded
    if count(high) <= most:
        return high
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if count(middle) <= most else (low, middle)
    return low


def require_budget(op: str, fraction: float, max_layer_error: float | None) -> None:
    """Raises a ValueError for a budget that cannot be."""
    if not 0 <= fraction <= 1:
        raise ValueError(f"{op}: sparse24_fraction = {fraction}; must be from 0 to 1")
    if max_layer_error is not None and not max_layer_error >= 0:
        raise ValueError(f"{op}: max_layer_error = {max_layer_error}; must be None or at least 0")


def dense_layers(
    errors: Mapping[str, float], elements: Mapping[str, int], fraction: float, max_layer_error: float | None
) -> dict[str, str]:
    """The layers that stay dense, with a reason. The others fit into the share, the smallest errors first.

    errors           of each layer as 2:4
    elements         of the weight of each layer
    fraction         the share of all elements that may be 2:4
    max_layer_error  the largest error that a 2:4 layer may have, or None
    """
    dense: dict[str, str] = {}
    left = fraction * sum(elements[name] for name in errors) * (1 + 1e-9)  # a sum may be rounded
    for name, error in sorted(errors.items(), key=lambda item: item[1]):
        if max_layer_error is not None and error > max_layer_error:
            dense[name] = f"dense: its output error as 2:4, {error:.4f}, is above {max_layer_error}"
        elif elements[name] > left:
            dense[name] = (
                f"dense: its output error as 2:4 is {error:.4f}, and sparse24_fraction is {fraction}"
            )
        else:
            left -= elements[name]
    return dense
