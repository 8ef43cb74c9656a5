"""Planted bugs: block."""

from __future__ import annotations

from tools.mutation.mutant import Mutant

MUTANTS = (
    Mutant(
        "sm90a: a stage is released in its own block alone",
        "csrc/block/cluster.cuh",
        "dev::mbarrier_arrive_remote(barrier, dev::lane());",
        "dev::mbarrier_arrive_remote(barrier, dev::cluster_rank());",
    ),
    Mutant(
        "sm90a: a stage is released before all lanes have read it",
        "csrc/block/cluster.cuh",
        "dev::warp_sync();  // one lane arrives for the reads of all lanes",
        "",
    ),
    Mutant(
        "rows: neighbouring lanes not compared",
        "csrc/block/reduce.cuh",
        "step > 0; step /= 2",
        "step > 1; step /= 2",
    ),
    Mutant(
        "rows: extremes of other warps read before they are written",
        "csrc/block/reduce.cuh",
        "dev::store_shared(highs + dev::warp(), high);\n  }\n  dev::block_sync();",
        "dev::store_shared(highs + dev::warp(), high);\n  }\n  dev::warp_sync();",
    ),
    Mutant(
        "mark_nan_rows: results of other warps read before they are written",
        "csrc/block/reduce.cuh",
        "dev::block_sync();\n  int32_t any",
        "dev::warp_sync();\n  int32_t any",
        ("tests/ops/test_gemm_int8_epilogue.py", "-k", "emulator and quantized"),
    ),
    Mutant(
        "sm90a: the parity of the full barriers is never flipped",
        "csrc/block/ring.cuh",
        "parity ^= 1;",
        "parity ^= 0;",
    ),
    Mutant(
        "int4 cuda, a: four bytes at once at any even address",
        "csrc/block/row_alignment.h",
        "alignment >= 4 ? 4 : 1",
        "alignment >= 2 ? 4 : 1",
        ("tests/ops/test_gemm_int4_cuda.py", "-k", "strides and emulator"),
    ),
    Mutant(
        "sm80: 4-byte copies lose the tail",
        "csrc/block/row_copy.cuh",
        "valid - b > 4 ? 4 : valid - b",
        "valid - b < 4 ? 0 : 4",
    ),
    Mutant(
        "sm80: byte copies in the wrong place",
        "csrc/block/row_copy.cuh",
        "<< (8 * (b % 4))",
        "<< (8 * (b % 3))",
    ),
    Mutant(
        "sm80: one result too many at the edge",
        "csrc/block/runs.cuh",
        "if (e < count) dev::store_global",
        "if (e <= count) dev::store_global",
    ),
    Mutant(
        "cuda epilogue: a run is read in words wherever it starts",
        "csrc/block/runs.cuh",
        "count >= kCount && low % sizeof(Word) == 0",
        "count >= kCount",
        ("tests/ops/test_gemm_int8_epilogue.py", "-k", "emulator"),
    ),
    Mutant(
        "cuda epilogue: gate and residual of columns past n",
        "csrc/block/runs.cuh",
        "from[r] + (e < count ? e : 0)",
        "from[r] + e",
        ("tests/ops/test_gemm_int8_epilogue.py", "-k", "emulator"),
    ),
    Mutant(
        "sm90a: splits overlap by a step",
        "csrc/block/tile_order.cuh",
        "const int64_t first_step = split * split_steps,",
        "const int64_t first_step = split * (split_steps - 1),",
    ),
    Mutant(
        "sm90a: a tile of the last band twice",
        "csrc/block/tile_order.cuh",
        "height = left < kBand ? left : kBand;",
        "height = kBand;",
    ),
)
