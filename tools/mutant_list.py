"""The bugs that tools/mutants.py plants. Add some with every kernel.

Those of CUDA kernels and of the epilogue have files of their own.
"""

from __future__ import annotations

from tools.mutant import Mutant
from tools.mutants_cuda import CUDA_MUTANTS
from tools.mutants_epilogue import EPILOGUE_MUTANTS
from tools.mutants_groups import GROUP_MUTANTS
from tools.mutants_host import HOST_MUTANTS
from tools.mutants_int4 import INT4_MUTANTS
from tools.mutants_int4_cuda import INT4_CUDA_MUTANTS
from tools.mutants_int4_sm90a import INT4_SM90A_MUTANTS
from tools.mutants_operands import OPERAND_MUTANTS

GEMM = "csrc/ops/gemm_int8"
QUANTIZE = "csrc/ops/quantize_int8/cpu/body.h"
MATHS = "csrc/quant/int8.h"

INT4 = ("tests/ops/test_pack_int4.py",)

MUTANTS = (
    *CUDA_MUTANTS,
    *EPILOGUE_MUTANTS,
    *GROUP_MUTANTS,
    *HOST_MUTANTS,
    *INT4_MUTANTS,
    *INT4_CUDA_MUTANTS,
    *INT4_SM90A_MUTANTS,
    *OPERAND_MUTANTS,
    # Packers and layout
    Mutant(
        "pack: last k tile missing",
        f"{GEMM}/pack.cc",
        "begin < k; begin += kTileK",
        "begin + kTileK <= k; begin += kTileK",
    ),
    Mutant(
        "pack: last group one byte short",
        f"{GEMM}/pack.cc",
        "std::memcpy(out, in + p, static_cast<size_t>(count));",
        "std::memcpy(out, in + p, static_cast<size_t>(count - (count < kGroupK)));",
    ),
    Mutant(
        "pack: column sums of the last tile only",
        f"{GEMM}/pack.cc",
        "* n + row] += sum;",
        "* n + row] = sum;",
    ),
    Mutant(
        "pack int4: the tile before is not cleared",
        "csrc/ops/gemm_int4/pack.cc",
        "std::fill_n(tile, kTileBytes, uint8_t{0});",
        "",
        INT4,
    ),
    Mutant(
        "pack int4: a later wrong row is named",
        "csrc/ops/gemm_int4/pack.cc",
        "part.row + i < before &&",
        "part.row + i != before &&",
        INT4,
    ),
    Mutant(
        "pack int4: row stride ignored",
        "csrc/ops/gemm_int4/pack.cc",
        "(part.row + i) * stride",
        "(part.row + i) * k",
        INT4,
    ),
    Mutant(
        "int4_rows: halves swapped", "csrc/layout/int4.h", "k / 4 % 2 * 4}", "(1 - k / 4 % 2) * 4}", INT4
    ),
    Mutant(
        "int4_tile: rows swapped",
        "csrc/layout/int4.h",
        "code = row_of(n) / 8 +",
        "code = 1 - row_of(n) / 8 +",
        INT4,
    ),
    Mutant(
        "pack: column 3 of a tile is column 2",
        f"{GEMM}/pack.cc",
        "const int8_t* const in = w + row * stride;",
        "const int8_t* const in = w + (row % 16 == 3 ? row - 1 : row) * stride;",
    ),
    Mutant(
        "pack: row stride ignored",
        f"{GEMM}/pack.cc",
        "const int8_t* const in = w + row * stride;",
        "const int8_t* const in = w + row * k;",
    ),
    # Loop nest
    Mutant(
        "gemm: row stride of a ignored",
        f"{GEMM}/cpu/body.h",
        "pack(p.a + (m0 + panel.row) * p.a_stride, panel);",
        "pack(p.a + (m0 + panel.row) * p.problem.k, panel);",
    ),
    Mutant(
        "gemm: last k tile missing",
        f"{GEMM}/cpu/body.h",
        "count = std::min(step, tiles_k - k0);",
        "count = std::min(step, tiles_k - k0) - (k0 > 0);",
    ),
    Mutant(
        "gemm: second block of k overwrites the first",
        f"{GEMM}/cpu/body.h",
        "k0 % kChunkTilesK != 0",
        "false",
    ),
    Mutant(
        "gemm: sums beyond int32 forget earlier chunks",
        f"{GEMM}/cpu/body.h",
        "(first ? 0 : wide_acc[i]) + acc[i]",
        "acc[i]",
    ),
    Mutant(
        "gemm: sums stay in int32 for any k",
        f"{GEMM}/gemm_int8.h",
        "kMaxExactK = 65536",
        "kMaxExactK = 1 << 20",
    ),
    Mutant(
        "gemm: scale of the panel's first row",
        f"{GEMM}/cpu/out.h",
        "const float a_scale = p.a_scale[i];",
        "const float a_scale = p.a_scale[i / 4 * 4];",
    ),
    Mutant(
        "gemm: scales of the first columns",
        f"{GEMM}/cpu/body.h",
        "c.scale[j] = p.w_scale[n0 + j];",
        "c.scale[j] = p.w_scale[j];",
    ),
    Mutant(
        "gemm: zero point of the panel's first row",
        f"{GEMM}/cpu/out.h",
        "p.a_zero_point[i]",
        "p.a_zero_point[i / 4 * 4]",
    ),
    Mutant(
        "gemm: bias of the last column dropped",
        f"{GEMM}/cpu/out.h",
        "j < count; ++j) c.bias[j] = to_f32",
        "j < count - 1; ++j) c.bias[j] = to_f32",
    ),
    Mutant(
        "plan: a task loses its last row",
        f"{GEMM}/blocking.cc",
        "std::min(m_begin + block_m, m)",
        "std::min(m_begin + block_m - (m_begin > 0), m)",
    ),
    Mutant(
        "gemm: sums of a strip's second tile over the first's",
        f"{GEMM}/cpu/body.h",
        "panel.row * Tile::kTileN + tile * int8_tile::kTileN",
        "panel.row * Tile::kTileN",
    ),
    Mutant(
        "tasks: the last of a range is not taken",
        "csrc/base/work_stealing.h",
        "if (begin == end) return -1;",
        "if (begin + 1 >= end) return -1;",
    ),
    # Epilogue and value types
    Mutant(
        "epilogue: sign of the zero point",
        f"{GEMM}/epilogue.h",
        "static_cast<uint32_t>(acc) -",
        "static_cast<uint32_t>(acc) +",
    ),
    Mutant(
        "epilogue: zero point forgotten beyond int32",
        f"{GEMM}/epilogue.h",
        "acc - static_cast<int64_t>(zero_point)",
        "acc - 0 * static_cast<int64_t>(zero_point)",
    ),
    Mutant(
        "epilogue: scales multiplied with each other first",
        f"{GEMM}/epilogue.h",
        "static_cast<float>(acc) * a_scale * w_scale",
        "static_cast<float>(acc) * (a_scale * w_scale)",
    ),
    Mutant(
        "epilogue: bias rounded to bf16",
        f"{GEMM}/epilogue.h",
        "* w_scale + bias",
        "* w_scale + to_f32(from_f32<BF16>(bias))",
    ),
    Mutant(
        "bf16: truncated instead of rounded",
        "csrc/base/numeric.h",
        "(bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16",
        "bits >> 16",
    ),
    Mutant(
        "f16: overflow wraps",
        "csrc/base/numeric.h",
        "magnitude >= 0x47800000u ? overflow",
        "magnitude > 0x7f800000u ? overflow",
    ),
    Mutant(
        "f16: subnormals flushed",
        "csrc/base/numeric.h",
        "(magnitude < 0x0400u ? subnormal : normal)",
        "(magnitude < 0x0400u ? subnormal & 0u : normal)",
    ),
    # One ISA
    Mutant(
        "avx2: one row reads its second tile's weights twice",
        f"{GEMM}/cpu/avx2.cc",
        "product(weights + v / 2 * w_stride + v % 2 * 32, row)",
        "product(weights + (v / 2 == 2 ? 1 : v / 2) * w_stride + v % 2 * 32, row)",
    ),
    Mutant(
        "generic: fourth weight of a group", f"{GEMM}/cpu/generic.cc", "a[3] * column[3]", "a[3] * column[2]"
    ),
    Mutant(
        "avx2: unsafe pairs go unnoticed, so products saturate",
        f"{GEMM}/cpu/avx2.cc",
        "limit = _mm256_set1_epi16(128)",
        "limit = _mm256_set1_epi16(140)",
    ),
    Mutant(
        "avx2: negative pairs go unnoticed",
        f"{GEMM}/cpu/avx2.cc",
        "_mm256_cmpgt_epi16(_mm256_max_epi16(above, below), limit)",
        "_mm256_cmpgt_epi16(above, limit)",
    ),
    Mutant(
        "avx2: half of the rests dropped",
        f"{GEMM}/cpu/avx2.cc",
        "->rests;",
        "->rests / 2;",
    ),
    Mutant(
        "avx2: offset of the weights 127",
        f"{GEMM}/cpu/avx2.cc",
        "_mm256_set1_epi32(128 * row_sum[i])",
        "_mm256_set1_epi32(127 * row_sum[i])",
    ),
    Mutant("avx2: columns in the order of vphaddd", f"{GEMM}/cpu/avx2.cc", "0xd8", "0xe4"),
    Mutant(
        "avx512: saturating products",
        f"{GEMM}/cpu/avx512_vnni.cc",
        "_mm512_dpbusd_epi32(sum[i][t], row, weight[t])",
        "_mm512_add_epi32(sum[i][t], _mm512_madd_epi16("
        "_mm512_maddubs_epi16(row, weight[t]), _mm512_set1_epi16(1)))",
    ),
    Mutant("avx512: offset 127", f"{GEMM}/cpu/avx512_vnni.cc", "kOffset = 128", "kOffset = 127"),
    Mutant(
        "amx: second row tile added to the first's sums",
        f"{GEMM}/cpu/amx_product.h",
        "amx_multiply_s8<r * kColumnTiles + c,",
        "amx_multiply_s8<c,",
    ),
    Mutant(
        "amx: fourth column tile multiplies the third's weights",
        f"{GEMM}/cpu/amx_product.h",
        "amx_load<kWeights>(w + c * w_stride, kAmxRowBytes)",
        "amx_load<kWeights>(w + (c - (c == 3)) * w_stride, kAmxRowBytes)",
    ),
    Mutant(
        "amx: last byte of a ragged k missing",
        f"{GEMM}/cpu/amx_product.h",
        "a + r * a_stride + p, static_cast<size_t>(k - p))",
        "a + r * a_stride + p, static_cast<size_t>(k - p - 1))",
    ),
    # Quantiser
    Mutant(
        "quantize: truncates",
        MATHS,
        "std::bit_cast<int32_t>(x * inverse_ + kRound)",
        "static_cast<int32_t>(x * inverse_) + kZero",
    ),
    Mutant(
        "quantize: last value not searched",
        QUANTIZE,
        "j < k; ++j) { const int32_t key",
        "j < k - 1; ++j) { const int32_t key",
    ),
    Mutant("quantize: sign of the zero point", MATHS, "-128.0f - range.low", "-128.0f + range.low"),
    Mutant("quantize: clamps without the zero point", MATHS, "kZero + 127 - grid.zero_point", "kZero + 127"),
    Mutant("quantize: -128 when symmetric", MATHS, "(symmetric ? -127 : -128)", "-128"),
    Mutant(
        "quantize: NaN under a static scale",
        MATHS,
        "low != low || high != high",
        "low != low && high != high",
    ),
    Mutant(
        "quantize: Inf has a scale",
        MATHS,
        "!(low >= -FLT_MAX && high <= FLT_MAX)",
        "low != low || high != high",
    ),
    Mutant(
        "quantize: static scale of the first row",
        QUANTIZE,
        "p.static_scale[i], p.symmetric",
        "p.static_scale[0], p.symmetric",
    ),
    Mutant("quantize: rows of zeros get scale 0", MATHS, "/ 127.0f, FLT_MIN)", "/ 127.0f, 0.0f)"),
    Mutant("quantize: row stride ignored", QUANTIZE, "i * p.x_stride", "i * p.k"),
)
