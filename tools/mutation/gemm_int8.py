"""Bugs to plant in csrc/ops/gemm_int8."""

from __future__ import annotations

from tools.mutation.mutant import CAPPED, plant

MUTANTS = (
    *plant(
        "csrc/ops/gemm_int8/cpu/avx2.cc",
        (
            "avx2: one row reads its second tile's weights twice",
            "product(weights + v / 2 * w_stride + v % 2 * 32, row)",
            "product(weights + (v / 2 == 2 ? 1 : v / 2) * w_stride + v % 2 * 32, row)",
        ),
        (
            "avx2: unsafe pairs go unnoticed, so products saturate",
            "limit = _mm256_set1_epi16(128)",
            "limit = _mm256_set1_epi16(140)",
        ),
        (
            "avx2: negative pairs go unnoticed",
            "_mm256_cmpgt_epi16(_mm256_max_epi16(above, below), limit)",
            "_mm256_cmpgt_epi16(above, limit)",
        ),
        ("avx2: half of the rests dropped", "->rests;", "->rests / 2;"),
        (
            "avx2: offset of the weights 127",
            "_mm256_set1_epi32(128 * row_sum[i])",
            "_mm256_set1_epi32(127 * row_sum[i])",
        ),
        ("avx2: columns in the order of vphaddd", "0xd8", "0xe4"),
    ),
    *plant(
        "csrc/ops/gemm_int8/cpu/avx512_vnni.cc",
        (
            "avx512: saturating products",
            "_mm512_dpbusd_epi32(sum[i][t], row, weight[t])",
            "_mm512_add_epi32(sum[i][t], _mm512_madd_epi16(_mm512_maddubs_epi16(row, weight[t]), _mm512_set1_epi16(1)))",
        ),
        ("avx512: offset 127", "kOffset = 128", "kOffset = 127"),
    ),
    *plant(
        "csrc/gemm/cpu/int8_nest.h",
        ("groups: the last k chunk dropped", "|| g + 1 == p.problem.groups()", ""),
        ("groups: one k chunk", "begins = g % kChunkGroups == 0", "begins = g == 0"),
        ("groups: rows by the first scales", "a_scale = p.a_scale_of(g)", "a_scale = p.a_scale_of(0)"),
        ("groups: columns by the first scales", "w_scale = p.w_scale_of(g)", "w_scale = p.w_scale_of(0)"),
        ("groups: the first column sums", "p.w_sums[g * p.problem.n + n0 + j]", "p.w_sums[n0 + j]"),
        ("groups: packed together", "p.problem.is_grouped() ? kScaleGroup : std::max", "std::max"),
        (
            "gemm: row stride of a ignored",
            "pack(p.a + (m0 + panel.row) * p.a_stride, panel);",
            "pack(p.a + (m0 + panel.row) * p.problem.k, panel);",
            "",
        ),
        (
            "gemm: last k tile missing",
            "count = std::min(step, tiles_k - k0);",
            "count = std::min(step, tiles_k - k0) - (k0 > 0);",
            "",
        ),
        ("gemm: second block of k overwrites the first", "k0 % kChunkTilesK != 0", "false", ""),
        ("gemm: sums past int32 drop earlier chunks", "(first ? 0 : wide_acc[i]) + acc[i]", "acc[i]", ""),
        (
            "gemm: scales of the first columns",
            "c.scale[j] = p.w_scale[n0 + j];",
            "c.scale[j] = p.w_scale[j];",
            "",
        ),
        (
            "gemm: sums of a strip's second tile over the first's",
            "panel.row * Tile::kTileN + tile * int8_tile::kTileN",
            "panel.row * Tile::kTileN",
            "",
        ),
        tests="tests/ops/test_gemm_int8_groups.py",
    ),
    *plant(
        "csrc/ops/gemm_int8/cpu/generic.cc",
        ("generic: fourth weight of a group", "a[3] * column[3]", "a[3] * column[2]"),
    ),
    *plant(
        "csrc/gemm/int8_sums.h",
        ("gemm: sums stay in int32 for any k", "kMaxExactK = 65536", "kMaxExactK = 1 << 20"),
    ),
    *plant(
        "csrc/ops/gemm_int8/pack.cc",
        (
            "pack: sums of two groups",
            "begin / group_k * n",
            "begin / (2 * group_k) * n",
            "tests/ops/test_gemm_int8_groups.py",
        ),
        ("pack: last k tile missing", "begin < k; begin += kTileK", "begin + kTileK <= k; begin += kTileK"),
        (
            "pack: last group one byte short",
            "std::memcpy(out, in + p, static_cast<size_t>(count));",
            "std::memcpy(out, in + p, static_cast<size_t>(count - (count < kGroupK)));",
        ),
        ("pack: column sums of the last tile only", "* n + row] += sum;", "* n + row] = sum;"),
        (
            "pack: column 3 of a tile is column 2",
            "const int8_t* const in = w + row * stride;",
            "const int8_t* const in = w + (row % 16 == 3 ? row - 1 : row) * stride;",
        ),
        (
            "pack: row stride ignored",
            "const int8_t* const in = w + row * stride;",
            "const int8_t* const in = w + row * k;",
        ),
    ),
    *plant(
        "csrc/ops/gemm_int8/quantized.cc",
        (
            "quantized: the last byte of a row is not searched",
            "static_cast<uint8_t>(kLost), bytes)",
            "static_cast<uint8_t>(kLost), bytes - 1)",
        ),
        tests="tests/ops/test_gemm_int8_epilogue.py -k not emulator and quantized",
    ),
    *plant(
        "csrc/ops/gemm_int8/cuda/mark_nan_rows.cu",
        (
            "mark_nan_rows: results of the next row overwrite those being read",
            "dev::block_sync();  // all threads have read the warps' results",
            "{}",
            CAPPED,
        ),
        (
            "mark_nan_rows: bytes behind the last word not searched",
            "j = in_words + dev::thread_index()",
            "j = (in_words > 0 ? n : 0) + dev::thread_index()",
        ),
        ("mark_nan_rows: words searched for 127", "bytes ^ 0x01010101u", "~bytes ^ 0x01010101u"),
        tests="tests/ops/test_gemm_int8_epilogue.py -k emulator and quantized",
    ),
    *plant(
        "csrc/ops/gemm_int8/cuda/reduce.cu",
        (
            "reduce, gemm_int8: gate dropped",
            "return Reduce<Params, Op>::launch(params,",
            "Params less = params; less.gate = {}; return Reduce<Params, Op>::launch(less,",
        ),
        tests="tests/ops/test_split_k.py -k gemm_int8",
    ),
    *plant(
        "csrc/ops/gemm_int8/cuda/run.cc",
        (
            "quantized cuda: no cap on the launch of mark_nan_rows",
            "launch_mark_nan_rows(p.quantize, plan.max_blocks(), stream)",
            "launch_mark_nan_rows(p.quantize, 1 << 30, stream)",
        ),
        tests="tests/ops/test_emulator.py -k cap",
    ),
    *plant(
        "csrc/ops/gemm_int8/cuda/sm80.cuh",
        ("sm80: halves of k swapped in b", "{b[0].x[j], b[1].x[j]}", "{b[1].x[j], b[0].x[j]}"),
        (
            "sm80: activations read without their swizzle",
            "Pipe::chunk_at(row, chunk));",
            "(row * Pipe::kRowChunks + chunk) * 16);",
        ),
        (
            "sm80: sums of warps stored over the ring in use",
            "dev::block_sync();  // all warps",
            "// all warps",
        ),
        (
            "sm80: sums of warps added before they are there",
            "dev::block_sync(); if (at.warp_k == 0)",
            "if (at.warp_k == 0)",
        ),
        (
            "sm80: columns of a lane in the order of its mmas",
            "[e % kMmasPerGroup][half * 2 + e / kMmasPerGroup]",
            "[e / 2][half * 2 + e % 2]",
        ),
        ("sm80: lower rows stored as upper", "half * 8 + lane / 4", "(1 - half) * 8 + lane / 4"),
        (
            "sm80 groups: scales of the step before",
            "Scales::load(args.p, step,",
            "Scales::load(args.p, step > 0 ? step - 1 : 0,",
            "tests/ops/test_gemm_int8_groups.py",
        ),
    ),
    *plant(
        "csrc/ops/gemm_int8/cuda/sm80_groups.cuh",
        ("sm80 groups: sums go on into the next group", "sum = 0;", ""),
        ("sm80 groups: neighbours' scales", "w_scale.value[e]", "w_scale.value[e ^ 1]"),
        ("sm80 groups: upper rows' zero points", "zero_point[r][half],", "zero_point[r][0],"),
        (
            "sm80 groups: scales of columns past n",
            "const int bytes = n0 + t < p.problem.n ? 4 : 0; const int64_t j = bytes > 0 ? n0 + t : 0;",
            "const int bytes = 4; const int64_t j = n0 + t;",
            "tests/ops/test_gemm_int8_groups.py -k sm80 and emulator",
        ),
        tests="tests/ops/test_gemm_int8_groups.py",
    ),
    *plant(
        "csrc/ops/gemm_int8/cuda/sm90a.cuh",
        (
            "sm90a: a stage is used before its copies have landed",
            "dev::mbarrier_wait(&barriers().full[cursor.stage], cursor.parity);",
            "",
        ),
        (
            "sm90a: a stage is filled while it is in use",
            "dev::mbarrier_wait(&bars.empty[cursor.stage], cursor.parity ^ 1);",
            "",
        ),
        (
            "sm90a: a stage is released while its products are in flight",
            "if (s > 0) release(before);",
            "release(cursor.stage);",
        ),
        (
            "sm90a: weights overwritten a product too early",
            "dev::wgmma_wait<kProducts - 1>();",
            "dev::wgmma_wait<kProducts>();",
        ),
        ("sm90a: the last stage of a tile is never released", "if (tile.steps > 0) release(before);", ""),
        ("sm90a: weights overwritten under a product", "dev::wgmma_wait<kProducts - 1>();", ""),
        ("sm90a: no fence between weights and product", "dev::wgmma_fence();", ""),
        ("sm90a: sums stored before they are done", "dev::wgmma_wait<0>();", ""),
        (
            "sm90a: weights read without their swizzle",
            "swizzled(Swizzle::k128, at)",
            "swizzled(Swizzle::k64, at)",
        ),
        (
            "sm90a: tokens described with another swizzle",
            "kSwizzleGroupBytes, Swizzle::k128)",
            "kSwizzleGroupBytes, Swizzle::k64)",
        ),
        (
            "sm90a: the second product of a step starts at the first's k",
            "static_cast<uint32_t>(h * kWgmmaK)",
            "static_cast<uint32_t>(h / 2 * 2 * kWgmmaK)",
        ),
        (
            "sm90a: eight rows of tokens too close",
            "kSwizzleGroupBytes = 8 * kStepK",
            "kSwizzleGroupBytes = 4 * kStepK",
        ),
        (
            "sm90a: features of a lane in the order of q",
            "return (q & 1) | (q & 2) << 1 | (q & 4) >> 1;",
            "return q;",
        ),
        (
            "sm90a: a block leaves while others still write to it",
            "if constexpr (kCluster > 1) sync_cluster<kCluster>();",
            "",
        ),
        (
            "sm90a: bytes of the tokens not expected",
            "dev::mbarrier_arrive_expect_tx(full, kStageBytes);",
            "dev::mbarrier_arrive_expect_tx(full, kBytesW);",
        ),
        ("sm90a: barriers not made known to copies", "dev::fence_mbarrier_init();", ""),
    ),
    *plant(
        "csrc/ops/gemm_int8/cuda/sm90a_groups.cuh",
        (
            "sm90a groups: scales into a stage in use",
            "dev::mbarrier_wait(&Kernel::barriers().empty[cursor.stage], cursor.parity ^ 1);",
            "",
        ),
        (
            "sm90a groups: a lane arrives before the others' scales",
            "dev::warp_sync();  // one lane arrives for the stores",
            "// one lane arrives for the stores",
        ),
        (
            "sm90a groups: a stage released before its scales are read",
            "dev::wgmma_wait<0>();",
            "dev::wgmma_wait<0>(); Kernel::release(cursor.stage);",
        ),
        ("sm90a groups: sums go on into the next group", "h > 0);", "true);"),
        ("sm90a groups: sums read under a product", "dev::wgmma_wait<0>();", "dev::wgmma_wait<1>();"),
        ("sm90a groups: even tokens' zero points", "zero_point.x[i % 2]", "zero_point.x[0]"),
        (
            "sm90a groups: features in the order of q",
            "2 * Kernel::lane_pair(dev::lane() / 4)",
            "2 * (dev::lane() / 4)",
        ),
        tests="tests/ops/test_gemm_int8_groups.py",
    ),
)
