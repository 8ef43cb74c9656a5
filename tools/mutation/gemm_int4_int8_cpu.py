"""Planted bugs: gemm_int4_int8_cpu."""

from __future__ import annotations

from tools.mutation.mutant import Mutant

ACT_ORDER_TESTS_OPS_TEST_ERRORS_PY = ("tests/ops/test_act_order.py", "tests/ops/test_errors.py")
GEMM_INT4_INT8_TESTS_OPS_TEST_GEMM_INT4_INT8_EXACT_PY = (
    "tests/ops/test_gemm_int4_int8.py",
    "tests/ops/test_gemm_int4_int8_exact.py",
)

MUTANTS = (
    Mutant(
        "int4_int8 amx: a group's second block forgets the first",
        "csrc/ops/gemm_int4_int8/cpu/amx_int8.cc",
        "!piece.begins, Prefetch",
        "false, Prefetch",
        GEMM_INT4_INT8_TESTS_OPS_TEST_GEMM_INT4_INT8_EXACT_PY,
    ),
    Mutant(
        "int4_int8 avx2: ten fours in int16",
        "csrc/ops/gemm_int4_int8/cpu/avx2.cc",
        "kFoursOfHalves = 8;",
        "kFoursOfHalves = 10;",
        GEMM_INT4_INT8_TESTS_OPS_TEST_GEMM_INT4_INT8_EXACT_PY,
    ),
    Mutant(
        "int4_int8 avx2: 8 * a_sum subtracted in every eight fours",
        "csrc/ops/gemm_int4_int8/cpu/avx2.cc",
        ": load(acc + kAt);",
        ": _mm256_add_epi32(load(acc + kAt), _mm256_set1_epi32(zero * a_sum[r]));",
        GEMM_INT4_INT8_TESTS_OPS_TEST_GEMM_INT4_INT8_EXACT_PY,
    ),
    Mutant(
        "int4_int8 avx512: a group begins in every block",
        "csrc/ops/gemm_int4_int8/cpu/avx512_vnni.cc",
        "if (piece.begins) { unroll",
        "if (piece.begins || i == 0) { unroll",
        GEMM_INT4_INT8_TESTS_OPS_TEST_GEMM_INT4_INT8_EXACT_PY,
    ),
    Mutant(
        "int4_int8: a ragged last group never ends",
        "csrc/ops/gemm_int4_int8/cpu/body.h",
        "+ 1) * group, k), stop",
        "+ 1) * group, k + 1), stop",
        GEMM_INT4_INT8_TESTS_OPS_TEST_GEMM_INT4_INT8_EXACT_PY,
    ),
    Mutant(
        "int4_int8: the last group's zero points of a whole one",
        "csrc/ops/gemm_int4_int8/cpu/body.h",
        "zero * static_cast<int32_t>(count)",
        "zero * static_cast<int32_t>(group)",
        GEMM_INT4_INT8_TESTS_OPS_TEST_GEMM_INT4_INT8_EXACT_PY,
    ),
    Mutant(
        "int4_int8: k chunks of two",
        "csrc/ops/gemm_int4_int8/cpu/body.h",
        "each = chunk_k(p.problem.group)",
        "each = 2 * chunk_k(p.problem.group)",
        GEMM_INT4_INT8_TESTS_OPS_TEST_GEMM_INT4_INT8_EXACT_PY,
    ),
    Mutant(
        "int4_int8: a k chunk does not start from 0",
        "csrc/ops/gemm_int4_int8/cpu/body.h",
        "std::fill_n(k_chunk, rows * kTileN, kNoSum);",
        "if (first == 0) std::fill_n(k_chunk, rows * kTileN, kNoSum);",
        GEMM_INT4_INT8_TESTS_OPS_TEST_GEMM_INT4_INT8_EXACT_PY,
    ),
    Mutant(
        "int4_int8: rows scaled by those of the block before",
        "csrc/ops/gemm_int4_int8/cpu/body.h",
        "p.a_scale[m0 + r]",
        "p.a_scale[r]",
        GEMM_INT4_INT8_TESTS_OPS_TEST_GEMM_INT4_INT8_EXACT_PY,
    ),
    Mutant(
        "int4_int8: sums of the panel's first row",
        "csrc/ops/gemm_int4_int8/cpu/body.h",
        "piece.group * kTileM + r]",
        "piece.group * kTileM]",
        GEMM_INT4_INT8_TESTS_OPS_TEST_GEMM_INT4_INT8_EXACT_PY,
    ),
    Mutant(
        "int4_int8: zero points of the group before",
        "csrc/ops/gemm_int4_int8/cpu/body.h",
        "load_columns(p.w_zero_point, piece.group,",
        "load_columns(p.w_zero_point, std::max<int64_t>(piece.group - 1, 0),",
        GEMM_INT4_INT8_TESTS_OPS_TEST_GEMM_INT4_INT8_EXACT_PY,
    ),
    Mutant(
        "int4_int8: scales of any stride read in place",
        "csrc/ops/gemm_int4_int8/cpu/body.h",
        "p.w_scale.stride == 1 && count",
        "count",
        GEMM_INT4_INT8_TESTS_OPS_TEST_GEMM_INT4_INT8_EXACT_PY,
    ),
    Mutant(
        "int4_int8: sums of codes go on into the next group",
        "csrc/ops/gemm_int4_int8/cpu/body.h",
        "if (piece.begins) std::fill_n(shared.q_sum",
        "if (piece.begins && piece.group == 0) std::fill_n(shared.q_sum",
        GEMM_INT4_INT8_TESTS_OPS_TEST_GEMM_INT4_INT8_EXACT_PY,
    ),
    Mutant(
        "int4_int8 amx: signed codes with given zero points",
        "csrc/ops/gemm_int4_int8/cpu/body.h",
        "Tile::kTakesSigned && scaling == Scaling::kSymmetric",
        "Tile::kTakesSigned",
        GEMM_INT4_INT8_TESTS_OPS_TEST_GEMM_INT4_INT8_EXACT_PY,
    ),
    Mutant(
        "perm: a place without a feature is 0, not the zero point",
        "csrc/ops/gemm_int4_int8/cpu/body.h",
        "perm[i] < 0 ? zero :",
        "perm[i] < 0 ? int8_t{0} :",
        ACT_ORDER_TESTS_OPS_TEST_ERRORS_PY,
    ),
    Mutant(
        "perm: a block gathers the first one's features",
        "csrc/ops/gemm_int4_int8/cpu/body.h",
        "p.perm.data + k0,",
        "p.perm.data,",
        ACT_ORDER_TESTS_OPS_TEST_ERRORS_PY,
    ),
    Mutant(
        "perm: every block begins its groups",
        "csrc/ops/gemm_int4_int8/cpu/body.h",
        "if (first == g * group) sum = 0;",
        "if (first == k0) sum = 0;",
        ACT_ORDER_TESTS_OPS_TEST_ERRORS_PY,
    ),
    Mutant(
        "perm: blocks packed over each other",
        "csrc/ops/gemm_int4_int8/cpu/body.h",
        "panel.packed + k0 * Tile::packed_rows(panel.rows)",
        "panel.packed",
        ACT_ORDER_TESTS_OPS_TEST_ERRORS_PY,
    ),
    Mutant(
        "int4_int8: a k chunk starts at 0",
        "csrc/ops/gemm_int4_int8/cpu/body.h",
        "std::fill_n(k_chunk, rows * kTileN, kNoSum);",
        "std::fill_n(k_chunk, rows * kTileN, 0.0f);",
        ("tests/ops/test_zeros.py", "-k", "gemm_int4_int8 and not emulator"),
    ),
    Mutant(
        "int4_int8 avx512: zero points subtracted with two roundings",
        "csrc/ops/gemm_int4_int8/cpu/scale512.h",
        "x = _mm512_fmadd_ps(_mm512_loadu_ps(minus_zero), _mm512_set1_ps(static_cast<float>(a_sum)), x);",
        "x = _mm512_add_ps(_mm512_mul_ps(_mm512_loadu_ps(minus_zero), _mm512_set1_ps(static_cast<float>(a_sum))), x);",
        ("tests/ops/test_gemm_int4_int8.py", "-k", "avx512_vnni"),
    ),
    Mutant(
        "int4_int8: zero points lost where sums are corrected",
        "csrc/ops/gemm_int4_int8/cpu/step.h",
        "std::fma(minus_zero[j],",
        "std::fma(-8.0f,",
        GEMM_INT4_INT8_TESTS_OPS_TEST_GEMM_INT4_INT8_EXACT_PY,
    ),
    Mutant(
        "int4_int8: a difference of the other sign",
        "csrc/ops/gemm_int4_int8/cpu/step.h",
        "static_cast<float>(sum - kSymmetricZeroPoint * a_sum)",
        "-static_cast<float>(kSymmetricZeroPoint * a_sum - sum)",
        ("tests/ops/test_zeros.py", "-k", "gemm_int4_int8 and not emulator"),
    ),
    Mutant(
        "int4_int8: rows quantised, all scaled as the first",
        "csrc/ops/gemm_int4_int8/run.cc",
        "params.a_scale = {quantize.scale, 1};",
        "params.a_scale = {quantize.scale, 0};",
        ("tests/ops/test_gemm_int4_int8.py", "tests/ops/test_gemm_int4_int8_exact.py"),
    ),
    Mutant(
        "perm: rows quantised, k apart",
        "csrc/ops/gemm_int4_int8/run.cc",
        "params.a_stride = quantize.k;",
        "params.a_stride = p.k;",
        ("tests/ops/test_act_order.py", "tests/ops/test_errors.py"),
    ),
)
