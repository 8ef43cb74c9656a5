"""Bugs to plant in csrc/ops/gemm_int4."""

from __future__ import annotations

from tools.mutation.mutant import plant

MUTANTS = (
    *plant(
        "csrc/ops/gemm_int4/cpu/avx512_vnni.cc",
        (
            "int4 avx512, few rows: scales of the strip's first tile",
            "_mm512_load_ps(lines.scale + t * int4::kTileN)",
            "_mm512_load_ps(lines.scale)",
        ),
        tests="tests/ops/test_gemm_int4.py",
    ),
    *plant(
        "csrc/ops/gemm_int4/cpu/avx512_bf16.cc",
        ("int4 bf16: pairs of k in the order of a row", "0, 1, 4, 5, 2, 3, 6, 7,", "0, 1, 2, 3, 4, 5, 6, 7,"),
        ("int4 bf16: a table of another first weight", "kTable<-kSymmetricZeroPoint, 16>", "kTable<-7, 16>"),
        (
            "int4 bf16: the largest difference is not in the table",
            "static_cast<float>(kFirst + i % kCount)",
            "static_cast<float>(std::min(kFirst + i % kCount, 14))",
        ),
        (
            "int4 bf16: the sum of a piece goes on in the next one",
            "__m512 sum[kRows][kTiles]; unroll<kRows>(",
            "__m512 sum[kRows][kTiles]; if (i == 0) unroll<kRows>(",
        ),
        (
            "int4 bf16: scales of the first piece",
            "const float* const scale = piece.scale + step.column;",
            "const float* const scale = step.pieces[0].scale + step.column;",
        ),
        (
            "int4 bf16: zero points of the first piece",
            "const uint32_t* const zero = piece.zero + step.column;",
            "const uint32_t* const zero = step.pieces[0].zero + step.column;",
        ),
        (
            "int4 bf16: zero points of the strip's first tile",
            "half, zero + t * int4::kTileN);",
            "half, zero);",
        ),
        (
            "int4 bf16: scales of the strip's first tile",
            "_mm512_loadu_ps(scale + t * int4::kTileN)",
            "_mm512_loadu_ps(scale)",
        ),
        (
            "int4 bf16: the last line of a piece is lost if it is not whole",
            "ceil_div(stop - pieces.end, int64_t{kLineK})",
            "std::max((stop - pieces.end) / kLineK, int64_t{1})",
        ),
        (
            "int4 bf16: a piece goes on to the end of its group",
            "std::min((g + 1) * group, chunk_end)",
            "std::min((g + 1) * group, p.problem.k)",
        ),
        (
            "int4 bf16: zero points above the table",
            "constexpr int kMostInTable = 16;",
            "constexpr int kMostInTable = 255;",
        ),
        (
            "int4 bf16: a k chunk does not start from 0",
            "std::fill_n(k_chunk, rows * kTileN, kNoSum);",
            "if (k0 == 0) std::fill_n(k_chunk, rows * kTileN, kNoSum);",
        ),
        (
            "int4 bf16: an odd last tile reads the tile behind it",
            "if (t + 1 == tiles_n) two.w_stride = 0;",
            "if (t + 1 == tiles_n) two.w += two.w_stride;",
        ),
        (
            "int4 bf16, perm: places without a feature",
            "if (feature >= 0) line[i] = a[feature];",
            "line[i] = a[std::max<int64_t>(feature, 0)];",
            "tests/ops/test_act_order.py",
        ),
        tests="tests/ops/test_gemm_int4_bf16.py",
    ),
    *plant(
        "csrc/ops/gemm_int4/run.cc",
        (
            "int4: bf16 products with fractions of zero points",
            "params.w_zero_point.kind == GroupTensor::Kind::kU8",
            "true",
        ),
        (
            "int4: bf16 products of every float",
            "params.a_dtype == DType::kBF16 &&",
            "params.a_dtype != DType::kF32 &&",
        ),
        tests="tests/ops/test_gemm_int4.py tests/ops/test_gemm_int4_bf16.py",
    ),
    *plant(
        "csrc/gemm/problem.h",
        (
            "problem: bf16 is not in the key of a plan",
            "return memo_key(m, n, k, group, is_bf16);",
            "(void)is_bf16; return memo_key(m, n, k, group);",
        ),
        tests="tests/probe/test_cpu_plans.py tests/ops/test_gemm_int4_bf16.py",
    ),
    *plant(
        "csrc/gemm/cpu/float_nest.h",
        (
            "int4: a k chunk does not start from 0",
            "std::fill_n(k_chunk, rows * kTileN, kNoSum);",
            "if (k0 == 0) std::fill_n(k_chunk, rows * kTileN, kNoSum);",
        ),
        ("int4: zero points unscaled", "shared.minus_zero[j] *= shared.scale[j];", ";"),
        ("int4: weights of the strip's first tile", "tile = w + t * w_stride;", "tile = w;"),
        ("int4, many rows: weights of the first tile", "shared.weights[t][0]", "shared.weights[0][0]"),
        (
            "int4, many rows: sums of the first tile",
            "k_chunk + panel.row * kTileN + t * kFloatTileN",
            "k_chunk + panel.row * kTileN",
        ),
        ("int4: rows packed as far apart as columns", "a[r * stride + i + j]", "a[r * k + i + j]"),
        (
            "int4: a group goes on to the end of the block",
            "std::min((at / group() + 1) * group(), k1);",
            "k1;",
        ),
        (
            "int4, few rows: lines with the scales of the first group",
            "load_group(k0 / group(), n0, kTileN);",
            "load_group(0, n0, kTileN);",
        ),
        (
            "int4, few rows: k past the last whole line is lost",
            "multiply_blocks<Product>(w, n0, count, rows, middle, k1);",
            "if (middle == k0) multiply_blocks<Product>(w, n0, count, rows, middle, k1);",
        ),
        (
            "perm: another feature",
            "to_f32(a[r * stride + perm[i]])",
            "to_f32(a[r * stride + perm[i] / 2])",
            "tests/ops/test_act_order.py tests/ops/test_errors.py",
        ),
        (
            "perm: a place without a feature keeps old memory",
            "if (p.perm.is_given()) std::fill_n(packed, rows * p.problem.k, 0.0f);",
            "",
            "tests/ops/test_act_order.py tests/ops/test_errors.py",
        ),
        (
            "int4: a panel is packed over the block's next one",
            "packed + k0 * rows + panel.row * (k1 - k0)",
            "packed + k0 * rows + panel.row * std::min(k1 - k0, kBlockK - 1)",
        ),
        (
            "int4, perm: rows in int32",
            "a[r * stride + perm[i]]",
            "a[static_cast<int32_t>(r * stride) + perm[i]]",
            "tests/ops/test_large.py -k gathered and not emulator",
        ),
        tests="tests/ops/test_gemm_int4.py",
    ),
    *plant(
        "csrc/ops/gemm_int4/pack.cc",
        (
            "perm: a packed tile has the first one's features",
            "perm.data + part.first,",
            "perm.data,",
            "tests/ops/test_act_order.py tests/ops/test_errors.py",
        ),
        (
            "perm: the error names the place of a wrong code",
            "const int64_t p = feature(at);",
            "const int64_t p = at;",
            "tests/ops/test_act_order.py tests/ops/test_errors.py",
        ),
        ("pack int4: the tile before is not cleared", "std::fill_n(tile, kTileBytes, uint8_t{0});", ""),
        ("pack int4: row stride ignored", "(part.row + i) * stride", "(part.row + i) * k"),
        tests="tests/ops/test_pack_int4.py",
    ),
    *plant(
        "csrc/ops/gemm_int4/cuda/products.cuh",
        ("int4 products: padding past k is a weight", "left == 1 ? 0x0000ffffu : 0u", "0xffffffffu"),
        tests="tests/ops/test_gemm_int4_cuda.py",
    ),
    *plant(
        "csrc/gemm/cuda/int4_dequantize.cuh",
        ("int4 dequantize: f16 codes of odd rows not shifted", "? 1024.0f : 64.0f", "? 1024.0f : 1024.0f"),
        ("int4 dequantize: fractions of zero points lost", "whole == zero ?", "true ?"),
        ("int4 dequantize: zero points cut off", "within + kRound - kRound", "static_cast<int>(within)"),
        (
            "int4 dequantize: zero points not clamped to the codes",
            "zero > 15.0f ? 15.0f : ",
            "zero > 2000.0f ? 15.0f : ",
        ),
        tests="tests/ops/test_gemm_int4_cuda.py",
    ),
    *plant(
        "csrc/ops/gemm_int4/cuda/pack.cu",
        (
            "pack int4 cuda: rows in int32",
            "args.q + row * args.stride + p",
            "args.q + static_cast<int32_t>(row * args.stride) + p",
        ),
        (
            "pack int4 cuda: row stride of q ignored",
            "args.q + row * args.stride + p",
            "args.q + row * args.k + p",
            "tests/ops/test_pack_int4.py -k device",
        ),
        tests="tests/ops/test_large.py -k pack_int4",
    ),
    *plant(
        "csrc/ops/gemm_int4/cuda/reduce.cu",
        (
            "reduce, int4: gate dropped",
            "reduce_columns<Unscaled, float, float>(p,",
            "Params less = p; less.gate = {}; reduce_columns<Unscaled, float, float>(less,",
        ),
        (
            "reduce, int4: residual dropped",
            "reduce_columns<Unscaled, float, float>(p,",
            "Params less = p; less.residual = {}; reduce_columns<Unscaled, float, float>(less,",
        ),
        tests="tests/ops/test_split_k.py -k gemm_int4-",
    ),
    *plant(
        "csrc/ops/gemm_int4/cuda/run.cc",
        (
            "int4 cuda: packed weights at any multiple of 4 bytes",
            "reinterpret_cast<uintptr_t>(params.w) % 16 != 0",
            "reinterpret_cast<uintptr_t>(params.w) % 4 != 0",
        ),
        tests="tests/ops/test_placement.py",
    ),
    *plant(
        "csrc/ops/gemm_int4/cuda/sm80.cuh",
        (
            "int4 sm80: halves of k swapped",
            "slice * 2 + dev::lane() / 8 % 2, b",
            "slice * 2 + 1 - dev::lane() / 8 % 2, b",
        ),
        ("int4 sm80: both halves of 16 tokens the first", "b[j / 2][j % 2 * 2],", "b[j / 2][0],"),
        ("int4 sm80: groups that end within a tile", "first >= kSlices &&", "first >= kSlices - 1 &&"),
        tests="tests/ops/test_gemm_int4_cuda.py",
    ),
    *plant(
        "csrc/gemm/cuda/sm80_pipe.cuh",
        (
            "sm80 pipe, perm: the rows start a step later",
            "(from) - begin;",
            "(from) - begin + kStepK;",
            "tests/ops/test_split_k.py -k gemm_int4-",
        ),
        tests="tests/ops/test_gemm_int4_cuda.py",
    ),
    *plant(
        "csrc/gemm/cuda/sm90a_pipe.cuh",
        ("int4 sm90a: copied rows with another swizzle", "swizzled(kSwizzle, at)", "at"),
        (
            "int4 sm90a: copied rows in int32",
            "base + (m0 + row) * p.a_stride * 2;",
            "base + static_cast<int32_t>((m0 + row) * p.a_stride) * 2;",
            "tests/ops/test_large.py -k gemm_int4- and emulator",
        ),
        (
            "int4 sm90a: rows past m copied",
            "m0 + row < p.problem.m ? p.problem.k - k0 : 0;",
            "p.problem.k - k0;",
            "tests/ops/test_gemm_int4_cuda.py -k sm90a and (act_order or strides)",
        ),
        tests="tests/ops/test_gemm_int4_cuda.py",
    ),
    *plant(
        "csrc/gemm/cuda/int4_groups.cuh",
        (
            "int4 groups: a group of one slice less",
            "++row; end += args.group_slices;",
            "++row; end += args.group_slices - 1;",
        ),
        (
            "int4 groups: a step goes on with the group after",
            "row = end > begin ? 0 : -1",
            "row = end > begin ? 1 : -1",
        ),
        ("int4 groups: padding past k enters a group", "end = INT_MAX;", "{}"),
        ("int4 groups: the last group of a step not loaded", "int count = 1; for", "int count = 0; for"),
        ("int4 groups: a step loads from the group before", "next.end <= begin;", "next.end < begin;"),
        ("int4 groups: the next pair's scales", "pair >> (16 * e)", "pair >> (16 * (1 - e))"),
        tests="tests/ops/test_gemm_int4_cuda.py",
    ),
    *plant(
        "csrc/ops/gemm_int4/cuda/sm90a.cuh",
        (
            "int4 sm90a: weights overwritten two products too early",
            "dev::wgmma_wait<kSlices / 2 - 1>();",
            "dev::wgmma_wait<kSlices / 2>();",
        ),
        (
            "int4 sm90a: no fence between weights and products",
            "dev::wgmma_fence(); #pragma unroll for (int s = two;",
            "for (int s = two;",
        ),
        (
            "int4 sm90a: no fence between weights and products of an edge",
            "dev::wgmma_fence(); #pragma unroll for (int s = 0;",
            "for (int s = 0;",
        ),
        (
            "int4 sm90a: weights of an edge overwritten under its products",
            "dev::wgmma_commit(); dev::wgmma_wait<0>();",
            "dev::wgmma_commit();",
        ),
        (
            "int4 sm90a: the second product of a tile starts at the first's k",
            "advance_descriptor(tokens, s * kSliceK * 2)",
            "advance_descriptor(tokens, s / 2 * 2 * kSliceK * 2)",
        ),
        ("int4 sm90a: padding past k is multiplied", "kStopsAtK = true;", "kStopsAtK = false;"),
        tests="tests/ops/test_gemm_int4_cuda.py",
    ),
    *plant(
        "csrc/gemm/cuda/half_sm90a.cuh",
        (
            "half sm90a: sums used before they are done",
            "dev::wgmma_wait<0>(); dev::wgmma_fence_registers(sums);",
            "dev::wgmma_fence_registers(sums);",
        ),
        (
            "half sm90a: a stage is released while its products are in flight",
            "if (t == Products::kReleaseTile && s > begin) Pipe::release(before);",
            "if (t == Products::kReleaseTile) Pipe::release(cursor.stage);",
        ),
        (
            "half sm90a: the last stage of a k chunk is never released",
            "dev::wgmma_fence_registers(sums); Pipe::release(before);",
            "dev::wgmma_fence_registers(sums);",
        ),
        ("half sm90a: a stage goes on counting rows of groups", "group.begin_stage(first);", ""),
        ("half sm90a: groups that end within a tile", "group.end - slice >= kSlices &&", ""),
        ("half sm90a: k that ends within a tile", "slice + kSlices <= args.groups.whole_slices", "true"),
        (
            "half sm90a, perm: the rows of a split start at its first k",
            "Pipe::copy_rows(args, tile.m0, step, thread, stage);",
            "{ Args moved = args; if (args.p.perm.is_given()) moved.p.a = static_cast<const std::byte*>(args.p.a) + tile.first_step * int4::kTileK * 2; Pipe::copy_rows(moved, tile.m0, step, thread, stage); }",
            "tests/ops/test_split_k.py -k gemm_int4-",
        ),
        tests="tests/ops/test_gemm_int4_cuda.py",
    ),
)
