"""Planted bugs: gemm_int4_cpu."""

from __future__ import annotations

from tools.mutation.mutant import Mutant

ACT_ORDER_TESTS_OPS_TEST_ERRORS_PY = ("tests/ops/test_act_order.py", "tests/ops/test_errors.py")
GEMM_INT4 = ("tests/ops/test_gemm_int4.py",)
PACK_INT4 = ("tests/ops/test_pack_int4.py",)

MUTANTS = (
    Mutant(
        "int4 avx512, few rows: scales of the strip's first tile",
        "csrc/ops/gemm_int4/cpu/avx512_vnni.cc",
        "_mm512_load_ps(lines.scale + t * int4::kTileN)",
        "_mm512_load_ps(lines.scale)",
        GEMM_INT4,
    ),
    Mutant(
        "int4: a k chunk does not start from 0",
        "csrc/ops/gemm_int4/cpu/body.h",
        "std::fill_n(k_chunk, rows * kTileN, kNoSum);",
        "if (k0 == 0) std::fill_n(k_chunk, rows * kTileN, kNoSum);",
        GEMM_INT4,
    ),
    Mutant(
        "int4: zero points unscaled",
        "csrc/ops/gemm_int4/cpu/body.h",
        "shared.minus_zero[j] *= shared.scale[j];",
        ";",
        GEMM_INT4,
    ),
    Mutant(
        "int4: weights of the strip's first tile",
        "csrc/ops/gemm_int4/cpu/body.h",
        "w + t * w_stride + k / kLineK",
        "w + k / kLineK",
        GEMM_INT4,
    ),
    Mutant(
        "int4: a group goes on to the end of the block",
        "csrc/ops/gemm_int4/cpu/body.h",
        "std::min((at / group + 1) * group, k1);",
        "k1;",
        GEMM_INT4,
    ),
    Mutant(
        "int4, few rows: lines with the scales of the first group",
        "csrc/ops/gemm_int4/cpu/body.h",
        "load_group(k0 / group, n0, kTileN);",
        "load_group(0, n0, kTileN);",
        GEMM_INT4,
    ),
    Mutant(
        "int4, few rows: k past the last whole line is lost",
        "csrc/ops/gemm_int4/cpu/body.h",
        "multiply_blocks(n0, count, rows, middle, k1);",
        "if (middle == k0) multiply_blocks(n0, count, rows, middle, k1);",
        GEMM_INT4,
    ),
    Mutant(
        "perm: another feature",
        "csrc/ops/gemm_int4/cpu/body.h",
        "to_f32(a[r * stride + perm[i]])",
        "to_f32(a[r * stride + perm[i] / 2])",
        ACT_ORDER_TESTS_OPS_TEST_ERRORS_PY,
    ),
    Mutant(
        "perm: a place without a feature keeps old memory",
        "csrc/ops/gemm_int4/cpu/body.h",
        "if (p.perm.is_given()) std::fill_n(panel.packed, panel.rows * k, 0.0f);",
        "",
        ACT_ORDER_TESTS_OPS_TEST_ERRORS_PY,
    ),
    Mutant(
        "int4, perm: rows in int32",
        "csrc/ops/gemm_int4/cpu/body.h",
        "a[r * stride + perm[i]]",
        "a[static_cast<int32_t>(r * stride) + perm[i]]",
        ("tests/ops/test_large.py", "-k", "gathered and not emulator"),
    ),
    Mutant(
        "perm: a packed tile has the first one's features",
        "csrc/ops/gemm_int4/pack.cc",
        "perm.data + part.first,",
        "perm.data,",
        ACT_ORDER_TESTS_OPS_TEST_ERRORS_PY,
    ),
    Mutant(
        "perm: the error names the place of a wrong code",
        "csrc/ops/gemm_int4/pack.cc",
        "const int64_t p = feature(at);",
        "const int64_t p = at;",
        ACT_ORDER_TESTS_OPS_TEST_ERRORS_PY,
    ),
    Mutant(
        "pack int4: the tile before is not cleared",
        "csrc/ops/gemm_int4/pack.cc",
        "std::fill_n(tile, kTileBytes, uint8_t{0});",
        "",
        PACK_INT4,
    ),
    Mutant(
        "pack int4: the error names a later wrong row",
        "csrc/ops/gemm_int4/pack.cc",
        "part.row + i < before &&",
        "part.row + i != before &&",
        PACK_INT4,
    ),
    Mutant(
        "pack int4: row stride ignored",
        "csrc/ops/gemm_int4/pack.cc",
        "(part.row + i) * stride",
        "(part.row + i) * k",
        PACK_INT4,
    ),
)
