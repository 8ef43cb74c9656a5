"""Which layers become 2:4: errors of their outputs, and the layers that a budget keeps dense."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def output_error(w: Tensor, pruned: Tensor, hessian: Tensor | None) -> float:
    """|x (pruned - w).T| / |x w.T| of the inputs x of a Hessian, Frobenius; without it |pruned - w| / |w|."""
    w, change = w.detach().float(), pruned.float() - w.detach().float()
    if hessian is None:
        squares = [float(part.square().sum()) for part in (change, w)]
    else:
        squares = [float(((part @ hessian) * part).sum()) for part in (change, w)]
    return (max(squares[0], 0.0) / squares[1]) ** 0.5 if squares[1] > 0 else 0.0


def require_budget(op: str, fraction: float, max_layer_error: float | None) -> None:
    """Raises a ValueError for a budget that cannot be."""
    if not 0 <= fraction <= 1:
        raise ValueError(f"{op}: sparse24_fraction = {fraction}; must be from 0 to 1")
    if max_layer_error is not None and not max_layer_error >= 0:
        raise ValueError(f"{op}: max_layer_error = {max_layer_error}; must be None or at least 0")


def dense_layers(
    errors: Mapping[str, float], elements: Mapping[str, int], fraction: float, max_layer_error: float | None
) -> dict[str, str]:
    """The layers that stay dense, with a reason. The others are those with the smallest errors.

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
