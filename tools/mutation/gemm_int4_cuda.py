"""Planted bugs: gemm_int4_cuda."""

from __future__ import annotations

from tools.mutation.mutant import Mutant

GEMM_INT4_CUDA = ("tests/ops/test_gemm_int4_cuda.py",)
SPLIT_K_GEMM_INT4_ = ("tests/ops/test_split_k.py", "-k", "gemm_int4-")

MUTANTS = (
    Mutant(
        "int4 dequantize: padding past k is a weight",
        "csrc/ops/gemm_int4/cuda/dequantize.cuh",
        "left == 1 ? 0x0000ffffu : 0u",
        "0xffffffffu",
        GEMM_INT4_CUDA,
    ),
    Mutant(
        "int4 dequantize: f16 codes of odd rows not shifted",
        "csrc/ops/gemm_int4/cuda/dequantize.cuh",
        "? 1024.0f : 64.0f",
        "? 1024.0f : 1024.0f",
        GEMM_INT4_CUDA,
    ),
    Mutant(
        "int4 dequantize: fractions of zero points lost",
        "csrc/ops/gemm_int4/cuda/dequantize.cuh",
        "whole == zero ?",
        "true ?",
        GEMM_INT4_CUDA,
    ),
    Mutant(
        "int4 dequantize: zero points cut off",
        "csrc/ops/gemm_int4/cuda/dequantize.cuh",
        "within + kRound - kRound",
        "static_cast<int>(within)",
        GEMM_INT4_CUDA,
    ),
    Mutant(
        "int4 dequantize: zero points not clamped to the codes",
        "csrc/ops/gemm_int4/cuda/dequantize.cuh",
        "zero > 15.0f ? 15.0f : ",
        "zero > 2000.0f ? 15.0f : ",
        GEMM_INT4_CUDA,
    ),
    Mutant(
        "pack int4 cuda: rows in int32",
        "csrc/ops/gemm_int4/cuda/pack.cu",
        "args.q + row * args.stride + p",
        "args.q + static_cast<int32_t>(row * args.stride) + p",
        ("tests/ops/test_large.py", "-k", "pack_int4"),
    ),
    Mutant(
        "pack int4 cuda: row stride of q ignored",
        "csrc/ops/gemm_int4/cuda/pack.cu",
        "args.q + row * args.stride + p",
        "args.q + row * args.k + p",
        ("tests/ops/test_pack_int4.py", "-k", "device"),
    ),
    Mutant(
        "reduce, int4: gate dropped",
        "csrc/ops/gemm_int4/cuda/reduce.cu",
        "reduce_columns<Unscaled, float, float>(p,",
        "Params less = p; less.gate = {}; reduce_columns<Unscaled, float, float>(less,",
        SPLIT_K_GEMM_INT4_,
    ),
    Mutant(
        "reduce, int4: residual dropped",
        "csrc/ops/gemm_int4/cuda/reduce.cu",
        "reduce_columns<Unscaled, float, float>(p,",
        "Params less = p; less.residual = {}; reduce_columns<Unscaled, float, float>(less,",
        SPLIT_K_GEMM_INT4_,
    ),
    Mutant(
        "int4 cuda: packed weights at any multiple of 4 bytes",
        "csrc/ops/gemm_int4/cuda/run.cc",
        "reinterpret_cast<uintptr_t>(params.w) % 16 != 0",
        "reinterpret_cast<uintptr_t>(params.w) % 4 != 0",
        ("tests/ops/test_placement.py",),
    ),
    Mutant(
        "int4 sm80: halves of k swapped",
        "csrc/ops/gemm_int4/cuda/sm80.cuh",
        "slice * 2 + dev::lane() / 8 % 2, b",
        "slice * 2 + 1 - dev::lane() / 8 % 2, b",
        GEMM_INT4_CUDA,
    ),
    Mutant(
        "int4 sm80: both halves of 16 tokens the first",
        "csrc/ops/gemm_int4/cuda/sm80.cuh",
        "b[j / 2][j % 2 * 2],",
        "b[j / 2][0],",
        GEMM_INT4_CUDA,
    ),
    Mutant(
        "int4 sm80: groups that end within a tile",
        "csrc/ops/gemm_int4/cuda/sm80.cuh",
        "first >= kSlices &&",
        "first >= kSlices - 1 &&",
        GEMM_INT4_CUDA,
    ),
    Mutant(
        "int4 sm80, perm: the rows of a split start at its first k",
        "csrc/ops/gemm_int4/cuda/sm80.cuh",
        "(from) - begin;",
        "(from) - begin + at.first_step * kStepK;",
        SPLIT_K_GEMM_INT4_,
    ),
    Mutant(
        "int4 groups: a group of one slice less",
        "csrc/ops/gemm_int4/cuda/stage_groups.cuh",
        "++row; end += args.group_slices;",
        "++row; end += args.group_slices - 1;",
        GEMM_INT4_CUDA,
    ),
    Mutant(
        "int4 groups: a step goes on with the group after",
        "csrc/ops/gemm_int4/cuda/stage_groups.cuh",
        "row = end > begin ? 0 : -1",
        "row = end > begin ? 1 : -1",
        GEMM_INT4_CUDA,
    ),
    Mutant(
        "int4 groups: padding past k enters a group",
        "csrc/ops/gemm_int4/cuda/stage_groups.cuh",
        "end = INT_MAX;",
        "{}",
        GEMM_INT4_CUDA,
    ),
    Mutant(
        "int4 groups: the last group of a step not loaded",
        "csrc/ops/gemm_int4/cuda/stage_groups.cuh",
        "int count = 1; for",
        "int count = 0; for",
        GEMM_INT4_CUDA,
    ),
    Mutant(
        "int4 groups: a step loads from the group before",
        "csrc/ops/gemm_int4/cuda/stage_groups.cuh",
        "next.end <= begin;",
        "next.end < begin;",
        GEMM_INT4_CUDA,
    ),
    Mutant(
        "int4 groups: the next pair's scales",
        "csrc/ops/gemm_int4/cuda/stage_groups.cuh",
        "pair >> (16 * e)",
        "pair >> (16 * (1 - e))",
        GEMM_INT4_CUDA,
    ),
)
