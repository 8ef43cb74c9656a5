"""The bugs that tools/mutants.py plants in the products of packed int4 weights."""

from __future__ import annotations

from dataclasses import replace

from tools.mutant import Mutant

W4A16 = "csrc/ops/gemm_int4"
W4A8 = "csrc/ops/gemm_int4_int8"
GEMM = "csrc/ops/gemm_int8"
BODY = f"{W4A8}/cpu/body.h"
STEP = f"{W4A8}/cpu/step.h"
W4A16_BODY = f"{W4A16}/cpu/body.h"
COLUMNS = "csrc/quant/group_columns.h"
PACK = "csrc/ops/gemm_int4/pack.cc"
BINDING = "csrc/torch/gemm_int4_int8.cc"

_MUTANTS = (
    Mutant(
        "int4_int8: a ragged last group never ends",
        BODY,
        "+ 1) * group, k), stop",
        "+ 1) * group, k + 1), stop",
    ),
    Mutant(
        "int4_int8: the last group's zero points of a whole one",
        BODY,
        "zero * static_cast<int32_t>(count)",
        "zero * static_cast<int32_t>(group)",
    ),
    Mutant(
        "int4_int8: k_chunks of two",
        BODY,
        "each = chunk_k(p.problem.group)",
        "each = 2 * chunk_k(p.problem.group)",
    ),
    Mutant(
        "int4_int8: a k_chunk does not start from nothing",
        BODY,
        "std::fill_n(k_chunk, rows * kTileN, gemm_int8::kNoSum);",
        "if (first == 0) std::fill_n(k_chunk, rows * kTileN, gemm_int8::kNoSum);",
    ),
    Mutant("int4_int8: rows scaled by those of the block before", BODY, "p.a_scale[m0 + r]", "p.a_scale[r]"),
    Mutant(
        "int4_int8: sums of the panel's first row", BODY, "piece.group * kTileM + r]", "piece.group * kTileM]"
    ),
    Mutant(
        "int4_int8: zero points of the group before",
        BODY,
        "load_columns(p.w_zero_point, piece.group,",
        "load_columns(p.w_zero_point, std::max<int64_t>(piece.group - 1, 0),",
    ),
    Mutant("int4_int8: scales of any stride read in place", BODY, "p.w_scale.stride == 1 && count", "count"),
    Mutant(
        "int4_int8: sums of codes go on into the next group",
        BODY,
        "if (piece.begins) std::fill_n(shared.q_sum",
        "if (piece.begins && piece.group == 0) std::fill_n(shared.q_sum",
    ),
    Mutant("int4: column stride ignored", COLUMNS, "value(from[j * stride])", "value(from[j])"),
    Mutant("int4: every strip has the first columns", COLUMNS, "+ n0 * from.stride,", ","),
    Mutant(
        "int4_int8: zero points lost where sums are corrected",
        STEP,
        "std::fma(minus_zero[j],",
        "std::fma(-8.0f,",
    ),
    Mutant(
        "int4_int8: rows quantised, all scaled as the first",
        BINDING,
        "(quantized->scale.data_ptr()), 1}",
        "(quantized->scale.data_ptr()), 0}",
    ),
    Mutant(
        "int4_int8 avx2: ten fours in int16",
        f"{W4A8}/cpu/avx2.cc",
        "kFoursOfHalves = 8;",
        "kFoursOfHalves = 10;",
    ),
    Mutant(
        "int4_int8 avx2: -8 sums taken off in every eight",
        f"{W4A8}/cpu/avx2.cc",
        ": load(acc + kAt);",
        ": _mm256_add_epi32(load(acc + kAt), _mm256_set1_epi32(zero * a_sum[r]));",
    ),
    Mutant(
        "int4_int8 avx512: a group begins in every block",
        f"{W4A8}/cpu/avx512_vnni.cc",
        "if (piece.begins) { unroll",
        "if (piece.begins || i == 0) { unroll",
    ),
    Mutant(
        "int4_int8 amx: a group's second block forgets the first",
        f"{W4A8}/cpu/amx_int8.cc",
        "!piece.begins, gemm_int8",
        "false, gemm_int8",
    ),
    Mutant(
        "int4_int8 amx: the second half of a tile is the first",
        f"{GEMM}/cpu/amx_product.h",
        "p % kParts * kProductK;",
        "0 * kProductK;",
    ),
    Mutant(
        "int4_int8 amx: signed codes with given zero points",
        BODY,
        "Tile::kTakesSigned && scaling == Scaling::kSymmetric",
        "Tile::kTakesSigned",
    ),
)

_WEIGHT_ONLY = (
    Mutant(
        "int4: a k_chunk does not start from nothing",
        W4A16_BODY,
        "std::fill_n(k_chunk, rows * kTileN, gemm_int8::kNoSum);",
        "if (k0 == 0) std::fill_n(k_chunk, rows * kTileN, gemm_int8::kNoSum);",
    ),
    Mutant("int4: zero points unscaled", W4A16_BODY, "shared.minus_zero[j] *= shared.scale[j];", ";"),
    Mutant(
        "int4: weights of the strip's first tile",
        W4A16_BODY,
        "w + t * w_stride + k / kLineK",
        "w + k / kLineK",
    ),
    Mutant(
        "int4: a group goes on to the end of the block",
        W4A16_BODY,
        "std::min((at / group + 1) * group, k1);",
        "k1;",
    ),
    Mutant(
        "int4, few rows: lines with the scales of the first group",
        W4A16_BODY,
        "load_group(k0 / group, n0, kTileN);",
        "load_group(0, n0, kTileN);",
    ),
    Mutant(
        "int4, few rows: what follows the last whole line is lost",
        W4A16_BODY,
        "multiply_blocks(n0, count, rows, middle, k1);",
        "if (middle == k0) multiply_blocks(n0, count, rows, middle, k1);",
    ),
    Mutant(
        "int4 avx512, few rows: scales of the strip's first tile",
        "csrc/ops/gemm_int4/cpu/avx512_vnni.cc",
        "_mm512_load_ps(lines.scale + t * int4::kTileN)",
        "_mm512_load_ps(lines.scale)",
    ),
)

# Of perm.
_GATHERING = (
    Mutant(
        "perm: another feature",
        W4A16_BODY,
        "to_f32(a[r * stride + perm[i]])",
        "to_f32(a[r * stride + perm[i] / 2])",
    ),
    Mutant(
        "perm: what nothing claims keeps what memory held",
        W4A16_BODY,
        "if (p.perm.is_given()) std::fill_n(panel.packed, panel.rows * k, 0.0f);",
        "",
    ),
    Mutant(
        "perm: what nothing claims is 0, not the zero point",
        BODY,
        "perm[i] < 0 ? zero :",
        "perm[i] < 0 ? int8_t{0} :",
    ),
    Mutant("perm: a block gathers the first one's features", BODY, "p.perm.data + k0,", "p.perm.data,"),
    Mutant(
        "perm: every block begins its groups",
        BODY,
        "if (first == g * group) sum = 0;",
        "if (first == k0) sum = 0;",
    ),
    Mutant(
        "perm: blocks packed over each other",
        BODY,
        "panel.packed + k0 * Tile::packed_rows(panel.rows)",
        "panel.packed",
    ),
    Mutant("perm: rows quantised, k apart", BINDING, "params.a_stride = a.size(1);", "params.a_stride = k;"),
    Mutant("perm: a packed tile has the first one's features", PACK, "perm.data + part.first,", "perm.data,"),
    Mutant(
        "perm: a wrong code named by its place",
        PACK,
        "const int64_t p = feature(at);",
        "const int64_t p = at;",
    ),
    Mutant(
        "perm: one feature too many is allowed",
        "csrc/gemm/problem.cc",
        "static_cast<uint32_t>(feature) + 1 > most",
        "static_cast<uint32_t>(feature) + 1 > most + 1",
    ),
)

INT4_MUTANTS = (
    *(
        replace(mutant, tests=("tests/ops/test_gemm_int4_int8.py", "tests/ops/test_gemm_int4_int8_exact.py"))
        for mutant in _MUTANTS
    ),
    *(replace(mutant, tests=("tests/ops/test_gemm_int4.py",)) for mutant in _WEIGHT_ONLY),
    *(
        replace(mutant, tests=("tests/ops/test_act_order.py", "tests/ops/test_errors.py"))
        for mutant in _GATHERING
    ),
)
