"""Planted bugs: gemm_int4_int8_sm90a."""

from __future__ import annotations

from tools.mutation.mutant import Mutant

GEMM_INT4_INT8_CUDA = ("tests/ops/test_gemm_int4_int8_cuda.py",)

MUTANTS = (
    Mutant(
        "int4_int8 sm90a: weights overwritten a product too early",
        "csrc/ops/gemm_int4_int8/cuda/sm90a.cuh",
        "dev::wgmma_wait<kProducts - 1>();",
        "dev::wgmma_wait<kProducts>();",
        GEMM_INT4_INT8_CUDA,
    ),
    Mutant(
        "int4_int8 sm90a: no fence between codes and product",
        "csrc/ops/gemm_int4_int8/cuda/sm90a.cuh",
        "dev::wgmma_fence();",
        "",
        GEMM_INT4_INT8_CUDA,
    ),
    Mutant(
        "int4_int8 sm90a: codes overwritten under a product",
        "csrc/ops/gemm_int4_int8/cuda/sm90a.cuh",
        "group, own); dev::wgmma_wait<0>();",
        "group, own);",
        GEMM_INT4_INT8_CUDA,
    ),
    Mutant(
        "int4_int8 sm90a: the second half of a product as the first",
        "csrc/ops/gemm_int4_int8/cuda/sm90a.cuh",
        "is_second ? 0 : codes.x[0], is_second ? codes.x[0]",
        "codes.x[0], is_second ? 0",
        GEMM_INT4_INT8_CUDA,
    ),
    Mutant(
        "int4_int8 sm90a: a group ends before its products do",
        "csrc/ops/gemm_int4_int8/cuda/sm90a.cuh",
        "dev::wgmma_wait<0>(); dev::wgmma_fence_registers(sums_of(group)); group.end",
        "group.end",
        GEMM_INT4_INT8_CUDA,
    ),
    Mutant(
        "int4_int8 sm90a: integers kept before products end",
        "csrc/ops/gemm_int4_int8/cuda/sm90a.cuh",
        "dev::wgmma_wait<0>(); dev::wgmma_fence_registers(sums_of(group)); if",
        "if",
        GEMM_INT4_INT8_CUDA,
    ),
    Mutant(
        "int4_int8 sm90a: half a product has the next group's codes",
        "csrc/ops/gemm_int4_int8/cuda/sm90a.cuh",
        "is_whole ? codes.x[1] : 0,",
        "codes.x[1],",
        GEMM_INT4_INT8_CUDA,
    ),
    Mutant(
        "int4_int8 sm90a: groups that end within a product",
        "csrc/ops/gemm_int4_int8/cuda/sm90a.cuh",
        "end >= s + 2;",
        "end >= s + 1;",
        GEMM_INT4_INT8_CUDA,
    ),
    Mutant(
        "int4_int8 sm90a: the first half of a tile twice",
        "csrc/ops/gemm_int4_int8/cuda/sm90a.cuh",
        "tokens, h * 32)",
        "tokens, h / 2 * 32)",
        GEMM_INT4_INT8_CUDA,
    ),
    Mutant(
        "int4_int8 sm90a: a stage goes on counting rows of groups",
        "csrc/ops/gemm_int4_int8/cuda/sm90a.cuh",
        "group.row = 0;",
        "",
        GEMM_INT4_INT8_CUDA,
    ),
    Mutant(
        "int4_int8 sm90a: tiles of the next split",
        "csrc/ops/gemm_int4_int8/cuda/sm90a.cuh",
        "&& s + t < tile.steps;",
        ";",
        GEMM_INT4_INT8_CUDA,
    ),
    Mutant(
        "int4_int8 sm90a: the last stage is never released",
        "csrc/ops/gemm_int4_int8/cuda/sm90a.cuh",
        "if (tile.steps > 0) Pipe::release(before);",
        "",
        GEMM_INT4_INT8_CUDA,
    ),
    Mutant(
        "int4_int8 sm90a: a stage is released while its products are in flight",
        "csrc/ops/gemm_int4_int8/cuda/sm90a.cuh",
        "if (t == 0 && s > 0) Pipe::release(before);",
        "if (t == 0) Pipe::release(cursor.stage);",
        GEMM_INT4_INT8_CUDA,
    ),
    Mutant(
        "int4_int8 sm90a: sums go on into the next group",
        "csrc/ops/gemm_int4_int8/cuda/sm90a.cuh",
        "!group.is_new);",
        "true);",
        GEMM_INT4_INT8_CUDA,
    ),
    Mutant(
        "int4_int8 sm90a: only the last product of a group",
        "csrc/ops/gemm_int4_int8/cuda/sm90a.cuh",
        "group.is_new = false;",
        "",
        GEMM_INT4_INT8_CUDA,
    ),
    Mutant(
        "int4_int8 sm90a: zero points of the first tokens",
        "csrc/ops/gemm_int4_int8/cuda/sm90a.cuh",
        "(args.p, tile.m0, dev::lane(),",
        "(args.p, 0, dev::lane(),",
        GEMM_INT4_INT8_CUDA,
    ),
    Mutant(
        "int4_int8 sm90a: groups of the split's first",
        "csrc/ops/gemm_int4_int8/cuda/sm90a.cuh",
        "group += count;",
        "",
        GEMM_INT4_INT8_CUDA,
    ),
)
