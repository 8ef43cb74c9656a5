"""Planted bugs: gemm_int8_cpu."""

from __future__ import annotations

from tools.mutation.mutant import Mutant

GEMM_INT8_GROUPS = ("tests/ops/test_gemm_int8_groups.py",)

MUTANTS = (
    Mutant(
        "avx2: one row reads its second tile's weights twice",
        "csrc/ops/gemm_int8/cpu/avx2.cc",
        "product(weights + v / 2 * w_stride + v % 2 * 32, row)",
        "product(weights + (v / 2 == 2 ? 1 : v / 2) * w_stride + v % 2 * 32, row)",
    ),
    Mutant(
        "avx2: unsafe pairs go unnoticed, so products saturate",
        "csrc/ops/gemm_int8/cpu/avx2.cc",
        "limit = _mm256_set1_epi16(128)",
        "limit = _mm256_set1_epi16(140)",
    ),
    Mutant(
        "avx2: negative pairs go unnoticed",
        "csrc/ops/gemm_int8/cpu/avx2.cc",
        "_mm256_cmpgt_epi16(_mm256_max_epi16(above, below), limit)",
        "_mm256_cmpgt_epi16(above, limit)",
    ),
    Mutant("avx2: half of the rests dropped", "csrc/ops/gemm_int8/cpu/avx2.cc", "->rests;", "->rests / 2;"),
    Mutant(
        "avx2: offset of the weights 127",
        "csrc/ops/gemm_int8/cpu/avx2.cc",
        "_mm256_set1_epi32(128 * row_sum[i])",
        "_mm256_set1_epi32(127 * row_sum[i])",
    ),
    Mutant("avx2: columns in the order of vphaddd", "csrc/ops/gemm_int8/cpu/avx2.cc", "0xd8", "0xe4"),
    Mutant(
        "avx512: saturating products",
        "csrc/ops/gemm_int8/cpu/avx512_vnni.cc",
        "_mm512_dpbusd_epi32(sum[i][t], row, weight[t])",
        "_mm512_add_epi32(sum[i][t], _mm512_madd_epi16(_mm512_maddubs_epi16(row, weight[t]), _mm512_set1_epi16(1)))",
    ),
    Mutant("avx512: offset 127", "csrc/ops/gemm_int8/cpu/avx512_vnni.cc", "kOffset = 128", "kOffset = 127"),
    Mutant(
        "groups: the last k chunk dropped",
        "csrc/ops/gemm_int8/cpu/body.h",
        "|| g + 1 == p.problem.groups()",
        "",
        GEMM_INT8_GROUPS,
    ),
    Mutant(
        "groups: one k chunk",
        "csrc/ops/gemm_int8/cpu/body.h",
        "begins = g % kChunkGroups == 0",
        "begins = g == 0",
        GEMM_INT8_GROUPS,
    ),
    Mutant(
        "groups: rows by the first scales",
        "csrc/ops/gemm_int8/cpu/body.h",
        "a_scale = p.a_scale_of(g)",
        "a_scale = p.a_scale_of(0)",
        GEMM_INT8_GROUPS,
    ),
    Mutant(
        "groups: columns by the first scales",
        "csrc/ops/gemm_int8/cpu/body.h",
        "w_scale = p.w_scale_of(g)",
        "w_scale = p.w_scale_of(0)",
        GEMM_INT8_GROUPS,
    ),
    Mutant(
        "groups: the first column sums",
        "csrc/ops/gemm_int8/cpu/body.h",
        "p.w_sums[g * p.problem.n + n0 + j]",
        "p.w_sums[n0 + j]",
        GEMM_INT8_GROUPS,
    ),
    Mutant(
        "groups: packed together",
        "csrc/ops/gemm_int8/cpu/body.h",
        "p.problem.is_grouped() ? kScaleGroup : std::max",
        "std::max",
        GEMM_INT8_GROUPS,
    ),
    Mutant(
        "gemm: row stride of a ignored",
        "csrc/ops/gemm_int8/cpu/body.h",
        "pack(p.a + (m0 + panel.row) * p.a_stride, panel);",
        "pack(p.a + (m0 + panel.row) * p.problem.k, panel);",
    ),
    Mutant(
        "gemm: last k tile missing",
        "csrc/ops/gemm_int8/cpu/body.h",
        "count = std::min(step, tiles_k - k0);",
        "count = std::min(step, tiles_k - k0) - (k0 > 0);",
    ),
    Mutant(
        "gemm: second block of k overwrites the first",
        "csrc/ops/gemm_int8/cpu/body.h",
        "k0 % kChunkTilesK != 0",
        "false",
    ),
    Mutant(
        "gemm: sums past int32 drop earlier chunks",
        "csrc/ops/gemm_int8/cpu/body.h",
        "(first ? 0 : wide_acc[i]) + acc[i]",
        "acc[i]",
    ),
    Mutant(
        "gemm: scales of the first columns",
        "csrc/ops/gemm_int8/cpu/body.h",
        "c.scale[j] = p.w_scale[n0 + j];",
        "c.scale[j] = p.w_scale[j];",
    ),
    Mutant(
        "gemm: sums of a strip's second tile over the first's",
        "csrc/ops/gemm_int8/cpu/body.h",
        "panel.row * Tile::kTileN + tile * int8_tile::kTileN",
        "panel.row * Tile::kTileN",
    ),
    Mutant(
        "generic: fourth weight of a group",
        "csrc/ops/gemm_int8/cpu/generic.cc",
        "a[3] * column[3]",
        "a[3] * column[2]",
    ),
    Mutant(
        "gemm: sums stay in int32 for any k",
        "csrc/ops/gemm_int8/gemm_int8.h",
        "kMaxExactK = 65536",
        "kMaxExactK = 1 << 20",
    ),
    Mutant(
        "pack: sums of two groups",
        "csrc/ops/gemm_int8/pack.cc",
        "begin / group_k * n",
        "begin / (2 * group_k) * n",
        GEMM_INT8_GROUPS,
    ),
    Mutant(
        "pack: last k tile missing",
        "csrc/ops/gemm_int8/pack.cc",
        "begin < k; begin += kTileK",
        "begin + kTileK <= k; begin += kTileK",
    ),
    Mutant(
        "pack: last group one byte short",
        "csrc/ops/gemm_int8/pack.cc",
        "std::memcpy(out, in + p, static_cast<size_t>(count));",
        "std::memcpy(out, in + p, static_cast<size_t>(count - (count < kGroupK)));",
    ),
    Mutant(
        "pack: column sums of the last tile only",
        "csrc/ops/gemm_int8/pack.cc",
        "* n + row] += sum;",
        "* n + row] = sum;",
    ),
    Mutant(
        "pack: column 3 of a tile is column 2",
        "csrc/ops/gemm_int8/pack.cc",
        "const int8_t* const in = w + row * stride;",
        "const int8_t* const in = w + (row % 16 == 3 ? row - 1 : row) * stride;",
    ),
    Mutant(
        "pack: row stride ignored",
        "csrc/ops/gemm_int8/pack.cc",
        "const int8_t* const in = w + row * stride;",
        "const int8_t* const in = w + row * k;",
    ),
    Mutant(
        "quantized: the last byte of a row is not searched",
        "csrc/ops/gemm_int8/quantized.cc",
        "static_cast<uint8_t>(kLost), bytes)",
        "static_cast<uint8_t>(kLost), bytes - 1)",
        ("tests/ops/test_gemm_int8_epilogue.py", "-k", "not emulator and quantized"),
    ),
)
