"""Offsets beyond 2^31 without the memory: rows gigabytes apart, of which few pages are touched."""

from __future__ import annotations

import mmap

import pytest
import torch

from tests.reference import layout, quantize
from tests.support.backends import Backend, available, backends
from tests.support.cases import GEMM_BY_NAME, GemmInputs, generator, random_int8
from tests.support.compare import assert_equal

BACKENDS = pytest.mark.parametrize("backend", backends("gemm_int8"))
FAR = 2**31 + 64  # elements between rows: more than any int32 holds
MAP_NORESERVE = 0x4000


def far_apart(values: torch.Tensor) -> torch.Tensor:
    """The same [rows, columns], rows FAR elements apart."""
    rows, columns = values.shape
    size = ((rows - 1) * FAR + columns) * values.element_size()
    try:
        sparse = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    except OSError as error:
        pytest.skip(f"{size >> 30} GiB of address space: {error}")
    view = torch.frombuffer(sparse, dtype=values.dtype).as_strided((rows, columns), (FAR, 1))
    view.copy_(values)
    return view


@BACKENDS
def test_gemm_reads_rows_far_apart(backend: Backend) -> None:
    inputs = GEMM_BY_NAME["seven_rows"].inputs(zero_point="token", bias=torch.float32)
    i = inputs.rows(0, 3)
    want = i.expected_bits(i.accumulated(), torch.float32)
    assert_equal(
        backend.gemm(GemmInputs(far_apart(i.a), i.w, i.a_scale, i.w_scale, i.a_zero_point, i.bias)), want
    )
    assert i.a_zero_point is not None
    apart = GemmInputs(
        i.a, i.w, far_apart(i.a_scale), far_apart(i.w_scale[:2]), far_apart(i.a_zero_point), None
    )
    two = GemmInputs(i.a, i.w[:2], i.a_scale, i.w_scale[:2], i.a_zero_point, None)
    data, sums = backend.pack(two.w)
    assert_equal(backend.gemm_packed(apart, data, sums), two.expected_bits(two.accumulated(), torch.float32))


@pytest.mark.parametrize("backend", backends("quantize_int8"))
def test_quantize_reads_rows_far_apart(backend: Backend) -> None:
    x = torch.randn(3, 70, generator=generator("far"))
    want = quantize.quantize_int8(x.numpy())
    q, scale, _ = backend.quantize(far_apart(x))
    assert_equal(q, want.q)
    assert_equal(scale, want.scale)


def test_pack_reads_rows_far_apart() -> None:
    w = random_int8(generator("far"), 3, 70)
    for backend in available("gemm_int8"):
        data, _ = backend.pack(far_apart(w))
        assert_equal(data, layout.pack_int8(w.numpy()), backend)


def test_shapes_beyond_int32_on_meta() -> None:
    m, n, k = 2**20, 2**17, 2**15

    def meta(*shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    data, sums = torch.ops.lamina.pack_int8(meta(n, k, dtype=torch.int8))
    assert tuple(data.shape) == layout.packed_shape(n, k)
    assert data.numel() == 2**32
    assert torch.ops.lamina.unpack_int8(data, n, k).shape == (n, k)
    q, scale, zero_point = torch.ops.lamina.quantize_int8(meta(m, k, dtype=torch.bfloat16), None, None, False)
    out = torch.ops.lamina.gemm_int8(
        q, data, sums, scale, meta(n, dtype=torch.float32), zero_point, None, torch.float16
    )
    assert (tuple(out.shape), out.dtype, out.numel()) == ((m, n), torch.float16, 2**37)


def test_plans_of_huge_problems_do_not_overflow() -> None:
    for m, n, k in ((2**31 + 1, 2**29, 64), (2**40, 1, 1), (1, 2**40, 1000), (2**33, 3, 2**24 - 1)):
        text = torch.ops.lamina.explain_gemm_int8(m, n, k)
        assert f"m = {m}, n = {n}, k = {k}" in text
        assert " -" not in text.replace(" - ", "")
    text = torch.ops.lamina.explain_quantize_int8(2**40, 2**40)
    assert f"m = {2**40}, k = {2**40}" in text
    assert " -" not in text
