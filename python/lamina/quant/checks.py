"""Checks of the arguments of quantisers."""

from __future__ import annotations

import torch
from torch import Tensor

from lamina._checks import require_tensors
from lamina.ops.gemm_int4 import GROUP_STEP

WEIGHT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
ZERO_DTYPES = (torch.uint8, *WEIGHT_DTYPES)


def checked_weight(op: str, w: Tensor) -> Tensor:
    """w [n, k] without its gradient. Raises a ValueError for a weight that cannot be quantised."""
    require_tensors(op, w=w)
    if w.dim() != 2:
        raise ValueError(f"{op}: w must be 2-D [n, k], got {w.dim()}-D {list(w.shape)}")
    if w.dtype not in WEIGHT_DTYPES:
        raise ValueError(f"{op}: w must be float32, float16 or bfloat16, got {w.dtype}")
    require_finite(f"{op}: w", w.detach())
    return w.detach()


def checked_group(op: str, group: int, k: int) -> int:
    """The number of input features that share a scale; -1 stands for all of k."""
    require_group(op, group)
    return max(k, 1) if group == -1 else group


def require_group(op: str, group: int) -> None:
    """Raises a ValueError for a group that the kernels do not know."""
    if not is_group(group):
        raise ValueError(
            f"{op}: group = {group}; must be a positive multiple of {GROUP_STEP}, or -1 for all of k"
        )


def is_group(group: int) -> bool:
    """Whether the kernels know groups of this size."""
    return group == -1 or (group > 0 and group % GROUP_STEP == 0)


def checked_scale_dtype(op: str, wanted: torch.dtype | None, w: Tensor) -> torch.dtype:
    """The dtype of the scales; None is the dtype of w."""
    dtype = w.dtype if wanted is None else wanted
    if dtype not in WEIGHT_DTYPES:
        raise ValueError(f"{op}: scale_dtype must be float32, float16 or bfloat16, got {dtype}")
    return dtype


def checked_zero_dtype(op: str, wanted: torch.dtype | None, symmetric: bool) -> torch.dtype | None:
    """The dtype of the zero points, None if symmetric; a `wanted` None is uint8."""
    if wanted is not None and symmetric:
        raise ValueError(f"{op}: zero_point_dtype was given; it is allowed only with symmetric = False")
    if wanted not in (None, *ZERO_DTYPES):
        raise ValueError(f"{op}: zero_point_dtype must be uint8, float32, float16 or bfloat16, got {wanted}")
    return None if symmetric else wanted or torch.uint8


def require_finite(name: str, w: Tensor) -> None:
    """Raises a ValueError that names the first NaN or Inf of w."""
    finite = torch.isfinite(w)
    if bool(finite.all()):
        return
    bad = torch.nonzero(~finite)
    at = tuple(bad[0].tolist())
    raise ValueError(
        f"{name} holds {len(bad)} NaN or Inf, the first at {list(at)} ({w[at].item()}); it must be finite"
    )


def count_groups(k: int, group: int) -> int:
    """The groups of k input features; group -1 is one for all."""
    return -(-k // (max(k, 1) if group == -1 else group))


def require_g_idx(op: str, g_idx: Tensor, k: int, groups: int) -> None:
    """Raises ValueError unless g_idx is [k] with the numbers of groups that have scales."""
    if g_idx.shape != (k,) or (k and int(g_idx.max()) >= groups):
        most = f", at most {int(g_idx.max())}" if g_idx.numel() else ""
        raise ValueError(
            f"{op}: g_idx must be [k] with k = {k}, below {groups} groups of the scales, "
            f"got {list(g_idx.shape)}{most}"
        )
