"""How tests run paged_attention, and the whole check of one problem."""

from __future__ import annotations

import functools
import os
import re
from typing import Any

import pytest
import torch

from tests.reference.paged_attention import Attention
from tests.support.attention_cases import AttentionInputs
from tests.support.backends import (
    NO_PROBE,
    Backend,
    CudaKernel,
    EmulatedKernel,
    Gpu,
    cpu_backends,
    cuda_kernels,
    gpu_parameter,
    probe,
)
from tests.support.compare import assert_equal, assert_within

OP = "paged_attention"


@functools.cache
def tiles() -> list[str]:
    """The beginnings of the names of CUDA kernels, one for each number of rows of a tile: "sm80_r16"."""
    return list(dict.fromkeys(re.findall(r"^\w+_r\d+", kernel)[0] for kernel in cuda_kernels(OP)))


def rows_of(tile: str) -> int:
    return int(tile.partition("_r")[2])


def emulated(tile: str, seed: int | None = None) -> EmulatedKernel:
    seed = int(os.environ.get("LAMINA_EMULATOR_SEED", "0")) if seed is None else seed
    return EmulatedKernel(tile, True, OP, seed)


def attention_backends(*rows: int, arch: int | None = None) -> list[Any]:
    """The CPU kernels, and the CUDA kernels with tiles of these rows (or of any), emulated and on a GPU.

    arch: only the CUDA kernels that are written for this compute capability.
    """
    parameters = cpu_backends(OP) if arch is None else []
    for tile in tiles():
        if (rows and rows_of(tile) not in rows) or arch not in (None, emulated(tile).arch):
            continue
        marks = [] if probe() is not None else [pytest.mark.skip(reason=NO_PROBE)]
        parameters.append(pytest.param(emulated(tile), id=f"{tile}_emulator", marks=marks))
        parameters.append(gpu_parameter(Gpu(tile, False, OP)))
    return parameters


def attend(
    backend: Backend, inputs: AttentionInputs, return_lse: bool = True, batch_invariant: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """out and lse of the op for inputs in the backend's memory."""
    given = {
        name: backend.place(value) if isinstance(value, torch.Tensor) else value
        for name, value in inputs.arguments().items()
    }
    with backend.active() as ops:
        out, lse = ops.paged_attention(**given, return_lse=return_lse, batch_invariant=batch_invariant)
    return out.cpu(), lse.cpu()


def attend_invariantly(backend: Backend, inputs: AttentionInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """attend(), where the bits of a row depend on nothing but the row and its keys."""
    return attend(backend, inputs, batch_invariant=True)


def arithmetic(backend: Backend, inputs: AttentionInputs) -> str:
    """How the backend multiplies these dtypes, as tests/reference/paged_attention.py names it."""
    cache = inputs.k_cache.dtype
    if isinstance(backend, CudaKernel):
        return "tensor_f16" if cache == torch.float16 else "tensor_bf16"
    if cache == torch.int8 and backend.isa not in ("generic", "avx2"):
        return "int16"
    has_bf16 = backend.isa in ("avx512_bf16", "amx_int8")
    return "bf16" if has_bf16 and cache == inputs.q.dtype == torch.bfloat16 else "f32"


def check_attention(
    backend: Backend,
    inputs: AttentionInputs,
    expected: Attention,
    label: object = "",
    batch_invariant: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Checks the documented bounds of out and lse, and that no index was refused."""
    out, lse = attend(backend, inputs, batch_invariant=batch_invariant)
    assert backend.take_error() == "", f"{label}"
    want_out, want_lse = expected.expected(arithmetic(backend, inputs))
    assert_within(out, want_out, inputs.out_dtype or inputs.q.dtype, f"{label} out")
    assert_within(lse, want_lse, torch.float32, f"{label} lse")
    return out, lse


def check_invariantly(
    backend: Backend, inputs: AttentionInputs, expected: Attention, label: object = ""
) -> tuple[torch.Tensor, torch.Tensor]:
    """check_attention() of attend_invariantly(); for a CUDA kernel of attend() too."""
    if isinstance(backend, CudaKernel):
        check_attention(backend, inputs, expected, label)
    return check_attention(backend, inputs, expected, label, batch_invariant=True)


def assert_same(
    backend: Backend,
    inputs: AttentionInputs,
    want: tuple[torch.Tensor, torch.Tensor],
    tokens: slice | list[int],
    label: object = "",
) -> None:
    """Asserts that all results for `inputs` have the bits of `want` for these tokens."""
    out, lse = attend_invariantly(backend, inputs)
    assert_equal(out, want[0][tokens], f"{label} out")
    assert_equal(lse, want[1][:, tokens], f"{label} lse")
