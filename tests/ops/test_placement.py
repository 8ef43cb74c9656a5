"""The placement of operands: all on one device, and on CUDA packed weights at a multiple of 16 bytes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support.backends import emulated_kernels
from tests.support.cases import GemmCase
from tests.support.int4_cases import Int4Case

M, N, K = 3, 20, 70
CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)


def arguments() -> dict[str, dict[str, Any]]:
    """All tensor arguments of every op that takes several tensors."""
    i = GemmCase("placed", M, N, K).inputs(zero_point="token", bias=torch.float32)
    data, sums = torch.ops.lamina.pack_int8(i.w, None)
    then = {"bias": i.bias, "gate": torch.ones(M, N), "residual": torch.ones(M, N)}
    int8 = {"a": i.a, "w": data, "w_sums": sums, "a_scale": i.a_scale, "w_scale": i.w_scale,
            "a_zero_point": i.a_zero_point, **then}  # fmt: skip
    j = Int4Case("placed", M, N, K, 32).inputs(zero=torch.uint8, a_zero="token").permuted(K)
    int4 = {"w": j.pack(), "w_scale": j.w_scale, "group": 32, "w_zero_point": j.w_zero_point,
            "perm": j.perm, **then}  # fmt: skip
    return {
        "quantize_int8": {"x": torch.ones(M, K), "scale": torch.ones(M), "zero_point": i.a_zero_point,
                          "symmetric": False},
        **{op: {"x": torch.ones(M, K), "weight": torch.ones(K), "eps": 1e-6, "residual": torch.ones(M, K)}
           for op in ("rms_norm", "rms_norm_int8")},
        **{op: {"x": torch.ones(M, K), "up": torch.ones(M, K)} for op in ("silu_mul", "silu_mul_int8")},
        "gemm_int8": {**int8, "out_dtype": torch.float32},
        "gemm_int8_quantized": {**int8, "out_scale": torch.ones(M)},
        "gemm_int4": {"a": torch.ones(M, K), **int4},
        "gemm_int4_int8": {"a": j.a, **int4, "a_scale": j.a_scale, "a_zero_point": j.a_zero_point},
        "compress_sparse24": {"w": torch.zeros(N, 8), "mask": torch.zeros(N, 8).bool()},
        "decompress_sparse24": {"values": torch.zeros(N, 4), "metadata": torch.full((N, 1), 0xEE).byte(),
                                "k": 8},
        "pack_int4": {"q": j.q, "layout": "int4_rows", "perm": j.perm},
    }  # fmt: skip


ELSEWHERE = [
    pytest.param(op, name, id=f"{op}-{name}")
    for op, given in arguments().items()
    for name, value in list(given.items())[1:]
    if isinstance(value, torch.Tensor)
]


@pytest.mark.parametrize(("op", "name"), ELSEWHERE)
def test_a_tensor_on_another_device_is_refused_by_name(op: str, name: str) -> None:
    """The test calls the CPU kernel itself, because the dispatcher would choose the other device's kernel."""
    given = arguments()[op]
    kernel = getattr(torch.ops.lamina, op).default
    kernel.redispatch(CPU, **given)
    first = next(iter(given))
    with pytest.raises(ValueError, match=rf"{op}: {name} is on device .*, {first} on the CPU; both"):
        kernel.redispatch(CPU, **{**given, name: given[name].to("meta")})


def moved(packed: torch.Tensor, by: int) -> torch.Tensor:
    """The same tensor at an address that is `by` bytes past a multiple of 16."""
    memory = torch.zeros(packed.numel() + 16, dtype=packed.dtype)
    memory[by : by + packed.numel()] = packed.flatten()
    return memory[by : by + packed.numel()].view(packed.shape)


def on_cuda(op: str) -> dict[str, Any]:
    """The fewest arguments of a product on CUDA."""
    if op.startswith("gemm_int8"):
        i = GemmCase("placed", M, N, 64).inputs()
        data, sums = torch.ops.lamina.pack_int8(i.w, 128 if op.endswith("grouped") else None)
        return {"a": i.a, "w": data, "w_sums": sums, "a_scale": i.a_scale, "w_scale": i.w_scale}
    j = Int4Case("placed", M, N, K, 32).inputs(scale=torch.float16)
    given = {"a": j.a, "w": j.pack("int4_tile"), "w_scale": j.w_scale, "group": 32, "a_scale": j.a_scale}
    if op == "gemm_int4":
        given["a"] = j.a.half()
        del given["a_scale"]
    return given


@pytest.mark.parametrize("by", [1, 4, 8])
@pytest.mark.parametrize("op", ["gemm_int8", "gemm_int8_grouped", "gemm_int4", "gemm_int4_int8"])
def test_packed_weights_that_copies_cannot_take_are_refused(op: str, by: int) -> None:
    given, name = on_cuda(op), op.removesuffix("_grouped")
    for emulated in emulated_kernels(op):
        with emulated.active() as ops:
            product = getattr(ops, name)
            product(**{**given, "w": moved(given["w"], 0)})
            with pytest.raises(ValueError, match=f"{name}: w must start at a multiple of 16 bytes"):
                product(**{**given, "w": moved(given["w"], by)})
