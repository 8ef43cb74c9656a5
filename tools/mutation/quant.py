"""Bugs to plant in csrc/quant."""

from __future__ import annotations

from tools.mutation.mutant import plant

MUTANTS = (
    *plant(
        "csrc/quant/gather.cuh",
        ("int4 gather: the features of the first place", "perm.data + p + e", "perm.data + e"),
        ("int4 gather: one feature too many", "feature >= perm.features", "feature > perm.features"),
        tests="tests/ops/test_gemm_int4_cuda.py",
    ),
    *plant(
        "csrc/quant/group_columns.h",
        ("int4: column stride ignored", "value(from[j * stride])", "value(from[j])"),
        ("int4: every strip has the first columns", "+ n0 * from.stride,", ","),
        tests="tests/ops/test_gemm_int4_int8.py tests/ops/test_gemm_int4_int8_exact.py",
    ),
    *plant(
        "csrc/quant/group_rows.cuh",
        (
            "int4 groups: a row of the next block",
            "bytes > 0 ? from + row * group_stride",
            "bytes > 0 ? data + row * group_stride",
        ),
        (
            "int4 groups: columns apart taken for neighbours",
            "row * group_stride + column * stride;",
            "row * group_stride + column * element_bytes;",
        ),
        (
            "int4 groups: columns in int32",
            "row * group_stride + column * stride;",
            "row * group_stride + static_cast<int32_t>(column * stride);",
            "tests/ops/test_large.py -k gemm_int4 and emulator",
        ),
        tests="tests/ops/test_gemm_int4_cuda.py",
    ),
    *plant(
        "csrc/quant/int8.h",
        (
            "quantize: truncates",
            "std::bit_cast<int32_t>(x * inverse_ + kRound)",
            "static_cast<int32_t>(x * inverse_) + kZero",
        ),
        ("quantize: sign of the zero point", "-128.0f - range.low", "-128.0f + range.low"),
        ("quantize: clamps without the zero point", "kZero + 127 - grid.zero_point", "kZero + 127"),
        ("quantize: -128 when symmetric", "(symmetric ? -127 : -128)", "-128"),
        ("quantize: NaN under a static scale", "low != low || high != high", "low != low && high != high"),
        ("quantize: Inf has a scale", "!(low >= -FLT_MAX && high <= FLT_MAX)", "low != low || high != high"),
        ("quantize: rows of zeros get scale 0", "/ 127.0f, FLT_MIN)", "/ 127.0f, 0.0f)"),
    ),
    *plant(
        "csrc/quant/int8_row.h",
        (
            "quantize: last value not searched",
            "j < k; ++j) { const int32_t key",
            "j < k - 1; ++j) { const int32_t key",
        ),
    ),
    *plant(
        "csrc/quant/perm.cc",
        (
            "perm: one feature too many is allowed",
            "static_cast<uint32_t>(feature) + 1 > most",
            "static_cast<uint32_t>(feature) + 1 > most + 1",
        ),
        tests="tests/ops/test_act_order.py tests/ops/test_errors.py",
    ),
)
