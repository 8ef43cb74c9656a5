"""Hessians of a layer's squared output error: sums over its inputs, checks, and the factor of the inverse."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lamina._checks import require_tensors
from lamina.quant.checks import require_finite


def hessian(inputs: Tensor | Iterable[Tensor]) -> Tensor:
    """x.T @ x / rows for the inputs x of a layer, for gptq.

    inputs   [..., k] floats of any dtype, or an iterable of such tensors, all on the device of the result
    returns  [k, k]  f32
    """
    total = Hessian()
    for x in [inputs] if isinstance(inputs, Tensor) else inputs:
        total.add(x)
    return total.mean()


class Hessian:
    """Sums x.T @ x of a layer's inputs, in f32."""

    def __init__(self) -> None:
        self.rows = 0
        self._sum: Tensor | None = None

    def add(self, x: Tensor) -> None:
        """Adds the rows of x [..., k], nested or not."""
        require_tensors("hessian", inputs=x)
        if x.is_nested:
            for part in x.unbind():
                self.add(part)
            return
        # An input may come from torch.inference_mode, whose tensors are read-only outside of that mode.
        with torch.inference_mode(False), torch.no_grad():
            rows = x.detach().reshape(-1, x.shape[-1]).float()
            if self._sum is None:
                self._sum = rows.new_zeros(rows.shape[1], rows.shape[1])
            self._sum.addmm_(rows.T, rows)
            self.rows += rows.shape[0]

    def mean(self) -> Tensor:
        """The sum divided by the number of rows, [k, k] f32."""
        if self._sum is None or not self.rows:
            raise ValueError("hessian: inputs must hold at least one row, got none")
        return self._sum / self.rows


def checked_hessian(op: str, hessian: Tensor, w: Tensor) -> Tensor:
    """The Hessian [k, k] of the inputs of w [n, k]. Raises a ValueError for what is none."""
    require_tensors(op, hessian=hessian)
    k = w.shape[1]
    if hessian.shape != (k, k):
        raise ValueError(f"{op}: hessian must be [k, k] with k = {k} of w, got {list(hessian.shape)}")
    if hessian.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{op}: hessian must be float32 or float64, got {hessian.dtype}")
    if hessian.device != w.device:
        raise ValueError(f"{op}: hessian must be on {w.device} like w, got {hessian.device}")
    require_finite(f"{op}: hessian", hessian)
    _require_semidefinite(op, hessian.double())
    return hessian


def _require_semidefinite(op: str, h: Tensor) -> None:
    """Raises a ValueError if h [k, k] is no Hessian of any inputs; errors of f32 sums are allowed."""
    if not len(h):
        return
    rounding = float(h.diagonal().abs().sum()) * 2.0**-20 or torch.finfo(h.dtype).tiny
    skew = (h - h.T).abs()
    if float(skew.max()) > rounding:
        i, j = divmod(int(skew.argmax()), len(h))
        raise ValueError(
            f"{op}: hessian must be symmetric and positive semidefinite; "
            f"[{i}, {j}] is {h[i, j]:.6g} and [{j}, {i}] is {h[j, i]:.6g}"
        )
    shifted = h.clone()
    shifted.diagonal().add_(rounding)
    if bool(torch.linalg.cholesky_ex(shifted).info):
        raise _indefinite(op, h)


def _indefinite(op: str, h: Tensor) -> ValueError:
    smallest, largest = torch.linalg.eigvalsh(h)[[0, -1]].tolist()
    return ValueError(
        f"{op}: hessian must be symmetric and positive semidefinite; "
        f"its smallest eigenvalue is {smallest:.6g}, its largest {largest:.6g}"
    )


def inverse_factor(op: str, hessian: Tensor, damp: float, order: Tensor) -> Tensor:
    """The upper triangular u of inverse(hessian) = u.T @ u, rows and columns in `order`; made in f64."""
    h = hessian.double()[order][:, order]
    live = h.diagonal() > 0
    h /= h.diagonal()[live].mean() if bool(live.any()) else 1.0  # a factor does not change the rounding
    diagonal = h.diagonal()
    diagonal[~live] = 1.0  # a column that no input reaches depends on no other
    diagonal += damp
    # The lower factor of the reversed matrix, reversed again, is the upper factor r of h = r @ r.T.
    lower, info = torch.linalg.cholesky_ex(h.flip(0, 1))
    if bool(info):  # damp adds less to the diagonal than an allowed rounding error takes
        raise _indefinite(op, hessian.double())
    one = torch.eye(len(h), dtype=h.dtype, device=h.device)
    upper: Tensor = torch.linalg.solve_triangular(lower.flip(0, 1), one, upper=True)
    return upper.float()
