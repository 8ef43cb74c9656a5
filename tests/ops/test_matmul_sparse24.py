"""matmul_sparse24 and its products of int4 codes: float64, and the bits of their f32 steps."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import lamina
from tests.reference import gemm
from tests.reference import matmul_sparse24 as reference
from tests.support.backends import Backend, backends, cpu_backends, kernel_of
from tests.support.cases import FLOAT_DTYPES, dtype_name, generator
from tests.support.compare import assert_equal, assert_within
from tests.support.int4_cases import Int4Case, Int4Inputs
from tests.support.sparse24_cases import random_mask

OP, INT4, INT4_INT8 = "matmul_sparse24", "matmul_sparse24_int4", "matmul_sparse24_int4_int8"
BACKENDS = pytest.mark.parametrize("backend", cpu_backends(OP))
INT4_INT8_BACKENDS = pytest.mark.parametrize("backend", backends(INT4_INT8))
INT4_BACKENDS = pytest.mark.parametrize("backend", cpu_backends(INT4))
DTYPE = pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=dtype_name)
SHAPES = ((1, 1, 4), (0, 5, 8), (3, 0, 8), (3, 5, 0), (1, 17, 68), (2, 64, 128), (3, 130, 1044), (4, 33, 36),
          (5, 64, 64), (6, 31, 1028), (17, 49, 196), (40, 70, 2100))  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Floats:
    """The arguments of matmul_sparse24, with the weight as [n, k]."""

    a: torch.Tensor
    w: torch.Tensor
    kept: torch.Tensor
    bias: torch.Tensor | None = None
    activation: str | None = None
    gate: torch.Tensor | None = None
    residual: torch.Tensor | None = None

    def run(self, backend: Backend, out_dtype: torch.dtype) -> torch.Tensor:
        n, k = self.w.shape
        sparse = torch.ops.lamina.compress_sparse24(self.w, self.kept)
        place = backend.place
        steps = [None if t is None else place(t) for t in (self.bias, self.gate, self.residual)]
        with backend.active() as ops:
            data, _ = ops.pack_sparse24(*sparse, k, backend.sparse24_layout)
            out: torch.Tensor = ops.matmul_sparse24(
                place(self.a), place(data), n, steps[0], out_dtype, self.activation, *steps[1:]
            )
        return out

    def check(self, backend: Backend, out_dtype: torch.dtype, label: object = "") -> torch.Tensor:
        """Within the documented bound, and the bits of the documented steps."""
        then = gemm.Steps(
            self.activation, *(None if t is None else t.float().numpy() for t in (self.gate, self.residual))
        )
        bias = None if self.bias is None else self.bias.float().numpy()
        given = (self.a.float().numpy(), self.w.float().numpy(), self.kept.numpy(), bias, out_dtype, then)
        got = self.run(backend, out_dtype)
        assert_within(got, reference.matmul_sparse24(*given), out_dtype, label)
        assert_equal(got, reference.steps(*given), label)
        return got


def floats(m: int, n: int, k: int, dtype: torch.dtype) -> Floats:
    """Every group keeps two entries, so that NaN of an activation meets no padding."""
    g = generator(f"floats {m} {n} {k} {dtype}")
    a, w = torch.randn(m, k, generator=g).to(dtype), torch.randn(n, k, generator=g).to(dtype)
    kept = random_mask(n, k)
    return Floats(a, w.where(kept, torch.zeros((), dtype=dtype)), kept, torch.randn(n, generator=g))


@BACKENDS
@DTYPE
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_reference(shape: tuple[int, int, int], dtype: torch.dtype, backend: Backend) -> None:
    floats(*shape, dtype).check(backend, dtype)


@BACKENDS
def test_every_step_of_the_epilogue(backend: Backend) -> None:
    g = generator("epilogue")
    for activation, dtype, out in (
        ("silu", *FLOAT_DTYPES[:2]),
        ("gelu", *FLOAT_DTYPES[1:]),
        (None, *FLOAT_DTYPES[::2]),
    ):
        inputs = floats(9, 70, 132, dtype)
        gate, residual = (torch.randn(9, 75, generator=g).to(dtype)[:, 5:] for _ in range(2))
        dataclasses.replace(inputs, activation=activation, gate=gate, residual=residual).check(
            backend, out, activation
        )


@BACKENDS
@DTYPE
def test_nan_and_inf_reach_what_keeps_them_and_nothing_else(dtype: torch.dtype, backend: Backend) -> None:
    """A NaN activation matters to the output features that keep its weight, even where the weight is 0."""
    for m in (1, 5):
        inputs = floats(m, 70, 132, dtype)
        inputs.a[0, 5], inputs.a[m - 1, 77], inputs.w[3, 64:68] = torch.nan, torch.inf, torch.nan
        got = inputs.check(backend, torch.float32)
        assert_equal(
            got[0].isnan(),
            (inputs.kept[:, 5] | (torch.arange(70) == 3)) | (got[0].isnan() & inputs.kept[:, 77]),
        )
        assert got[0].isnan().any()
        assert not got[0].isnan().all()


@BACKENDS
def test_a_row_is_the_same_in_every_batch(backend: Backend) -> None:
    inputs = floats(97, 70, 1104, torch.bfloat16)
    whole = inputs.run(backend, torch.float32)
    for begin, size in ((0, 1), (3, 2), (90, 3), (2, 4), (11, 5), (60, 17)):
        part = dataclasses.replace(inputs, a=inputs.a[begin : begin + size])
        assert_equal(
            part.run(backend, torch.float32), whole[begin : begin + size], f"rows {begin} to {begin + size}"
        )


@BACKENDS
def test_any_row_stride_of_a(backend: Backend) -> None:
    inputs = floats(6, 33, 68, torch.float16)
    wide = torch.full((6, 80), torch.nan, dtype=torch.float16)
    wide[:, 7:75] = inputs.a
    want = inputs.run(backend, torch.float32)
    assert_equal(dataclasses.replace(inputs, a=wide[:, 7:75]).run(backend, torch.float32), want)


def sparse_codes(case: Int4Case, **options: object) -> tuple[Int4Inputs, torch.Tensor]:
    """gemm_int4's inputs, and which codes are kept."""
    inputs = case.inputs(**options).floats(torch.float32)  # type: ignore[arg-type]
    return inputs, random_mask(*inputs.q.shape)


def run_int4(backend: Backend, i: Int4Inputs, kept: torch.Tensor, out_dtype: torch.dtype) -> torch.Tensor:
    sparse = torch.ops.lamina.compress_sparse24(i.q, kept, 8)
    place = backend._place_all
    with backend.active() as ops:
        data, _ = ops.pack_sparse24(*sparse, i.q.shape[1], backend.sparse24_layout)
        out: torch.Tensor = ops.matmul_sparse24_int4(
            *place((i.a, data, i.w_scale)), i.group, *place((i.w_zero_point, i.bias)), out_dtype,
            i.activation, *place((i.gate, i.residual, i.perm)),
        )  # fmt: skip
    return out


def check_int4(backend: Backend, i: Int4Inputs, kept: torch.Tensor, out_dtype: torch.dtype) -> None:
    k = i.q.shape[1]
    group = max(k, 1) if i.group == -1 else i.group

    def of_codes(t: torch.Tensor) -> np.ndarray:
        return t.float().repeat_interleave(group, 0)[:k].T.contiguous().numpy()

    scale = of_codes(i.w_scale)
    zero = np.full_like(scale, 8) if i.w_zero_point is None else of_codes(i.w_zero_point)
    w = reference.matmul_sparse24_int4(i.q.numpy(), kept.numpy(), zero, scale)
    bias = None if i.bias is None else i.bias.float().numpy()
    given = (i.gathered().a.float().numpy(), w, kept.numpy(), bias, out_dtype)
    assert_equal(run_int4(backend, i, kept, out_dtype), reference.steps(*given))


@INT4_BACKENDS
@pytest.mark.parametrize("group", [16, 48, 128, -1])
@pytest.mark.parametrize("shape", [(0, 5, 8), (3, 5, 0), *SHAPES[4:]], ids=str)
def test_int4_matches_reference(shape: tuple[int, int, int], group: int, backend: Backend) -> None:
    zero = {16: torch.uint8, 48: torch.float32}.get(group)
    inputs, kept = sparse_codes(Int4Case("sparse", *shape, group), zero=zero, bias=torch.float32)
    check_int4(backend, inputs, kept, FLOAT_DTYPES[shape[0] % 3])


@INT4_BACKENDS
def test_int4_with_codes_in_another_order(backend: Backend) -> None:
    inputs, kept = sparse_codes(Int4Case("perm", 6, 33, 132, 32))
    permuted = inputs.permuted(150)
    check_int4(backend, permuted.but(a=torch.randn(6, 150, generator=generator("perm"))), kept, torch.float32)


def run_int4_int8(
    backend: Backend, i: Int4Inputs, kept: torch.Tensor, out_dtype: torch.dtype
) -> torch.Tensor:
    sparse = torch.ops.lamina.compress_sparse24(i.q, kept, 8)
    place = backend._place_all
    scales = (i.a_scale, i.w_zero_point, i.a_zero_point, i.bias)
    with backend.active() as ops:
        data, _ = ops.pack_sparse24(*sparse, i.q.shape[1], backend.sparse24_layout)
        out: torch.Tensor = ops.matmul_sparse24_int4_int8(
            *place((i.a, data, i.w_scale)), i.group, *place(scales), out_dtype, i.activation,
            *place((i.gate, i.residual, i.perm)),
        )  # fmt: skip
    return out


def check_int4_int8(backend: Backend, i: Int4Inputs, kept: torch.Tensor, out_dtype: torch.dtype) -> None:
    """Within the bound of gemm_int4_int8, and the bits of its steps, with sums over the kept codes."""
    a_zero = None if i.a_zero_point is None else i.a_zero_point.numpy()
    sums = reference.matmul_sparse24_int4_int8(
        i.gathered().a.numpy(), i.q.numpy(), kept.numpy(), i.group, a_zero
    )
    got = run_int4_int8(backend, i, kept, out_dtype)
    assert_within(got, i.expected(sums, out_dtype), out_dtype)
    assert_equal(got, i.expected_bits(sums, out_dtype))


@INT4_INT8_BACKENDS
@pytest.mark.parametrize("group", [16, 48, 128, -1])
@pytest.mark.parametrize("shape", [(0, 5, 8), (3, 5, 0), *SHAPES[4:]], ids=str)
def test_int4_int8_matches_reference(shape: tuple[int, int, int], group: int, backend: Backend) -> None:
    zero = {16: torch.uint8, 48: torch.float32}.get(group)
    for a_zero in ("none", "token"):
        inputs = Int4Case("sparse", *shape, group).inputs(zero=zero, a_zero=a_zero, bias=torch.float32)
        check_int4_int8(backend, inputs, random_mask(*inputs.q.shape), FLOAT_DTYPES[shape[0] % 3])


@INT4_INT8_BACKENDS
@pytest.mark.parametrize("group", [16, 32, 64, 96, 192, -1])
def test_int4_int8_extreme_values_everywhere(group: int, backend: Backend) -> None:
    """Every sum of products has its largest magnitude; no instruction may saturate or wrap."""
    for code, a, m, k in ((0, 127, 1, 192), (0, 127, 9, 448), (15, 127, 2, 192), (0, -128, 17, 384)):
        inputs = Int4Case("extreme", m, 33, k, group).inputs()
        inputs = inputs.but(a=torch.full_like(inputs.a, a), q=torch.full_like(inputs.q, code))
        check_int4_int8(backend, inputs, random_mask(*inputs.q.shape), torch.float32)


@INT4_INT8_BACKENDS
@pytest.mark.parametrize("k", [600, 1300])
def test_int4_int8_groups_longer_than_a_block(k: int, backend: Backend) -> None:
    for group, zero in ((528, torch.uint8), (1040, None), (-1, torch.uint8)):
        inputs = Int4Case("long", 7, 70, k, group).inputs(zero=zero, a_zero="token")
        check_int4_int8(backend, inputs, random_mask(*inputs.q.shape), torch.float32)


@INT4_INT8_BACKENDS
def test_int4_int8_with_codes_in_another_order(backend: Backend) -> None:
    for a_zero in ("none", "token"):
        inputs = Int4Case("perm", 6, 33, 132, 32).inputs(zero=torch.uint8, a_zero=a_zero).permuted(150)
        check_int4_int8(backend, inputs, random_mask(*inputs.q.shape), torch.float32)


@INT4_INT8_BACKENDS
def test_int4_int8_quantises_floats_in_the_call(backend: Backend) -> None:
    inputs = Int4Case("floats", 6, 70, 132, 32).inputs(zero=torch.uint8)
    x = torch.randn(6, 132, generator=generator("floats"))
    q, scale, _ = torch.ops.lamina.quantize_int8(x)
    kept = random_mask(*inputs.q.shape)
    want = run_int4_int8(backend, inputs.but(a=q, a_scale=scale), kept, torch.float32)
    assert_equal(run_int4_int8(backend, inputs.but(a=x, a_scale=None), kept, torch.float32), want)


@pytest.mark.parametrize("op", [OP, INT4, INT4_INT8])
def test_the_forced_isa_is_the_one_that_runs(op: str) -> None:
    for parameter in cpu_backends(op):
        backend = parameter.values[0]
        if not parameter.marks:
            with backend.active() as ops:
                assert kernel_of(getattr(ops, f"explain_{op}")(64, 64, 64)) == f"{op}_{backend.isa}"


def test_python_functions_call_the_ops() -> None:
    f = floats(7, 31, 132, torch.bfloat16)
    packed = lamina.pack_sparse24(lamina.compress_sparse24(f.w, f.kept))
    bias = None if f.bias is None else f.bias.numpy()
    want = reference.steps(f.a.float().numpy(), f.w.float().numpy(), f.kept.numpy(), bias, torch.bfloat16)
    assert_equal(lamina.matmul_sparse24(f.a, packed, bias=f.bias), want)
    i, kept = sparse_codes(Int4Case("python", 7, 31, 132, 32), zero=torch.uint8)
    codes = lamina.pack_sparse24(lamina.compress_sparse24(i.q, kept, 8))
    got = lamina.matmul_sparse24_int4(i.a, codes, i.w_scale, group=32, w_zero_point=i.w_zero_point)
    assert_equal(got, run_int4(Backend("generic"), i, kept, torch.float32))
    i = Int4Case("python", 7, 31, 132, 32).inputs(zero=torch.uint8)
    codes = lamina.pack_sparse24(lamina.compress_sparse24(i.q, kept, 8))
    got = lamina.matmul_sparse24_int4_int8(
        i.a, codes, i.w_scale, group=32, a_scale=i.a_scale, w_zero_point=i.w_zero_point
    )
    assert_equal(got, run_int4_int8(Backend("generic"), i, kept, torch.float32))
