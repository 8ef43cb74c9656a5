"""Bugs to plant in csrc/block."""

from __future__ import annotations

from tools.mutation.mutant import plant

MUTANTS = (
    *plant(
        "csrc/block/cluster.cuh",
        (
            "sm90a: a stage is released in its own block alone",
            "dev::mbarrier_arrive_remote(barrier, dev::lane());",
            "dev::mbarrier_arrive_remote(barrier, dev::cluster_rank());",
        ),
        (
            "sm90a: a stage is released before all lanes have read it",
            "dev::warp_sync();  // one lane arrives for the reads of all lanes",
            "",
        ),
    ),
    *plant(
        "csrc/block/reduce.cuh",
        ("rows: neighbouring lanes not compared", "step > 0; step /= 2", "step > 1; step /= 2"),
        (
            "rows: extremes of other warps read before they are written",
            "dev::store_shared(highs + dev::warp(), high);\n  }\n  dev::block_sync();",
            "dev::store_shared(highs + dev::warp(), high);\n  }\n  dev::warp_sync();",
        ),
        (
            "mark_nan_rows: results of other warps read before they are written",
            "  sync();\n  int32_t any",
            "  dev::warp_sync();\n  int32_t any",
            "tests/ops/test_gemm_int8_epilogue.py -k emulator and quantized",
        ),
    ),
    *plant(
        "csrc/block/ring.cuh",
        ("sm90a: the parity of the full barriers is never flipped", "parity ^= 1;", "parity ^= 0;"),
    ),
    *plant(
        "csrc/block/row_alignment.h",
        (
            "int4 cuda, a: four bytes at once at any even address",
            "alignment >= 4 ? 4 : 1",
            "alignment >= 2 ? 4 : 1",
        ),
        tests="tests/ops/test_gemm_int4_cuda.py -k strides and emulator",
    ),
    *plant(
        "csrc/block/row_copy.cuh",
        ("sm80: 4-byte copies lose the tail", "valid - b > 4 ? 4 : valid - b", "valid - b < 4 ? 0 : 4"),
        ("sm80: byte copies in the wrong place", "<< (8 * (b % 4))", "<< (8 * (b % 3))"),
    ),
    *plant(
        "csrc/block/runs.cuh",
        (
            "sm80: one result too many at the edge",
            "if (e < count) dev::store_global",
            "if (e <= count) dev::store_global",
            "",
        ),
        (
            "cuda epilogue: a run is read in words wherever it starts",
            "count >= kCount && low % sizeof(Word) == 0",
            "count >= kCount",
        ),
        (
            "cuda epilogue: gate and residual of columns past n",
            "from[r] + (e < count ? e : 0)",
            "from[r] + e",
        ),
        tests="tests/ops/test_gemm_int8_epilogue.py -k emulator",
    ),
    *plant(
        "csrc/block/tile_order.cuh",
        (
            "sm90a: splits overlap by a step",
            "const int64_t first_step = split * split_steps,",
            "const int64_t first_step = split * (split_steps - 1),",
        ),
        ("sm90a: a tile of the last band twice", "height = left < kBand ? left : kBand;", "height = kBand;"),
        tests="tests/probe/test_cuda_plans.py",
    ),
)
