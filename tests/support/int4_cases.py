"""Named problems for the products of int4 weights, and their inputs; see cases.py."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

import lamina  # noqa: F401  registers torch.ops.lamina
from tests.reference import gemm, gemm_int4
from tests.reference.gemm_int4 import Sums
from tests.support.cases import Epilogue, cut_rows, generator, random_int8, random_scale, widened

LAYOUT = "int4_rows"
BF16_ISAS = ("avx512_bf16", "amx_int8")


@dataclass(frozen=True)
class Int4Inputs(Epilogue):
    """The arguments of gemm_int4_int8 with the weight as codes [n, k], and what the op must return.

    With floats in a and no a_scale they are the arguments of gemm_int4.
    """

    a: torch.Tensor
    q: torch.Tensor
    w_scale: torch.Tensor
    group: int
    a_scale: torch.Tensor | None = None
    w_zero_point: torch.Tensor | None = None
    a_zero_point: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    perm: torch.Tensor | None = None  # q, scales and zero points are in its order
    max_sms: int | None = None

    def but(self, **changed: Any) -> Int4Inputs:
        """The same with some arguments replaced."""
        return dataclasses.replace(self, **changed)

    def rows(self, begin: int, end: int) -> Int4Inputs:
        """The same problem for a slice of the batch."""
        return self.but(
            a=self.a[begin:end],
            a_scale=cut_rows(self.a_scale, begin, end),
            a_zero_point=cut_rows(self.a_zero_point, begin, end),
            **self.rows_of_then(begin, end),
        )

    def pack(self, layout: str = LAYOUT) -> torch.Tensor:
        data: torch.Tensor = torch.ops.lamina.pack_int4(self.q, layout)
        return data

    def permuted(self, features: int) -> Int4Inputs:
        """The same with a perm and another a [m, features]. A seventh of the packed places has no feature.
        The others have random features, so that some features have several places and some none."""
        m, k = len(self.a), self.q.shape[1]
        g = generator(f"perm {m} {k} {features}")
        perm = torch.randint(0, max(features, 1), (k,), generator=g).int()
        perm[torch.rand(k, generator=g) < (1 / 7 if features else 1)] = -1
        return self.but(a=random_int8(g, m, features), perm=perm)

    def gathered(self) -> Int4Inputs:
        """The same product without perm."""
        if self.perm is None:
            return self
        zero = torch.zeros(1) if self.a_zero_point is None else self.a_zero_point.flatten()
        nothing = zero.to(self.a.dtype).expand(len(self.a))
        return self.but(a=gemm_int4.gathered(self.a, self.perm, nothing), perm=None)

    def sums(self) -> Sums:
        zero_point = None if self.a_zero_point is None else self.a_zero_point.numpy()
        return gemm_int4.accumulate(self.gathered().a.numpy(), self.q.numpy(), self.group, zero_point)

    def _arguments(self, out_dtype: torch.dtype) -> tuple[Any, ...]:
        scales = gemm_int4.Scales(widened(self.a_scale), widened(self.w_scale), widened(self.w_zero_point))
        return scales, widened(self.bias), out_dtype, self.steps()

    def expected(self, sums: Sums, out_dtype: torch.dtype) -> gemm.Expected:
        return gemm_int4.gemm_int4_int8(sums, *self._arguments(out_dtype))

    def expected_bits(self, sums: Sums, out_dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return gemm_int4.gemm_int4_int8_steps(sums, *self._arguments(out_dtype))

    def floats(self, dtype: torch.dtype) -> Int4Inputs:
        """The same for gemm_int4, with normally distributed activations."""
        a = torch.randn(self.a.shape, generator=generator(f"{tuple(self.a.shape)}")).to(dtype)
        return self.but(a=a, a_scale=None, a_zero_point=None)

    def float_product(
        self, out_dtype: torch.dtype, isa: str = "generic"
    ) -> tuple[gemm.Expected, torch.Tensor]:
        """The expected result of gemm_int4 on a CPU: with a bound, and its bits."""
        scales, bias, dtype, then = self.but(a_scale=torch.ones(1))._arguments(out_dtype)
        given = (self.gathered().a.float().numpy(), self.q.numpy(), self.group, scales, bias, dtype, then)
        if self.takes_bf16(isa):
            return gemm_int4.gemm_int4_bf16(*given), gemm_int4.gemm_int4_bf16_steps(*given)
        return gemm_int4.gemm_int4(*given), gemm_int4.gemm_int4_steps(*given)

    def takes_bf16(self, isa: str) -> bool:
        """Whether gemm_int4 multiplies bf16 with this instruction set."""
        is_integer = self.w_zero_point is None or self.w_zero_point.dtype == torch.uint8
        return isa in BF16_ISAS and self.a.dtype == torch.bfloat16 and is_integer

    def half_product(self, out_dtype: torch.dtype) -> gemm.Expected:
        """The expected result of gemm_int4 on CUDA, for f16 or bf16 activations."""
        scales, bias, dtype, then = self.but(a_scale=torch.ones(1))._arguments(out_dtype)
        a, q = self.gathered().a.float().numpy(), self.q.numpy()
        return gemm_int4.gemm_int4_half(a, q, self.group, scales, bias, dtype, then, self.a.dtype)


@dataclass(frozen=True)
class Int4Case:
    name: str
    m: int
    n: int
    k: int
    group: int

    def __str__(self) -> str:
        return f"{self.name}-{self.m}x{self.n}x{self.k}-{self.group}"

    def inputs(
        self,
        *,
        zero: torch.dtype | None = None,
        scale: torch.dtype = torch.float32,
        a_zero: str = "none",
        per_token: bool = True,
        bias: torch.dtype | None = None,
    ) -> Int4Inputs:
        """zero: dtype of w_zero_point, fractions among the floats; a_zero: "none", "tensor" or "token"."""
        g = generator(str(self))
        a = random_int8(g, self.m, self.k)
        q = random_codes(g, self.n, self.k)
        groups = -(-self.k // (max(self.k, 1) if self.group == -1 else self.group))
        w_scale = torch.rand(groups, self.n, generator=g) * 0.02 + 0.002
        a_scale = random_scale(g, self.m if per_token else 1)
        zeros = None if zero is None else random_zeros(g, groups, self.n, zero)
        a_zeros = None if a_zero == "none" else random_int8(g, self.m if a_zero == "token" else 1, 1)
        offsets = None if bias is None else (torch.randn(self.n, generator=g) * 0.01 * self.k).to(bias)
        return Int4Inputs(a, q, w_scale.to(scale), self.group, a_scale, zeros, a_zeros, offsets)


def random_codes(g: torch.Generator, n: int, k: int) -> torch.Tensor:
    """Random codes 0..15; the ends are frequent."""
    q = torch.randint(0, 16, (n, k), generator=g)
    return torch.where(torch.rand(n, k, generator=g) < 0.1, q // 8 * 15, q).to(torch.uint8)


def random_zeros(g: torch.Generator, groups: int, n: int, dtype: torch.dtype) -> torch.Tensor:
    """Random zero points: uint8 up to 15, or floats from -2 to 17, of which every other has a fraction."""
    if dtype == torch.uint8:
        return torch.randint(0, 16, (groups, n), generator=g).to(dtype)
    zeros = torch.rand(groups, n, generator=g) * 19 - 2
    return torch.where(torch.rand(groups, n, generator=g) < 0.5, zeros.round(), zeros).to(dtype)
