"""Bugs to plant in csrc/gemm/cuda."""

from __future__ import annotations

from tools.mutation.mutant import CAPPED, plant

MUTANTS = (
    *plant(
        "csrc/gemm/cuda/epilogue.cuh",
        (
            "cuda epilogue: row stride of gate and residual ignored",
            "rows[r] * operand.stride + columns.j0",
            "rows[r] * columns.left + columns.j0",
        ),
        (
            "cuda epilogue: residual multiplied in the place of the gate",
            "combine_all(p.gate, rows,",
            "combine_all(p.residual, rows,",
        ),
        (
            "cuda epilogue: values leave the activation rotated",
            "step < kCount / kAtOnce",
            "step < kCount / kAtOnce - 1",
        ),
        (
            "cuda epilogue: static scale of the first row",
            "quantizer({p.out_scale[i], 0}, true)",
            "quantizer({p.out_scale[0], 0}, true)",
            "tests/ops/test_gemm_int8_epilogue.py -k emulator and quantized",
        ),
        (
            "cuda epilogue: rows of gate and residual in int32",
            "rows[r] * operand.stride + columns.j0",
            "static_cast<int32_t>(rows[r] * operand.stride) + columns.j0",
            "tests/ops/test_large.py -k apart and emulator",
        ),
        (
            "int4_int8 cuda, epilogue: a token's scale after the bias",
            "Scaler::scale(acc[e], row, columns.scales, e) + columns.bias[e]",
            "Scaler::scale(acc[e] + static_cast<Acc>(columns.bias[e]), row, columns.scales, e)",
            "tests/ops/test_gemm_int4_int8_cuda.py",
        ),
        (
            "cuda epilogue: bias of columns past n",
            "load_bias(p, j0 + (e < left ? e : 0));",
            "load_bias(p, j0 + e);",
        ),
        tests="tests/ops/test_gemm_int8_epilogue.py -k emulator",
    ),
    *plant(
        "csrc/gemm/cuda/k_chunk.cuh",
        ("k chunk: total not added", "done > steps", "done > 2 * steps"),
        ("k chunk: stored to the next partial sum", "(done - 1) / steps", "done / steps"),
        ("k chunk: does not start from 0", "clear(kNoSum);", ""),
        ("k chunk: the last step does not end it", "&& !is_last", ""),
        tests="tests/ops/test_gemm_int8_groups.py",
    ),
    *plant(
        "csrc/gemm/cuda/plan.cc",
        ("host: int8's cap is not in the key", "a_alignment, max_sms, choice", "a_alignment, choice"),
        ("host: a's alignment is not in the key", "a_alignment, max_sms, choice", "max_sms, choice"),
        ("host: threads share a table", "static thread_local Memo", "static Memo"),
        (
            "int4 plan: k is split within a k chunk",
            "each * (chunk_k / kernel.step_k),",
            "each * (chunk_k / kernel.step_k) - 1,",
            "tests/probe/test_cuda_plans.py",
        ),
        (
            "plan: k is split within a k chunk",
            "rule.chunk_k > 0 ? rule.chunk_k : kernel.step_k",
            "kernel.step_k",
            "tests/probe/test_cuda_plans.py",
        ),
        ("host: the forced kernel is not in the key", "choice_of(op.kernels, only));", "0);"),
        (
            "host: the cap is not in the key",
            "key_of(device), a_alignment, max_sms,",
            "key_of(device), a_alignment,",
        ),
        ("host: the first kernel, forced, is any", "kernels.begin() + 1;", "kernels.begin();"),
        (
            "int4 plan: kernels of two archs",
            "arch == 0 || kernel.arch == arch",
            "kernel.arch >= 80",
            "tests/ops/test_gemm_int4_cuda.py",
        ),
        tests="tests/ops/test_host_work.py",
    ),
    *plant(
        "csrc/gemm/cuda/plan.h",
        ("plan: no cap on SMs after the product", "return is_capped ? sms : INT_MAX;", "return INT_MAX;"),
        tests=CAPPED,
    ),
    *plant(
        "csrc/gemm/cuda/reduce.cuh",
        ("reduce: a capped grid adds every other stripe", "at += stride)", "at += 2 * stride)", CAPPED),
        (
            "int4_int8: partial sums added before they are written",
            "dev::wait_for_previous();",
            "",
            "tests/ops/test_gemm_int4_int8_cuda.py",
        ),
        (
            "reduce: sums of partials start at 0",
            "Acc(kNoSum)",
            "Acc(0)",
            "tests/ops/test_zeros.py -k emulator",
        ),
        ("reduce: last split dropped", "partial < count;", "partial < count - 1;"),
    ),
    *plant(
        "csrc/gemm/cuda/sm90a_pipe.cuh",
        (
            "int4 sm90a: a stage is used before its copies have landed",
            "dev::mbarrier_wait(&barriers().full[cursor.stage], cursor.parity);",
            "",
        ),
        (
            "int4 sm90a: TMA fills a stage while it is in use",
            "counts as done. dev::mbarrier_wait(&barriers().empty[cursor.stage], cursor.parity ^ 1);",
            "",
        ),
        (
            "int4 sm90a: threads fill a stage while it is in use",
            "dev::mbarrier_wait(&barriers().empty[cursor.stage], cursor.parity ^ 1); copies",
            "copies",
        ),
        (
            "int4 sm90a: copies count a stage too early",
            "dev::cp_async_wait<kAhead>();",
            "dev::cp_async_wait<kAhead + 1>();",
        ),
        ("int4 sm90a: no wait for the last copies", "dev::cp_async_wait<0>();", ""),
        ("int4 sm90a: copied rows without a fence", "if (args.copies_a()) dev::fence_proxy_async();", ""),
        (
            "int4 sm90a: bytes that threads copy are expected from TMA",
            "kBytesW + (args.copies_a() ? 0 : kBytesA)",
            "kBytesW + kBytesA",
        ),
        (
            "int4 sm90a: all rows of a stage in its first 64 k",
            "stage_at(cursor.stage) + t * kTileBytesA + part",
            "stage_at(cursor.stage) + part",
        ),
        (
            "int4 sm90a: eight rows of tokens too close",
            "kSwizzleGroupBytes = 8 * kRowBytes",
            "kSwizzleGroupBytes = 4 * kRowBytes",
        ),
        (
            "int4 sm90a: a block leaves while others still write to it",
            "if constexpr (kCluster > 1) sync_cluster<kCluster>();",
            "",
        ),
        (
            "int4_int8 sm90a: activations loaded before they are written",
            "dev::wait_for_previous(); for_stages",
            "for_stages",
            "tests/ops/test_gemm_int4_int8_cuda.py",
        ),
        (
            "int4_int8 sm90a: scales read before they are written",
            "dev::wait_for_previous(); Kernel::consume",
            "Kernel::consume",
            "tests/ops/test_gemm_int4_int8_cuda.py",
        ),
        (
            "int4_int8 sm90a: sums copied before they are written",
            "if (warp > kMathWarps) { dev::wait_for_previous();",
            "if (warp > kMathWarps) {",
            "tests/ops/test_gemm_int4_int8_cuda.py",
        ),
        (
            "int4_int8 sm90a: more early weights than stages",
            "if (early == kShape.stages) return false;",
            "if (early > kShape.stages) return false;",
            "tests/ops/test_gemm_int4_int8_cuda.py",
        ),
        (
            "int4_int8 sm90a: early weights loaded again",
            "load_w(tile, step, cursor); ++early;",
            "load_w(tile, step, cursor);",
            "tests/ops/test_gemm_int4_int8_cuda.py",
        ),
        tests="tests/ops/test_gemm_int4_cuda.py",
    ),
    *plant(
        "csrc/gemm/cuda/store_rows.cuh",
        (
            "sm90a: both halves of a product's sums from the upper rows",
            "sum_of(sums, i + 2 * odd)",
            "sum_of(sums, i)",
        ),
        (
            "store_rows: rows overwritten while they are read",
            "dev::warp_sync();  // all lanes have read the chunk before",
            "",
        ),
        (
            "store_rows: rows read before they are written",
            "stage(rows, chunk, pair, sums); dev::warp_sync();",
            "stage(rows, chunk, pair, sums);",
        ),
        ("sm90a: odd tokens stored one row too far", "is_odd ? kRows - 1 : 0", "is_odd ? kRows : 0"),
    ),
    *plant(
        "csrc/gemm/cuda/store_tma.cuh",
        ("store_tma: sent without a fence", "dev::fence_proxy_async();", ""),
        (
            "store_tma: sent before all have written",
            "dev::barrier_sync(1 + at.warpgroup(), kWarps * dev::kWarpLanes);",
            "",
        ),
        (
            "store_tma: both warpgroups at one barrier",
            "dev::barrier_sync(1 + at.warpgroup(),",
            "dev::barrier_sync(1,",
        ),
        ("store_tma: written while it is read", "if (at.is_sender()) dev::bulk_wait_read<0>();", ""),
        ("store_tma: one box for all", "box ^= 1;", ""),
        (
            "store_tma: a block leaves before they are read",
            "finish() { dev::bulk_wait_read<0>(); }",
            "finish() {}",
        ),
        (
            "store_tma: rows with another swizzle",
            "swizzled(Swizzle::k128, row_of(e)",
            "swizzled(Swizzle::k64, row_of(e)",
        ),
        (
            "store_tma: gate and residual of rows past m",
            "std::min(m0 + row_of(r), last);",
            "m0 + row_of(r);",
            "tests/ops/test_gemm_int8_epilogue.py -k sm90a and emulator",
        ),
        (
            "store_tma: even tokens' scales",
            "Row::from_lane(ahead, p, static_cast<int>(row_of(r)))",
            "Row::from_lane(ahead, p, static_cast<int>(row_of(r / 2 * 2)))",
        ),
    ),
    *plant(
        "csrc/gemm/cuda/sm80_pipe.cuh",
        (
            "sm80 pipe: a step is used one too early",
            "cp_async_wait<kShape.stages - 2>",
            "cp_async_wait<kShape.stages - 1>",
            "tests/ops/test_gemm_int4_cuda.py",
        ),
        (
            "sm80 pipe: no barrier before a stage is used and refilled",
            "dev::block_sync();  // step s has arrived",
            "// step s has arrived",
            "tests/ops/test_gemm_int4_int8_cuda.py",
        ),
        (
            "sm80 pipe: the next tile's copies into a ring that is being read",
            "dev::block_sync();  // all warps have read the ring",
            "{}",
            "tests/ops/test_gemm_int4_cuda.py",
        ),
        (
            "sm80 pipe: the last tile of a capped grid forgotten",
            "unit < args.units.count; unit += stride",
            "unit + 1 < args.units.count + (unit < stride); unit += stride",
            CAPPED,
        ),
        (
            "sm80 pipe: splits overlap by a step",
            "split * args.split.steps",
            "split * (args.split.steps - 1)",
            "tests/ops/test_gemm_int4_int8_cuda.py",
        ),
        (
            "sm80 pipe: next step into the stage that is being read",
            "at.first_step + next, stage(next));",
            "at.first_step + next, stage(next + 1));",
        ),
        (
            "sm80 pipe: rows swizzled as the next row",
            "chunk_at(row(), chunk()) +",
            "chunk_at(row() + 1, chunk()) - kRowBytes +",
            "tests/ops/test_gemm_int4_cuda.py",
        ),
        (
            "sm80 pipe: int8 weights swizzled by the next row",
            "swizzle::tile_chunk(row, in_tile % 4)",
            "swizzle::tile_chunk(row + 1, in_tile % 4)",
        ),
        (
            "sm80 pipe: last columns of a ragged k lost",
            "left < 0 ? 0 : left > 16 ? 16 : static_cast<int>(left)",
            "left < 16 ? 0 : 16",
        ),
        (
            "sm80 pipe: second row of a thread where the first was",
            "return args.row_bytes() * kRowsPerPass;",
            "return args.row_bytes();",
        ),
        (
            "sm80 pipe: passes over rows in int32",
            "return args.row_bytes() * kRowsPerPass;",
            "return static_cast<int32_t>(args.row_bytes() * kRowsPerPass);",
            "tests/ops/test_large.py -k gemm_int4- and emulator",
        ),
    ),
)
