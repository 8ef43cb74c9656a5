"""Bugs to plant in csrc/ops/gemm_int4_int8."""

from __future__ import annotations

from tools.mutation.mutant import plant

MUTANTS = (
    *plant(
        "csrc/ops/gemm_int4_int8/cpu/amx_int8.cc",
        (
            "int4_int8 amx: a group's second block forgets the first",
            "!piece.begins, Prefetch",
            "false, Prefetch",
        ),
        tests="tests/ops/test_gemm_int4_int8.py tests/ops/test_gemm_int4_int8_exact.py",
    ),
    *plant(
        "csrc/ops/gemm_int4_int8/cpu/avx2.cc",
        ("int4_int8 avx2: ten fours in int16", "kFoursOfHalves = 8;", "kFoursOfHalves = 10;"),
        (
            "int4_int8 avx2: 8 * a_sum subtracted in every eight fours",
            ": load(acc + kAt);",
            ": _mm256_add_epi32(load(acc + kAt), _mm256_set1_epi32(zero * a_sum[r]));",
        ),
        tests="tests/ops/test_gemm_int4_int8.py tests/ops/test_gemm_int4_int8_exact.py",
    ),
    *plant(
        "csrc/ops/gemm_int4_int8/cpu/avx512_vnni.cc",
        (
            "int4_int8 avx512: a group begins in every block",
            "if (piece.begins) { unroll",
            "if (piece.begins || i == 0) { unroll",
        ),
        tests="tests/ops/test_gemm_int4_int8.py tests/ops/test_gemm_int4_int8_exact.py",
    ),
    *plant(
        "csrc/ops/gemm_int4_int8/cpu/body.h",
        ("int4_int8: a ragged last group never ends", "+ 1) * group, k), stop", "+ 1) * group, k + 1), stop"),
        (
            "int4_int8: the last group's zero points of a whole one",
            "zero * static_cast<int32_t>(count)",
            "zero * static_cast<int32_t>(group)",
        ),
        (
            "int4_int8: k chunks of two",
            "each = chunk_k(p.problem.group)",
            "each = 2 * chunk_k(p.problem.group)",
        ),
        (
            "int4_int8: a k chunk does not start from 0",
            "std::fill_n(k_chunk, rows * kTileN, kNoSum);",
            "if (first == 0) std::fill_n(k_chunk, rows * kTileN, kNoSum);",
        ),
        ("int4_int8: rows scaled by those of the block before", "p.a_scale[m0 + r]", "p.a_scale[r]"),
        ("int4_int8: sums of the panel's first row", "piece.group * kTileM + r]", "piece.group * kTileM]"),
        (
            "int4_int8: zero points of the group before",
            "columns(p.w_zero_point, g,",
            "columns(p.w_zero_point, std::max<int64_t>(g - 1, 0),",
        ),
        ("int4_int8: scales of any stride read in place", "from.stride == 1 && count", "count"),
        (
            "int4_int8: sums of codes go on into the next group",
            "if (piece.begins) std::fill_n(shared.q_sum",
            "if (piece.begins && piece.group == 0) std::fill_n(shared.q_sum",
        ),
        (
            "int4_int8 amx: signed codes with given zero points",
            "Tile::kTakesSigned && scaling == Scaling::kSymmetric",
            "Tile::kTakesSigned",
        ),
        (
            "perm: a place without a feature is 0, not the zero point",
            "perm[i] < 0 ? zero :",
            "perm[i] < 0 ? int8_t{0} :",
            "tests/ops/test_act_order.py tests/ops/test_errors.py",
        ),
        (
            "perm: a block gathers the first one's features",
            "p.perm.data + k0,",
            "p.perm.data,",
            "tests/ops/test_act_order.py tests/ops/test_errors.py",
        ),
        (
            "perm: every block begins its groups",
            "if (first == g * group) sum = 0;",
            "if (first == k0) sum = 0;",
            "tests/ops/test_act_order.py tests/ops/test_errors.py",
        ),
        (
            "perm: blocks packed over each other",
            "panel.packed + k0 * Tile::packed_rows(panel.rows)",
            "panel.packed",
            "tests/ops/test_act_order.py tests/ops/test_errors.py",
        ),
        (
            "int4_int8: a k chunk starts at 0",
            "std::fill_n(k_chunk, rows * kTileN, kNoSum);",
            "std::fill_n(k_chunk, rows * kTileN, 0.0f);",
            "tests/ops/test_zeros.py -k gemm_int4_int8 and not emulator",
        ),
        tests="tests/ops/test_gemm_int4_int8.py tests/ops/test_gemm_int4_int8_exact.py",
    ),
    *plant(
        "csrc/ops/gemm_int4_int8/cpu/scale512.h",
        (
            "int4_int8 avx512: zero points subtracted with two roundings",
            "x = _mm512_fnmadd_ps(_mm512_loadu_ps(zero_point), _mm512_set1_ps(static_cast<float>(a_sum)), x);",
            "x = _mm512_sub_ps(x, _mm512_mul_ps(_mm512_loadu_ps(zero_point), _mm512_set1_ps(static_cast<float>(a_sum))));",
        ),
        tests="tests/ops/test_gemm_int4_int8.py -k avx512_vnni",
    ),
    *plant(
        "csrc/ops/gemm_int4_int8/cpu/step.h",
        (
            "int4_int8: zero points lost where sums are corrected",
            "std::fma(-zero_point[j],",
            "std::fma(-8.0f,",
        ),
        (
            "int4_int8: a difference of the other sign",
            "static_cast<float>(sum - kSymmetricZeroPoint * a_sum)",
            "-static_cast<float>(kSymmetricZeroPoint * a_sum - sum)",
            "tests/ops/test_zeros.py -k gemm_int4_int8 and not emulator",
        ),
        tests="tests/ops/test_gemm_int4_int8.py tests/ops/test_gemm_int4_int8_exact.py",
    ),
    *plant(
        "csrc/ops/gemm_int4_int8/run.cc",
        (
            "int4_int8: rows quantised, all scaled as the first",
            "params.a_scale = {quantize.scale, 1};",
            "params.a_scale = {quantize.scale, 0};",
        ),
        (
            "perm: rows quantised, k apart",
            "params.a_stride = quantize.k;",
            "params.a_stride = p.k;",
            "tests/ops/test_act_order.py tests/ops/test_errors.py",
        ),
        tests="tests/ops/test_gemm_int4_int8.py tests/ops/test_gemm_int4_int8_exact.py",
    ),
    *plant(
        "csrc/gemm/cuda/group_end.cuh",
        ("int4_int8 cuda: rows q and q + 8 swapped", "a[1] = first >> 4 & kLow;", "a[1] = first & kLow;"),
        (
            "int4_int8 cuda: padding past k belongs to no group",
            "group + 1 == groups ? slices",
            "group + 1 == groups ? slices + 1",
        ),
        ("int4_int8 cuda, groups: scales of the step's first group", "++index; ++row;", "++index;"),
        (
            "int4_int8 cuda, groups: sums of codes go on",
            "for (int i = 0; i < kTiles; ++i) codes[i][0] = codes[i][1] = 0;",
            "for (int i = 0; i < kTiles; ++i) codes[i][0] = 0;",
        ),
        ("int4_int8 cuda, groups: codes of one lane of four", "step < 4; step *= 2", "step < 2; step *= 2"),
        (
            "int4_int8 cuda, groups: activations of the first group",
            "(first + t / kRowChunks) *",
            "(t / kRowChunks) *",
        ),
        (
            "int4_int8 cuda, groups: the last four tokens lost",
            "left > 4 ? 4 :",
            "left >= 4 ? 4 : left > 0 ? 0 :",
        ),
        (
            "int4_int8 cuda: parts of a group in the partial sums of k chunks",
            "keeps_integers ? split.steps : static_cast<int>(",
            "static_cast<int>(",
        ),
        (
            "int4_int8 cuda, groups: parts of a group keep the tokens' zero points",
            "if (args.p.a_zero_point.is_given()) correct(at, zero); for_sums(",
            "for_sums(",
        ),
        (
            "int4_int8 cuda: zero points of the first tokens",
            "const int64_t i = m0 + t;",
            "const int64_t i = t;",
        ),
        tests="tests/ops/test_gemm_int4_int8_cuda.py",
    ),
    *plant(
        "csrc/gemm/cuda/int4_int8.h",
        (
            "int4_int8 cuda, plan: partial sums of a split of one group",
            "return is_one_group(p) ? split.count :",
            "return is_one_group(p) ? split.count - 1 :",
        ),
        tests="tests/ops/test_gemm_int4_int8_cuda.py",
    ),
    *plant(
        "csrc/gemm/cuda/pack_activations.cuh",
        ("int4_int8 cuda, pack_activations: k in its own order", "int4::s8_k(at)", "at"),
        (
            "int4_int8 cuda, pack_activations: a place without a feature is 0, not the zero point",
            "encoder(run.value[e]) : zero",
            "encoder(run.value[e]) : 0",
        ),
        ("int4_int8 cuda, pack_activations: sums with the zero point", "sum += code - zero;", "sum += code;"),
        (
            "int4_int8 cuda, pack_activations: a warp's part of a long group",
            "w < args.team / dev::kWarpLanes",
            "w < 1",
        ),
        (
            "int4_int8 cuda, pack_activations: parts overwritten while they are read",
            "dev::block_sync();  // all threads have read the parts",
            "{}",
        ),
        (
            "int4_int8 cuda, pack_activations: the next row's extremes while they are read",
            "if (i + stride < args.m) dev::block_sync();",
            "",
        ),
        (
            "int4_int8 cuda, pack_activations: one feature too many",
            "feature >= args.perm.features",
            "feature > args.perm.features",
        ),
        (
            "int4_int8 cuda, pack_activations: an index out of range counts as no feature",
            "is_wrong |= feature != -1;",
            "",
        ),
        (
            "int4_int8 cuda, pack_activations: rows in int32",
            "args.a + i * args.a_stride",
            "args.a + static_cast<int32_t>(i * args.a_stride)",
            "tests/ops/test_large.py -k gemm_int4_int8 and emulator",
        ),
        tests="tests/ops/test_gemm_int4_int8_cuda.py",
    ),
    *plant(
        "csrc/gemm/cuda/int4_int8_reduce.cuh",
        (
            "int4_int8 cuda, reduce: the first column's scale",
            "e < columns.left ? j + e : j;",
            "j;",
            "tests/ops/test_gemm_int4_int8_cuda.py",
        ),
        (
            "reduce, int4_int8: gate of one group dropped",
            "store_row(p, y, i, columns);",
            "CudaParams less = p; less.gate = {}; store_row(less, y, i, columns);",
        ),
        (
            "reduce, int4_int8: activation of one group dropped",
            "store_row(p, y, i, columns);",
            "CudaParams less = p; less.activation = Activation::kNone; store_row(less, y, i, columns);",
        ),
        (
            "reduce, int4_int8: columns of scales in int32",
            "const int64_t at = j * of.stride;",
            "const auto at = static_cast<int32_t>(j * of.stride);",
            "tests/ops/test_large.py -k gemm_int4_int8 and reduction",
        ),
        (
            "reduce, int4_int8: one group starts at 0",
            "kNoSum);",
            "0.0f);",
            "tests/ops/test_zeros.py -k gemm_int4_int8 and emulator",
        ),
        (
            "reduce, int4_int8: gate dropped",
            "if (!is_one_group(p.problem)) return reduce_columns<TokenScaler, float, float>(p,",
            "CudaParams less = p; less.gate = {}; if (!is_one_group(p.problem)) return reduce_columns<TokenScaler, float, float>(less,",
        ),
        tests="tests/ops/test_split_k.py -k gemm_int4_int8",
    ),
    *plant(
        "csrc/ops/gemm_int4_int8/cuda/run.cc",
        (
            "int4_int8 cuda, plan: sums of k chunks over the activations",
            "bytes + PackedActivations::bytes(p), &launch_reduce",
            "bytes, &launch_reduce",
        ),
        tests="tests/ops/test_gemm_int4_int8_cuda.py",
    ),
    *plant(
        "csrc/ops/gemm_int4_int8/cuda/sm80.cuh",
        (
            "int4_int8 cuda: a group goes on after an end within the tile",
            "slice == 0 && end >= kSlices",
            "end - slice >= kSlices",
        ),
        (
            "int4_int8 cuda: half a product has the next group's codes",
            "is_pair ? codes[i].x[word + 1] : 0,",
            "codes[i].x[word + 1],",
        ),
        (
            "int4_int8 cuda: halves of k swapped",
            "dev::lane() / 8 % 2 : 0), b",
            "1 - dev::lane() / 8 % 2 : 0), b",
        ),
        tests="tests/ops/test_gemm_int4_int8_cuda.py",
    ),
    *plant(
        "csrc/ops/gemm_int4_int8/cuda/sm90a.cuh",
        (
            "int4_int8 sm90a: weights overwritten a product too early",
            "dev::wgmma_wait<kProducts - 1>();",
            "dev::wgmma_wait<kProducts>();",
        ),
        ("int4_int8 sm90a: no fence between codes and product", "dev::wgmma_fence();", ""),
        (
            "int4_int8 sm90a: codes overwritten under a product",
            "group, own); dev::wgmma_wait<0>();",
            "group, own);",
        ),
        (
            "int4_int8 sm90a: the second half of a product as the first",
            "is_second ? 0 : codes.x[0], is_second ? codes.x[0]",
            "codes.x[0], is_second ? 0",
        ),
        (
            "int4_int8 sm90a: half a product has the next group's codes",
            "is_whole ? codes.x[1] : 0,",
            "codes.x[1],",
        ),
        ("int4_int8 sm90a: groups that end within a product", "end >= s + 2;", "end >= s + 1;"),
        ("int4_int8 sm90a: the first half of a tile twice", "tokens, h * 32)", "tokens, h / 2 * 32)"),
        ("int4_int8 sm90a: tiles of the next split", "&& s + t < tile.steps;", ";"),
        ("int4_int8 sm90a: sums go on into the next group", "!group.is_new);", "true);"),
        ("int4_int8 sm90a: only the last product of a group", "group.is_new = false;", ""),
        tests="tests/ops/test_gemm_int4_int8_cuda.py",
    ),
    *plant(
        "csrc/gemm/cuda/int4_int8_sm80.cuh",
        (
            "int4_int8 cuda: a k chunk starts at 0",
            "end_k_chunk.clear(empty_sum(args.p.problem.k));",
            "end_k_chunk.clear(0.0f);",
            "tests/ops/test_zeros.py -k gemm_int4_int8 and emulator",
        ),
        tests="tests/ops/test_gemm_int4_int8_cuda.py",
    ),
    *plant(
        "csrc/gemm/cuda/int4_int8_sm90a.cuh",
        (
            "int4_int8 sm90a: a group ends before its products do",
            "dev::wgmma_wait<0>(); fence_sums(group); group.end",
            "group.end",
        ),
        (
            "int4_int8 sm90a: integers kept before products end",
            "dev::wgmma_wait<0>(); fence_sums(group); if",
            "if",
        ),
        ("int4_int8 sm90a: a stage goes on counting rows of groups", "group.row = 0;", ""),
        (
            "int4_int8 sm90a: the last stage is never released",
            "if (tile.steps > 0) Pipe::release(before);",
            "",
        ),
        (
            "int4_int8 sm90a: a stage is released while its products are in flight",
            "if (s > 0) Pipe::release(before);",
            "Pipe::release(cursor.stage);",
        ),
        (
            "int4_int8 sm90a: zero points of the first tokens",
            "(args.p, tile.m0, dev::lane(),",
            "(args.p, 0, dev::lane(),",
        ),
        ("int4_int8 sm90a: groups of the split's first", "group += count;", ""),
        tests="tests/ops/test_gemm_int4_int8_cuda.py",
    ),
)
