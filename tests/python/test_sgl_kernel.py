"""lamina.integrations.sgl_kernel against definitions in float64."""

from __future__ import annotations

import gc
import inspect

import pytest
import torch
from torch import Tensor

from lamina.integrations import sgl_kernel
from lamina.testing.compare import error_over_bound
from lamina.testing.reference import gemm_int8, quantize_int8
from tests.support.cases import generator, random_int8, random_scale

SIGNATURES = {
    "int8_scaled_mm": "mat_a mat_b scales_a scales_b out_dtype bias",
    "int8_scaled_mm_with_quant": "mat1 mat2 scales2 bias out_dtype is_vnni",
    "merge_state_v2": "v_a s_a v_b s_b v_merged s_merged",
}
M, N, K = 5, 40, 96


@pytest.mark.parametrize("name", SIGNATURES)
def test_arguments_are_those_of_sgl_kernel(name: str) -> None:
    assert " ".join(inspect.signature(getattr(sgl_kernel, name)).parameters) == SIGNATURES[name]


def operands() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    g = generator("sgl_kernel")
    a, w = random_int8(g, M, K), random_int8(g, N, K)
    return a, w, random_scale(g, M).flatten(), random_scale(g, N).flatten(), torch.randn(N, generator=g)


@pytest.mark.parametrize("as_columns", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_scaled_mm(dtype: torch.dtype, as_columns: bool) -> None:
    a, w, a_scale, w_scale, bias = operands()
    exact = gemm_int8(a, w, a_scale.reshape(M, 1), w_scale.reshape(1, N), dtype, bias=bias)
    scales = (a_scale.reshape(M, 1), w_scale.reshape(N, 1)) if as_columns else (a_scale, w_scale)
    got = sgl_kernel.int8_scaled_mm(a, w.T, *scales, dtype, bias)
    assert got.dtype == dtype
    assert error_over_bound(got, exact) <= 1


def test_a_weight_is_packed_once_and_again_after_a_write(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = 0

    def pack(w: Tensor) -> object:
        nonlocal packed
        packed += 1
        return own(w)

    own = sgl_kernel.pack_int8
    monkeypatch.setattr(sgl_kernel, "pack_int8", pack)
    a, w, a_scale, w_scale, _ = operands()
    columns = w.T
    for _ in range(3):
        sgl_kernel.int8_scaled_mm(a, columns, a_scale, w_scale, torch.float32)
    assert packed == 1
    columns.neg_()
    got = sgl_kernel.int8_scaled_mm(a, columns, a_scale, w_scale, torch.float32)
    assert packed == 2
    exact = gemm_int8(a, columns.T, a_scale.reshape(M, 1), w_scale.reshape(1, N), torch.float32)
    assert error_over_bound(got, exact) <= 1
    held = len(sgl_kernel._packed)
    del columns
    gc.collect()
    assert len(sgl_kernel._packed) == held - 1


def test_int8_scaled_mm_with_quant() -> None:
    _, w, _, w_scale, bias = operands()
    x = torch.randn(M, K, generator=generator("x")).bfloat16()
    a, a_scale, _ = quantize_int8(x)
    exact = gemm_int8(a, w, a_scale, w_scale.reshape(1, N), torch.bfloat16, bias=bias)
    got = sgl_kernel.int8_scaled_mm_with_quant(x, w, w_scale.reshape(N, 1), bias, torch.bfloat16, False)
    assert error_over_bound(got, exact) <= 1
    with pytest.raises(ValueError, match="is_vnni = True; allowed: False"):
        sgl_kernel.int8_scaled_mm_with_quant(x, w, w_scale, None, torch.bfloat16, True)


@pytest.mark.parametrize("given", [False, True], ids=["new", "given"])
def test_merge_state_v2(given: bool) -> None:
    g = generator("merge")
    v_a, v_b = torch.randn(2, 3, 4, 16, generator=g).unbind(0)
    s_a, s_b = (4 * torch.randn(2, 3, 4, generator=g)).unbind(0)
    s_b[1, 2] = float("-inf")
    targets = (torch.zeros(3, 4, 16), torch.zeros(3, 4)) if given else (None, None)
    v, s = sgl_kernel.merge_state_v2(v_a, s_a, v_b, s_b, *targets)
    logs = torch.stack([s_a, s_b]).double()
    weights = logs.softmax(0).unsqueeze(-1)
    torch.testing.assert_close(
        v.double(), (weights * torch.stack([v_a, v_b]).double()).sum(0), rtol=0, atol=1e-5
    )
    torch.testing.assert_close(s.double(), logs.logsumexp(0), rtol=0, atol=1e-5)
    if given:
        assert v is targets[0] and s is targets[1]
