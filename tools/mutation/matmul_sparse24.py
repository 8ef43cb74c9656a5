"""Bugs to plant in csrc/ops/matmul_sparse24."""

from __future__ import annotations

from tools.mutation.mutant import plant

INT8 = "tests/ops/test_matmul_sparse24_int8.py"
FLOAT = "tests/ops/test_matmul_sparse24.py"

MUTANTS = (
    *plant(
        "csrc/ops/matmul_sparse24/cpu/int8/avx2.cc",
        ("sparse24 avx2: the second group picks from the first", "0x04040000", "0x00040000"),
        ("sparse24 avx2: -128 keeps no rest", "_mm256_set1_epi8(-127)", "_mm256_set1_epi8(-128)"),
        (
            "sparse24 avx2: rests of the first row",
            "* kStepK, kRows * kStepK, w, 0, sum);",
            "* 0, kRows * kStepK, w, 0, sum);",
        ),
        (
            "sparse24 avx2: rests of tiles of one row only",
            "uint32_t rests = 0;\n    for (int64_t t = 0; t < tiles_k; ++t)",
            "uint32_t rests = 0;\n    for (int64_t t = 0; t < 1; ++t)",
        ),
        ("sparse24 avx2: signs lost", "_mm256_sign_epi8(row, values)", "row"),
        tests=INT8,
    ),
    *plant(
        "csrc/ops/matmul_sparse24/cpu/int4_int8/avx2.cc",
        (
            "sparse24 int4_int8 avx2: a value of later steps picks from the first group",
            "0x44440000",
            "0x04440000",
        ),
        (
            "sparse24 int4_int8 avx2: the weights of a group's last block alone",
            "if (!step.ends)",
            "if (step.ends)",
        ),
        (
            "sparse24 int4_int8 avx2: twice the offset of activations",
            "_mm256_slli_epi32(column_sum[v], 7)",
            "_mm256_slli_epi32(column_sum[v], 8)",
        ),
        tests=f"{FLOAT} -k int4_int8",
    ),
    *plant(
        "csrc/ops/matmul_sparse24/cpu/int8/avx512_vnni.cc",
        ("sparse24 avx512: indices of the step before", "2 * kStep)", "2 * (kStep > 2 ? 2 : kStep))"),
        ("sparse24 avx512: offset of the next column", "kOffset = 128", "kOffset = 127"),
        tests=INT8,
    ),
    *plant(
        "csrc/ops/matmul_sparse24/cpu/int8/amx_int8.cc",
        (
            "sparse24 amx: both groups take the first two values",
            "{controls(0), controls(2)}",
            "{controls(0), controls(0)}",
        ),
        ("sparse24 amx: the weights of the block before", "block.of == w &&", "block.of &&"),
        ("sparse24 amx: one column tile of each block", "to = block.tiles[t][0];", "to = block.tiles[0][0];"),
        ("sparse24 amx: each block of k overwrites the sums", "accumulate || k > 0,", "accumulate,"),
        tests=f"{INT8} -k amx",
    ),
    *plant(
        "csrc/ops/matmul_sparse24/cpu/int8/generic.cc",
        ("sparse24: values 1 and 2 belong to one group", "at % kValues / 2", "at % kValues / 3"),
        tests=INT8,
    ),
    *plant(
        "csrc/ops/matmul_sparse24/cpu/int4_int8/avx512_vnni.cc",
        (
            "sparse24 int4_int8 avx512: a value of later steps picks from the first group",
            "0x44440000",
            "0x04440000",
        ),
        (
            "sparse24 int4_int8 avx512: codes in registers, even steps read the odd codes",
            "if constexpr (parity == 0) codes = _mm512_slli_epi16(codes, 4);",
            "",
        ),
        (
            "sparse24 int4_int8 avx512: scales of the group before",
            "++g, scale += step.scale_stride)",
            "++g, scale += g > 1 ? step.scale_stride : 0)",
        ),
        (
            "sparse24 int4_int8 avx512: the last group of a run is missed",
            "g < step.groups;",
            "g < std::max<int64_t>(step.groups - 1, 1);",
        ),
        (
            "sparse24 int4_int8 avx512: twice the offset of activations",
            "_mm512_slli_epi32(column_16[t], 7)",
            "_mm512_slli_epi32(column_16[t], 8)",
        ),
        (
            "sparse24 int4_int8 avx512: weights of the blocks before are lost",
            "_mm512_add_epi32(more, shift_right_signed<4>(column_16[t]))",
            "shift_right_signed<4>(column_16[t])",
        ),
        (
            "sparse24 int4_int8 avx512: all panels read the activations of the first step",
            "a + (kStep * kRows + r) * kStepK",
            "a + (kStep * kRows + r / 2 * 2) * kStepK",
        ),
        (
            "sparse24 int4_int8 avx512: column sums of one half",
            "store(sums, _mm512_add_epi32(load(sums), sum))",
            "store(sums, sum)",
        ),
        tests=f"{FLOAT} -k int4_int8",
    ),
    *plant(
        "csrc/ops/matmul_sparse24/cpu/int8/int4_bytes.h",
        (
            "sparse24 int4_int8: halves of a span swapped",
            "from[i] >> right & 15",
            "from[i] >> (4 - right) & 15",
        ),
        ("sparse24 int4_int8: padding counts", "if (valid < kHalfK) clear_padding(values);", ""),
        ("sparse24 int4_int8: activations that are not kept count", "clear_padding(ones);", ";"),
        tests=FLOAT,
    ),
    *plant(
        "csrc/ops/matmul_sparse24/cpu/int8/int4_nest.h",
        ("sparse24 int4_int8: a block overwrites the one before", "tile_k > 0,", "false,"),
        (
            "sparse24 int4_int8: sums of the group before stay",
            "std::fill_n(shared.codes.sums, kTileN, 0); for",
            "for",
        ),
        (
            "sparse24 int4_int8: sums of the group before stay, with zero points",
            "std::fill_n(shared.codes.sums, kTileN, 0); std::fill_n(shared.kept.sums",
            "std::fill_n(shared.kept.sums",
        ),
        (
            "sparse24 int4_int8: zero points of the first group",
            "load_columns(p.w_zero_point, g,",
            "load_columns(p.w_zero_point, 0,",
        ),
        (
            "sparse24 int4_int8: panels share the sums of a long group",
            "acc + (is_whole ? 0 : at)",
            "acc",
        ),
        ("sparse24 int4_int8: one k chunk", "first += each)", "first += groups)"),
        ("sparse24 int4_int8: packed places without a feature", "feature < 0 ?", "feature < -1 ?"),
        tests=FLOAT,
    ),
    *plant(
        "csrc/ops/matmul_sparse24/cpu/float/sparse.h",
        ("sparse24 floats: the second half reads the first's indices", "static_cast<int>(half) * 4}", "0}"),
        (
            "sparse24 floats: f16 read as bf16",
            "body(weights<Value::kF16>(p, n0));",
            "body(weights<Value::kBF16>(p, n0));",
        ),
        ("sparse24 floats: codes of the next step", "i % 4 * 8 + i / 4 * 4", "i % 4 * 8 + (1 - i / 4) * 4"),
        tests=FLOAT,
    ),
    *plant(
        "csrc/ops/matmul_sparse24/cpu/float/avx512_vnni.cc",
        (
            "sparse24 avx512, few rows: a group's activations twice",
            "group_of(a + (kept / 2 * kRows + r) * kGroupK)",
            "group_of(a + (kept / 4 * kRows + r) * kGroupK)",
        ),
        tests=FLOAT,
    ),
    *plant(
        "csrc/ops/matmul_sparse24/cpu/float/avx2.cc",
        (
            "sparse24 avx2 floats: weights of the tile's first half",
            "const float* const at = w + t * (kBlockK * kColumns) + kept * 2 * kColumns;",
            "const float* const at = w + kept * 2 * kColumns;",
        ),
        tests=FLOAT,
    ),
    *plant(
        "csrc/ops/matmul_sparse24/pack.cc",
        (
            "sparse24 pack: the group's first index twice",
            "put(tile, to.index[1], 3, sparse24::second(code));",
            "put(tile, to.index[1], 3, sparse24::first(code));",
        ),
        (
            "sparse24 pack: row stride of values ignored",
            "row * sparse.values_stride * bytes",
            "row * (shape.k / 2) * bytes",
        ),
        ("sparse24 pack: sums of one group", "sums[g * shape.n + row] = sum;", "sums[row] = sum;"),
        tests=INT8,
    ),
)
