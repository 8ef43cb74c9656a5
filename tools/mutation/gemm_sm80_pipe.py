"""Planted bugs: the pipe of sm_80, which three ops share."""

from __future__ import annotations

from tools.mutation.mutant import Mutant

GEMM_INT4_CUDA = ("tests/ops/test_gemm_int4_cuda.py",)
GEMM_INT4_INT8_CUDA = ("tests/ops/test_gemm_int4_int8_cuda.py",)
CAPPED = (
    "tests/ops/test_emulator.py",
    "tests/ops/test_quantize_int8.py",
    "tests/ops/test_gemm_int8.py",
    "-k",
    "emulator and (cap or sms or the_same_in_every_batch)",
)

MUTANTS = (
    Mutant(
        "sm80 pipe: a step is used one too early",
        "csrc/gemm/cuda/sm80_pipe.cuh",
        "cp_async_wait<kShape.stages - 2>",
        "cp_async_wait<kShape.stages - 1>",
        GEMM_INT4_CUDA,
    ),
    Mutant(
        "sm80 pipe: no barrier before a stage is used and refilled",
        "csrc/gemm/cuda/sm80_pipe.cuh",
        "dev::block_sync();  // step s has arrived",
        "// step s has arrived",
        GEMM_INT4_INT8_CUDA,
    ),
    Mutant(
        "sm80 pipe: the next tile's copies into a ring that is being read",
        "csrc/gemm/cuda/sm80_pipe.cuh",
        "dev::block_sync();  // all warps have read the ring",
        "{}",
        GEMM_INT4_CUDA,
    ),
    Mutant(
        "sm80 pipe: the last tile of a capped grid forgotten",
        "csrc/gemm/cuda/sm80_pipe.cuh",
        "unit < args.units.count; unit += stride",
        "unit + 1 < args.units.count + (unit < stride); unit += stride",
        CAPPED,
    ),
    Mutant(
        "sm80 pipe: splits overlap by a step",
        "csrc/gemm/cuda/sm80_pipe.cuh",
        "split * args.split.steps",
        "split * (args.split.steps - 1)",
        GEMM_INT4_INT8_CUDA,
    ),
    Mutant(
        "sm80 pipe: next step into the stage that is being read",
        "csrc/gemm/cuda/sm80_pipe.cuh",
        "at.first_step + next, stage(next));",
        "at.first_step + next, stage(next + 1));",
    ),
    Mutant(
        "sm80 pipe: rows swizzled as the next row",
        "csrc/gemm/cuda/sm80_pipe.cuh",
        "chunk_at(row(), chunk()) +",
        "chunk_at(row() + 1, chunk()) - kRowBytes +",
        GEMM_INT4_CUDA,
    ),
    Mutant(
        "sm80 pipe: int8 weights swizzled by the next row",
        "csrc/gemm/cuda/sm80_pipe.cuh",
        "swizzle::tile_chunk(row, in_tile % 4)",
        "swizzle::tile_chunk(row + 1, in_tile % 4)",
    ),
    Mutant(
        "sm80 pipe: last columns of a ragged k lost",
        "csrc/gemm/cuda/sm80_pipe.cuh",
        "left < 0 ? 0 : left > 16 ? 16 : static_cast<int>(left)",
        "left < 16 ? 0 : 16",
    ),
    Mutant(
        "sm80 pipe: second row of a thread where the first was",
        "csrc/gemm/cuda/sm80_pipe.cuh",
        "return args.row_bytes() * kRowsPerPass;",
        "return args.row_bytes();",
    ),
    Mutant(
        "sm80 pipe: passes over rows in int32",
        "csrc/gemm/cuda/sm80_pipe.cuh",
        "return args.row_bytes() * kRowsPerPass;",
        "return static_cast<int32_t>(args.row_bytes() * kRowsPerPass);",
        ("tests/ops/test_large.py", "-k", "gemm_int4- and emulator"),
    ),
)
