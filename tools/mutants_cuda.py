"""The bugs that tools/mutants.py plants in CUDA kernels; the twin must show them."""

from __future__ import annotations

from tools.mutant import Mutant

GEMM = "csrc/ops/gemm_int8"
SM80 = f"{GEMM}/cuda/sm80.cuh"
SM90A = f"{GEMM}/cuda/sm90a.cuh"
ROWS_OUT = f"{GEMM}/cuda/rows_out.cuh"
REDUCE = f"{GEMM}/cuda/reduce.cuh"
UNALIGNED = f"{GEMM}/cuda/unaligned.cuh"
SM90A_RING = f"{GEMM}/cuda/sm90a_ring.cuh"
SM90A_BOXES = f"{GEMM}/cuda/sm90a_boxes.cuh"

# Tests that are the last ones of a whole run.
CAPPED = (
    "tests/ops/test_twin.py",
    "tests/ops/test_quantize_int8.py",
    "tests/ops/test_gemm_int8.py",
    "-k",
    "twin and (cap or sms or the_same_in_every_batch)",
)

CUDA_MUTANTS = (
    Mutant(
        "sm80: a step is used one too early",
        SM80,
        "cp_async_wait<kConfig.stages - 2>",
        "cp_async_wait<kConfig.stages - 1>",
    ),
    Mutant(
        "sm80: no barrier before a stage is used and refilled",
        SM80,
        "dev::block_sync();  // step s has arrived",
        "// step s has arrived",
    ),
    Mutant(
        "sm80: the next tile's copies into a ring that is being read",
        SM80,
        "dev::block_sync();  // the ring is read",
        "{}",
        CAPPED,
    ),
    Mutant(
        "sm80: the last tile of a capped grid forgotten",
        SM80,
        "unit < args.units; unit += stride",
        "unit + 1 < args.units + (unit < stride); unit += stride",
        CAPPED,
    ),
    Mutant(
        "reduce: a capped grid adds every other stripe",
        REDUCE,
        "at += stride)",
        "at += 2 * stride)",
        CAPPED,
    ),
    Mutant(
        "settle: the next row's finds over those being read",
        f"{GEMM}/cuda/settle.cu",
        "dev::block_sync();  // all have read what the warps found",
        "{}",
        CAPPED,
    ),
    Mutant(
        "rows: the next row's extremes over those being read",
        "csrc/ops/quantize_int8/cuda/rows.cu",
        "dev::block_sync();  // all have read the extremes",
        "{}",
        CAPPED,
    ),
    Mutant(
        "plan: a cap on SMs forgotten behind the product",
        f"{GEMM}/cuda/plan.h",
        "return is_capped ? sms : INT_MAX;",
        "return INT_MAX;",
        CAPPED,
    ),
    Mutant("sm80: halves of k swapped in b", SM80, "{b[0].x[j], b[1].x[j]}", "{b[1].x[j], b[0].x[j]}"),
    Mutant(
        "sm80: weights swizzled by the next row",
        SM80,
        "swizzle::tile_chunk(tile_row, tile_chunk)",
        "swizzle::tile_chunk(tile_row + 1, tile_chunk)",
    ),
    Mutant(
        "sm80: activations read without their swizzle",
        SM80,
        "swizzle::row_chunk(row, chunk)) * 16);",
        "chunk) * 16);",
    ),
    Mutant(
        "sm80: last columns of a ragged k lost",
        SM80,
        "left_k < 0 ? 0 : left_k > 16 ? 16 : static_cast<int>(left_k)",
        "left_k < 16 ? 0 : 16",
    ),
    Mutant(
        "sm80: 4-byte copies lose the tail",
        UNALIGNED,
        "valid - b > 4 ? 4 : valid - b",
        "valid - b < 4 ? 0 : 4",
    ),
    Mutant("sm80: byte copies in the wrong place", UNALIGNED, "<< (8 * (b % 4))", "<< (8 * (b % 3))"),
    Mutant(
        "sm80: splits overlap by a step",
        SM80,
        "static_cast<int64_t>(split) * args.split.steps",
        "static_cast<int64_t>(split) * (args.split.steps - 1)",
    ),
    Mutant(
        "sm80: next step into the stage that is being read",
        SM80,
        "load_step(args, at, from, at.first_step + next, stage(next));",
        "load_step(args, at, from, at.first_step + next, stage(next + 1));",
    ),
    Mutant(
        "sm80: sums of warps stored over the ring in use",
        SM80,
        "dev::block_sync();  // everybody is done",
        "// everybody is done",
    ),
    Mutant(
        "sm80: sums of warps added before they are there",
        SM80,
        "dev::block_sync(); if (at.warp_k == 0)",
        "if (at.warp_k == 0)",
    ),
    Mutant(
        "sm80: columns of a lane in the order of its mmas",
        SM80,
        "[e % kMmasPerGroup][half * 2 + e / kMmasPerGroup]",
        "[e / 2][half * 2 + e % 2]",
    ),
    Mutant("sm80: lower rows stored as upper", SM80, "half * 8 + lane / 4", "(1 - half) * 8 + lane / 4"),
    Mutant(
        "sm80: one result too many at the edge",
        f"{GEMM}/cuda/epilogue.cuh",
        "if (e < count) dev::store_global",
        "if (e <= count) dev::store_global",
    ),
    Mutant(
        "sm80: second row of a thread where the first was",
        SM80,
        "p.a_stride * kRowsPerPass,",
        "p.a_stride,",
    ),
    Mutant(
        "sm90a: a stage is used before its copies are there",
        SM90A,
        "dev::mbarrier_wait(&barriers().full[cursor.stage], cursor.parity);",
        "",
    ),
    Mutant(
        "sm90a: the parity of the full barriers is never flipped",
        SM90A_RING,
        "parity ^= 1;",
        "parity ^= 0;",
    ),
    Mutant(
        "sm90a: a stage is filled while it is in use",
        SM90A,
        "dev::mbarrier_wait(&bars.empty[cursor.stage], cursor.parity ^ 1);",
        "",
    ),
    Mutant(
        "sm90a: a stage is given back while its products are under way",
        SM90A,
        "if (s > 0) release(before);",
        "release(cursor.stage);",
    ),
    Mutant(
        "sm90a: weights overwritten a product too early",
        SM90A,
        "dev::wgmma_wait<kProducts - 1>();",
        "dev::wgmma_wait<kProducts>();",
    ),
    Mutant(
        "sm90a: the last stage of a tile is never given back",
        SM90A,
        "if (tile.steps > 0) release(before);",
        "",
    ),
    Mutant(
        "sm90a: weights overwritten under a product",
        SM90A,
        "dev::wgmma_wait<kProducts - 1>();",
        "",
    ),
    Mutant("sm90a: no fence between weights and product", SM90A, "dev::wgmma_fence();", ""),
    Mutant("sm90a: sums stored before they are done", SM90A, "dev::wgmma_wait<0>();", ""),
    Mutant(
        "sm90a: weights read without their swizzle",
        SM90A,
        "swizzled(Swizzle::k128, at)",
        "swizzled(Swizzle::k64, at)",
    ),
    Mutant(
        "sm90a: tokens described with another swizzle",
        SM90A,
        "kSwizzleGroupBytes, Swizzle::k128)",
        "kSwizzleGroupBytes, Swizzle::k64)",
    ),
    Mutant(
        "sm90a: the second product of a step starts at the first's k",
        SM90A,
        "static_cast<uint32_t>(h * kWgmmaK)",
        "static_cast<uint32_t>(h / 2 * 2 * kWgmmaK)",
    ),
    Mutant(
        "sm90a: eight rows of tokens too close",
        SM90A,
        "kSwizzleGroupBytes = 8 * kStepK",
        "kSwizzleGroupBytes = 4 * kStepK",
    ),
    Mutant(
        "sm90a: features of a lane in the order of q",
        SM90A,
        "return (q & 1) | (q & 2) << 1 | (q & 4) >> 1;",
        "return q;",
    ),
    Mutant(
        "sm90a: a stage is given back to the own block alone",
        SM90A_RING,
        "dev::mbarrier_arrive_remote(barrier, dev::lane());",
        "dev::mbarrier_arrive_remote(barrier, dev::cluster_rank());",
    ),
    Mutant(
        "sm90a: a stage is given back before all lanes have read it",
        SM90A_RING,
        "dev::warp_sync();  // the lanes that arrive answer for what all have read",
        "",
    ),
    Mutant(
        "sm90a: a block leaves while others still write to it",
        SM90A,
        "if constexpr (kCluster > 1) sync_cluster<kCluster>();",
        "",
    ),
    Mutant(
        "sm90a: bytes of the tokens not expected",
        SM90A,
        "dev::mbarrier_arrive_expect_tx(full, kStageBytes);",
        "dev::mbarrier_arrive_expect_tx(full, kBytesW);",
    ),
    Mutant(
        "sm90a: barriers not made known to copies",
        SM90A,
        "dev::fence_mbarrier_init();",
        "",
    ),
    Mutant(
        "sm90a: splits overlap by a step",
        SM90A_RING,
        "const int64_t first_step = split * split_steps,",
        "const int64_t first_step = split * (split_steps - 1),",
    ),
    Mutant(
        "sm90a: a tile of the last band twice",
        SM90A_RING,
        "height = left < kBand ? left : kBand;",
        "height = kBand;",
    ),
    Mutant(
        "sm90a: both halves of a product's sums from the upper rows",
        ROWS_OUT,
        "sum_of(sums, i + 2 * odd)",
        "sum_of(sums, i)",
    ),
    Mutant(
        "sm90a: rows on their way out overwritten while they are read",
        ROWS_OUT,
        "dev::warp_sync();  // what was there is read",
        "",
    ),
    Mutant(
        "sm90a: rows on their way out read before they are written",
        ROWS_OUT,
        "stage(rows, chunk, pair, sums); dev::warp_sync();",
        "stage(rows, chunk, pair, sums);",
    ),
    Mutant(
        "sm90a: odd tokens stored one row too far",
        ROWS_OUT,
        "is_odd ? kRows - 1 : 0",
        "is_odd ? kRows : 0",
    ),
    Mutant("sm90a boxes: sent without a fence", SM90A_BOXES, "dev::fence_proxy_async();", ""),
    Mutant(
        "sm90a boxes: sent before all have written",
        SM90A_BOXES,
        "dev::barrier_sync(1 + at.warpgroup(), kWarps * dev::kWarpLanes);",
        "",
    ),
    Mutant(
        "sm90a boxes: both warpgroups at one barrier",
        SM90A_BOXES,
        "dev::barrier_sync(1 + at.warpgroup(),",
        "dev::barrier_sync(1,",
    ),
    Mutant(
        "sm90a boxes: written while it is read",
        SM90A_BOXES,
        "if (at.is_sender()) dev::bulk_wait_read<0>();",
        "",
    ),
    Mutant("sm90a boxes: one box for all", SM90A_BOXES, "box ^= 1;", ""),
    Mutant(
        "sm90a boxes: a block leaves before they are read",
        SM90A_BOXES,
        "finish() { dev::bulk_wait_read<0>(); }",
        "finish() {}",
    ),
    Mutant(
        "sm90a boxes: rows with another swizzle",
        SM90A_BOXES,
        "swizzled(Swizzle::k128, row_of(e)",
        "swizzled(Swizzle::k64, row_of(e)",
    ),
    Mutant(
        "sm90a boxes: even tokens' scales",
        SM90A_BOXES,
        "dev::shuffle(own.a_scale, static_cast<int>(row_of(r)))",
        "dev::shuffle(own.a_scale, static_cast<int>(row_of(r / 2 * 2)))",
    ),
    Mutant(
        "reduce: last split forgotten",
        REDUCE,
        "partial < partials;",
        "partial < partials - 1;",
    ),
    Mutant(
        "rows: neighbouring lanes not compared",
        "csrc/quant/int8_row.cuh",
        "step > 0; step /= 2",
        "step > 1; step /= 2",
    ),
    Mutant(
        "rows: extremes of other warps read before they are there",
        "csrc/quant/int8_row.cuh",
        "dev::block_sync();\n#pragma",
        "dev::warp_sync();\n#pragma",
    ),
)
