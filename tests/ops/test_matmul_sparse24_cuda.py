"""The CUDA kernels of matmul_sparse24 and matmul_sparse24_int4, which add in an order of their own.

Values are small enough for every sum to be exact in any order, so that results have one right value.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import lamina
from lamina.testing import emulated_gpu
from tests.support.backends import Backend, cuda_backends, emu_ops, emulator
from tests.support.cases import GemmCase, generator, grouped
from tests.support.compare import assert_equal
from tests.support.sparse24_cases import pruned, random_mask
from tests.support.sparse24_exact import exact

OP, INT4 = "matmul_sparse24", "matmul_sparse24_int4"
HALVES = (torch.float16, torch.bfloat16)
# m, n, k, group: ragged on every axis, several k chunks, groups that end in a product, a tile, a stage and
# never.
CASES = ((0, 5, 8, 16), (1, 1, 4, 16), (7, 49, 196, 16), (17, 130, 324, 48), (65, 33, 132, 64),
         (130, 70, 64, 32), (3, 35, 2180, 128), (9, 20, 1088, 1088))  # fmt: skip


@pytest.mark.parametrize("backend", cuda_backends(OP))
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values(case: tuple[int, int, int, int], backend: Backend) -> None:
    inputs = exact(*case, HALVES[case[1] % 2], has_codes=False)
    assert_equal(inputs.run(backend), inputs.want())


@pytest.mark.parametrize("backend", cuda_backends(INT4))
@pytest.mark.parametrize("case", CASES, ids=str)
def test_codes(case: tuple[int, int, int, int], backend: Backend) -> None:
    for has_zeros in (False, True):
        inputs = exact(*case, HALVES[(case[0] + has_zeros) % 2], has_codes=True, has_zeros=has_zeros)
        assert_equal(inputs.run(backend), inputs.want(), has_zeros)


@pytest.mark.parametrize("backend", cuda_backends(INT4))
def test_codes_in_another_order(backend: Backend) -> None:
    inputs = exact(6, 33, 132, 32, torch.float16, has_codes=True)
    perm = torch.randperm(132, generator=generator("perm")).int()
    permuted = dataclasses.replace(inputs, perm=perm)
    assert_equal(permuted.run(backend), permuted.want())


@pytest.mark.parametrize("backend", [*cuda_backends(OP), *cuda_backends(INT4)])
def test_a_row_is_the_same_in_every_batch_and_at_every_address(backend: Any) -> None:
    """Random numbers, whose sums are rounded."""
    g = generator("batch")
    inputs = exact(97, 40, 1104, 128, torch.bfloat16, has_codes=backend.op == INT4)
    inputs = dataclasses.replace(inputs, a=torch.randn(97, 1104, generator=g).bfloat16())
    whole = inputs.run(backend)
    for begin, size in ((0, 1), (3, 2), (60, 17)):
        part = slice(begin, begin + size)
        assert_equal(inputs.run(backend, part), whole[part], f"rows {begin} to {begin + size}")
        wide = torch.full((size, 1120), torch.nan, dtype=torch.bfloat16)
        wide[:, 7:1111] = inputs.a[part]
        assert_equal(
            inputs.run(backend, a=wide[:, 7:1111]), whole[part], f"rows {begin} on, at odd addresses"
        )


@pytest.mark.parametrize("backend", cuda_backends(OP))
def test_nan_reaches_what_keeps_it_and_nothing_else(backend: Backend) -> None:
    inputs = exact(5, 70, 132, 0, torch.float16, has_codes=False)
    inputs.a[2, 77] = torch.nan
    got = inputs.run(backend)
    assert_equal(got[2].isnan(), inputs.kept[:, 77])
    assert not got[[0, 1, 3, 4]].isnan().any()


@pytest.mark.parametrize("arch", [80, 90])
def test_errors_of_cuda_alone(arch: int) -> None:
    """A CPU computes these calls, but no CUDA kernel does."""
    emulator()
    inputs = exact(3, 5, 132, 32, torch.float16, has_codes=True)
    sparse = torch.ops.lamina.compress_sparse24(inputs.codes, inputs.kept, 8)
    data, _ = torch.ops.lamina.pack_sparse24(*sparse, 132, "sparse24_tile")
    int8 = pruned(grouped(GemmCase("groups", 3, 5, 256)))
    packed = torch.ops.lamina.pack_sparse24(
        *torch.ops.lamina.compress_sparse24(int8.w), 256, "sparse24_tile", 128
    )
    with emulated_gpu(arch, 4):
        with pytest.raises(ValueError, match="a is float32; on CUDA it must be float16 or bfloat16"):
            emu_ops().matmul_sparse24_int4(inputs.a.float(), data, inputs.scale, 32)
        with pytest.raises(
            (RuntimeError, ValueError),
            match="w_scale must have the dtype of a, float16, on CUDA, got float32",
        ):
            emu_ops().matmul_sparse24_int4(inputs.a, data, inputs.scale.float(), 32)
        with pytest.raises(ValueError, match=r"group = 128.*no CUDA kernel is built.*group = None"):
            emu_ops().matmul_sparse24_int8(int8.a, *packed, int8.a_scale, int8.w_scale)


def test_python_functions_name_the_layout() -> None:
    packed = lamina.pack_sparse24(pruned_weight(), "sparse24_tile")
    a, one = torch.zeros(1, 8, dtype=torch.int8), torch.ones(1)
    with pytest.raises(ValueError, match='w has layout "sparse24_tile"; allowed on cpu: "sparse24_rows"'):
        lamina.matmul_sparse24_int8(a, packed, one, one)


def pruned_weight() -> lamina.Sparse24:
    return lamina.compress_sparse24(torch.tensor([[1, 0, 0, 2, 0, 3, 4, 0]], dtype=torch.int8))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, *HALVES], ids=str)
def test_pack_and_unpack(dtype: torch.dtype) -> None:
    for n, k in ((0, 8), (1, 4), (17, 68), (70, 260)):
        w = (torch.arange(1, n * k + 1).view(n, k) % 15 + 1).to(dtype) * random_mask(n, k, few=0.2)
        sparse = lamina.compress_sparse24(w)
        again = lamina.pack_sparse24(sparse, "sparse24_tile").unpack()
        assert_equal(again.values, sparse.values)
        assert_equal(again.metadata, sparse.metadata)


@pytest.mark.parametrize("k, group", [(36, 16), (60, 64)])  # the second ends past k, with the tile
@pytest.mark.parametrize("backend", cuda_backends(INT4))
def test_padding_past_k_meets_no_infinite_scale(k: int, group: int, backend: Backend) -> None:
    inputs = exact(3, 33, k, group, torch.float16, has_codes=True)
    scale = torch.full_like(inputs.scale, torch.inf)
    above = dataclasses.replace(
        inputs, a=torch.ones_like(inputs.a), codes=torch.full_like(inputs.codes, 9), scale=scale
    )
    assert_equal(above.run(backend), torch.full((3, 33), torch.inf))
