"""Planted bugs: gemm_int4_sm90a."""

from __future__ import annotations

from tools.mutation.mutant import Mutant

GEMM_INT4_CUDA = ("tests/ops/test_gemm_int4_cuda.py",)

MUTANTS = (
    Mutant(
        "int4 sm90a: copied rows with another swizzle",
        "csrc/ops/gemm_int4/cuda/sm90a.cuh",
        "swizzled(Pipe::kSwizzle, at)",
        "at",
        GEMM_INT4_CUDA,
    ),
    Mutant(
        "int4 sm90a: weights overwritten two products too early",
        "csrc/ops/gemm_int4/cuda/sm90a.cuh",
        "dev::wgmma_wait<kSlices / 2 - 1>();",
        "dev::wgmma_wait<kSlices / 2>();",
        GEMM_INT4_CUDA,
    ),
    Mutant(
        "int4 sm90a: no fence between weights and products",
        "csrc/ops/gemm_int4/cuda/sm90a.cuh",
        "dev::wgmma_fence(); #pragma unroll for (int s = two;",
        "for (int s = two;",
        GEMM_INT4_CUDA,
    ),
    Mutant(
        "int4 sm90a: no fence between weights and products of an edge",
        "csrc/ops/gemm_int4/cuda/sm90a.cuh",
        "dev::wgmma_fence(); #pragma unroll for (int s = 0;",
        "for (int s = 0;",
        GEMM_INT4_CUDA,
    ),
    Mutant(
        "int4 sm90a: sums used before they are done",
        "csrc/ops/gemm_int4/cuda/sm90a.cuh",
        "dev::wgmma_wait<0>(); dev::wgmma_fence_registers(sums);",
        "dev::wgmma_fence_registers(sums);",
        GEMM_INT4_CUDA,
    ),
    Mutant(
        "int4 sm90a: weights of an edge overwritten under its products",
        "csrc/ops/gemm_int4/cuda/sm90a.cuh",
        "dev::wgmma_commit(); dev::wgmma_wait<0>();",
        "dev::wgmma_commit();",
        GEMM_INT4_CUDA,
    ),
    Mutant(
        "int4 sm90a: a stage is released while its products are in flight",
        "csrc/ops/gemm_int4/cuda/sm90a.cuh",
        "if (t == 0 && s > begin) Pipe::release(before);",
        "if (t == 0) Pipe::release(cursor.stage);",
        GEMM_INT4_CUDA,
    ),
    Mutant(
        "int4 sm90a: the last stage of a k chunk is never released",
        "csrc/ops/gemm_int4/cuda/sm90a.cuh",
        "dev::wgmma_fence_registers(sums); Pipe::release(before);",
        "dev::wgmma_fence_registers(sums);",
        GEMM_INT4_CUDA,
    ),
    Mutant(
        "int4 sm90a: the second product of a tile starts at the first's k",
        "csrc/ops/gemm_int4/cuda/sm90a.cuh",
        "advance_descriptor(tokens, s * kSliceK * 2)",
        "advance_descriptor(tokens, s / 2 * 2 * kSliceK * 2)",
        GEMM_INT4_CUDA,
    ),
    Mutant(
        "int4 sm90a: a stage goes on counting rows of groups",
        "csrc/ops/gemm_int4/cuda/sm90a.cuh",
        "group.begin_stage(first);",
        "",
        GEMM_INT4_CUDA,
    ),
    Mutant(
        "int4 sm90a: groups that end within a tile",
        "csrc/ops/gemm_int4/cuda/sm90a.cuh",
        "group.end - slice >= kSlices &&",
        "",
        GEMM_INT4_CUDA,
    ),
    Mutant(
        "int4 sm90a: k that ends within a tile",
        "csrc/ops/gemm_int4/cuda/sm90a.cuh",
        "slice + kSlices <= args.groups.whole_slices",
        "true",
        GEMM_INT4_CUDA,
    ),
    Mutant(
        "int4 sm90a: padding past k is multiplied",
        "csrc/ops/gemm_int4/cuda/sm90a.cuh",
        "if (t > 0 && s + t >= end) break;",
        "",
        GEMM_INT4_CUDA,
    ),
    Mutant(
        "int4 sm90a, perm: the rows of a split start at its first k",
        "csrc/ops/gemm_int4/cuda/sm90a.cuh",
        "copy_rows(args, tile.m0, step, thread, stage);",
        "{ Args moved = args; if (args.p.perm.is_given()) moved.p.a = static_cast<const std::byte*>(args.p.a) + tile.first_step * int4::kTileK * 2; copy_rows(moved, tile.m0, step, thread, stage); }",
        ("tests/ops/test_split_k.py", "-k", "gemm_int4-"),
    ),
    Mutant(
        "int4 sm90a: copied rows in int32",
        "csrc/ops/gemm_int4/cuda/sm90a.cuh",
        "base + (m0 + row) * p.a_stride * 2;",
        "base + static_cast<int32_t>((m0 + row) * p.a_stride) * 2;",
        ("tests/ops/test_large.py", "-k", "gemm_int4- and emulator"),
    ),
    Mutant(
        "int4 sm90a: rows past m copied",
        "csrc/ops/gemm_int4/cuda/sm90a.cuh",
        "m0 + row < p.problem.m ? p.problem.k - k0 : 0;",
        "p.problem.k - k0;",
        ("tests/ops/test_gemm_int4_cuda.py", "-k", "sm90a and (act_order or strides)"),
    ),
)
