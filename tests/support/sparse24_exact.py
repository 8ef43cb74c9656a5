"""Operands of matmul_sparse24 and matmul_sparse24_int4 whose sums are exact in any order."""

from __future__ import annotations

import dataclasses

import torch

from tests.support.backends import Backend
from tests.support.cases import generator
from tests.support.sparse24_cases import random_mask


@dataclasses.dataclass(frozen=True)
class Exact:
    """a, the kept places, and the weight as it multiplies; where it has codes, these and their scales."""

    a: torch.Tensor
    kept: torch.Tensor
    w: torch.Tensor  # of the dtype of a
    group: int = 0
    codes: torch.Tensor | None = None
    scale: torch.Tensor | None = None
    zero: torch.Tensor | None = None
    perm: torch.Tensor | None = None
    bias: torch.Tensor | None = None

    def want(self) -> torch.Tensor:
        a = self.a if self.perm is None else self.a[:, self.perm.long()]
        return ((a.double() @ self.w.double().T) + self.bias.double()).float()

    def run(self, backend: Backend, rows: slice = slice(None), a: torch.Tensor | None = None) -> torch.Tensor:
        place = backend._place_all
        w = self.w if self.codes is None else self.codes
        sparse = torch.ops.lamina.compress_sparse24(w, self.kept, 0 if self.codes is None else 8)
        a = self.a[rows] if a is None else a
        with backend.active() as ops:
            data, _ = ops.pack_sparse24(*sparse, w.shape[1], backend.sparse24_layout)
            if self.codes is None:
                out: torch.Tensor = ops.matmul_sparse24(
                    *place((a, data)), w.shape[0], *place((self.bias,)), torch.float32
                )
            else:
                out = ops.matmul_sparse24_int4(
                    *place((a, data, self.scale)), self.group, *place((self.zero, self.bias)), torch.float32,
                    None, None, None, *place((self.perm,)),
                )  # fmt: skip
        return out.cpu()


def exact(
    m: int, n: int, k: int, group: int, dtype: torch.dtype, *, has_codes: bool, has_zeros: bool = False
) -> Exact:
    g = generator(f"exact {m} {n} {k} {group} {dtype} {has_codes} {has_zeros}")

    def integers(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=g)

    a, kept, bias = integers(-3, 4, m, k).to(dtype), random_mask(n, k), integers(-9, 9, n).float()
    if not has_codes:
        return Exact(a, kept, (integers(-31, 32, n, k) / 4 * kept).to(dtype), bias=bias)
    groups = -(-k // group)
    codes, zero = integers(0, 16, n, k), integers(0, 16, groups, n)
    scale = 0.5 ** integers(1, 4, groups, n)
    of = torch.arange(k) // group
    w = (codes - (zero[of].T if has_zeros else 8)) * scale[of].T * kept
    return Exact(
        *(a, kept, w.to(dtype), group, codes.byte(), scale.to(dtype), zero.byte() if has_zeros else None),
        bias=bias,
    )
