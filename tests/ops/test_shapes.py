"""Random shapes, strides and argument forms, the same ones every run."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.reference import layout, quantize
from tests.support.backends import Backend, backends, cpu_backends, cuda_backends
from tests.support.cases import FLOAT_DTYPES, GemmCase, GemmInputs, generator, with_row_stride
from tests.support.compare import assert_equal, assert_within
from tests.support.int4_cases import Int4Case

FEW = settings(max_examples=15)  # of a kernel on the emulator
GEMM = st.fixed_dictionaries(
    {
        "m": st.integers(0, 70),
        "n": st.integers(0, 140),
        "k": st.one_of(st.integers(0, 200), st.integers(500, 1100)),
        "extra": st.integers(0, 65),
        "quiet": st.sampled_from([1, 2, 4]),
        "per_token": st.booleans(),
        "per_channel": st.booleans(),
        "zero_point": st.sampled_from(["none", "tensor", "token"]),
        "bias": st.sampled_from([None, *FLOAT_DTYPES]),
        "out_dtype": st.sampled_from(FLOAT_DTYPES),
    }
)


def check_gemm(backend: Backend, p: dict) -> None:  # type: ignore[type-arg]
    inputs = GemmCase("random", p["m"], p["n"], p["k"]).inputs(
        per_token=p["per_token"],
        per_channel=p["per_channel"],
        zero_point=p["zero_point"],
        bias=p["bias"],
    )
    wide = torch.full((p["m"], p["k"] + p["extra"]), -77, dtype=torch.int8)
    wide[:, : p["k"]] = inputs.a // p["quiet"]
    i = inputs
    inputs = GemmInputs(wide[:, : p["k"]], i.w, i.a_scale, i.w_scale, i.a_zero_point, i.bias)
    acc = inputs.accumulated()
    got = backend.gemm(inputs, p["out_dtype"])
    assert_within(got, inputs.expected(acc, p["out_dtype"]), p["out_dtype"], p)
    assert_equal(got, inputs.expected_bits(acc, p["out_dtype"]), p)


@pytest.mark.parametrize("backend", cpu_backends("gemm_int8"))
@given(p=GEMM)
def test_gemm_int8(backend: Backend, p: dict) -> None:  # type: ignore[type-arg]
    check_gemm(backend, p)


@pytest.mark.parametrize("backend", cuda_backends("gemm_int8"))
@FEW
@given(p=GEMM)
def test_gemm_int8_on_cuda(backend: Backend, p: dict) -> None:  # type: ignore[type-arg]
    check_gemm(backend, p)


@pytest.mark.slow
@pytest.mark.parametrize("backend", backends("gemm_int8"))
@settings(max_examples=2000)
@given(p=GEMM)
def test_gemm_int8_at_length(backend: Backend, p: dict) -> None:  # type: ignore[type-arg]
    check_gemm(backend, p)


@pytest.mark.slow
@pytest.mark.parametrize("backend", backends("gemm_int8"))
def test_gemm_int8_exhaustive_edges(backend: Backend) -> None:
    """Every m to 40, n around tile edges, k around group and tile edges."""
    for m in range(41):
        for n in (1, 15, 16, 17, 31, 33, 64, 65):
            for k in (1, 2, 3, 4, 5, 63, 64, 65):
                inputs = GemmCase("edges", m, n, k).inputs(zero_point="token", bias=torch.float32)
                want = inputs.expected_bits(inputs.accumulated(), torch.float32)
                assert_equal(backend.gemm(inputs), want, f"{m} x {n} x {k}")


INT4 = st.fixed_dictionaries(
    {
        "m": st.integers(0, 70),
        "n": st.integers(0, 140),
        "k": st.one_of(st.integers(0, 200), st.integers(500, 2300)),
        "group": st.one_of(
            st.integers(1, 20).map(lambda steps: 16 * steps), st.sampled_from([1008, 2000, -1])
        ),
        "extra": st.integers(0, 65),
        "zero": st.sampled_from([None, torch.uint8, *FLOAT_DTYPES]),
        "scale": st.sampled_from(FLOAT_DTYPES),
        "a_zero": st.sampled_from(["none", "none", "tensor", "token"]),
        "per_token": st.booleans(),
        "bias": st.sampled_from([None, *FLOAT_DTYPES]),
        "out_dtype": st.sampled_from(FLOAT_DTYPES),
    }
)


def check_gemm_int4_int8(backend: Backend, p: dict) -> None:  # type: ignore[type-arg]
    arguments = {name: p[name] for name in ("zero", "scale", "a_zero", "per_token", "bias")}
    inputs = Int4Case("random", p["m"], p["n"], p["k"], p["group"]).inputs(**arguments)
    inputs = inputs.but(a=with_row_stride(inputs.a, p["extra"], p["extra"] % 3, -77))
    sums, dtype = inputs.sums(), p["out_dtype"]
    got = backend.gemm_int4_int8(inputs, dtype)
    assert_within(got, inputs.expected(sums, dtype), dtype, p)
    assert_equal(got, inputs.expected_bits(sums, dtype), p)


@pytest.mark.parametrize("backend", cpu_backends("gemm_int4_int8"))
@given(p=INT4)
def test_gemm_int4_int8(backend: Backend, p: dict) -> None:  # type: ignore[type-arg]
    check_gemm_int4_int8(backend, p)


@pytest.mark.parametrize("backend", cuda_backends("gemm_int4_int8"))
@FEW
@given(p=INT4)
def test_gemm_int4_int8_on_cuda(backend: Backend, p: dict) -> None:  # type: ignore[type-arg]
    check_gemm_int4_int8(backend, p)


@pytest.mark.slow
@pytest.mark.parametrize("backend", backends("gemm_int4_int8"))
@settings(max_examples=2000)
@given(p=INT4)
def test_gemm_int4_int8_at_length(backend: Backend, p: dict) -> None:  # type: ignore[type-arg]
    check_gemm_int4_int8(backend, p)


@pytest.mark.parametrize("backend", cpu_backends("gemm_int4"))
@given(p=INT4, dtype=st.sampled_from(FLOAT_DTYPES))
def test_gemm_int4(backend: Backend, p: dict, dtype: torch.dtype) -> None:  # type: ignore[type-arg]
    arguments = {name: p[name] for name in ("zero", "scale", "bias")}
    inputs = Int4Case("random", p["m"], p["n"], p["k"], p["group"]).inputs(**arguments).floats(dtype)
    expected, bits = inputs.float_product(p["out_dtype"], backend.isa)
    got = backend.gemm_int4(inputs, p["out_dtype"])
    assert_within(got, expected, p["out_dtype"], p)
    assert_equal(got, bits, p)


@pytest.mark.parametrize("backend", cuda_backends("gemm_int4"))
@FEW
@given(p=INT4, dtype=st.sampled_from((torch.float16, torch.bfloat16)), is_byte=st.booleans())
def test_gemm_int4_on_cuda(backend: Backend, p: dict, dtype: torch.dtype, is_byte: bool) -> None:  # type: ignore[type-arg]
    zero = p["zero"] and (torch.uint8 if is_byte else dtype)
    case = Int4Case("random", p["m"], p["n"], p["k"], p["group"])
    inputs = case.inputs(zero=zero, scale=dtype, bias=p["bias"]).floats(dtype)
    inputs = inputs.but(a=with_row_stride(inputs.a, p["extra"], p["extra"] % 3, -77))
    assert_within(
        backend.gemm_int4(inputs, p["out_dtype"]), inputs.half_product(p["out_dtype"]), p["out_dtype"], p
    )


@pytest.mark.parametrize("backend", backends("quantize_int8"))
@given(
    m=st.integers(0, 40),
    k=st.integers(0, 300),
    exponent=st.integers(-20, 20),
    dtype=st.sampled_from(FLOAT_DTYPES),
    symmetric=st.booleans(),
)
@example(m=1, k=16, exponent=-20, dtype=torch.float16, symmetric=False)
def test_quantize_int8(
    backend: Backend, m: int, k: int, exponent: int, dtype: torch.dtype, symmetric: bool
) -> None:
    g = generator(f"random {m} {k}")
    x = ((torch.randn(m, k, generator=g) + torch.randn(m, 1, generator=g)) * 2.0**exponent).to(dtype)
    want = quantize.quantize_int8(x.float().numpy(), symmetric=symmetric)
    q, scale, zero_point = backend.quantize(x, symmetric=symmetric)
    assert_equal(q, want.q)
    assert_equal(scale, want.scale)
    assert_equal(zero_point, want.zero_point[:0] if symmetric else want.zero_point)


@given(n=st.integers(0, 70), k=st.integers(0, 200))
def test_pack_int8(n: int, k: int) -> None:
    w = GemmCase("random", 1, n, k).inputs().w
    data, sums = torch.ops.lamina.pack_int8(w)
    assert_equal(data, layout.pack_int8(w.numpy()))
    assert_equal(sums, layout.column_sums(w.numpy()))
    assert_equal(torch.ops.lamina.unpack_int8(data, n, k), w)
