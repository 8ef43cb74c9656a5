"""Planted bugs: quant."""

from __future__ import annotations

from tools.mutation.mutant import Mutant

GEMM_INT4_CUDA = ("tests/ops/test_gemm_int4_cuda.py",)

MUTANTS = (
    Mutant(
        "int4 gather: the features of the first place",
        "csrc/quant/gather.cuh",
        "perm.data + p + e",
        "perm.data + e",
        GEMM_INT4_CUDA,
    ),
    Mutant(
        "int4 gather: one feature too many",
        "csrc/quant/gather.cuh",
        "feature >= perm.features",
        "feature > perm.features",
        GEMM_INT4_CUDA,
    ),
    Mutant(
        "int4: column stride ignored",
        "csrc/quant/group_columns.h",
        "value(from[j * stride])",
        "value(from[j])",
        ("tests/ops/test_gemm_int4_int8.py", "tests/ops/test_gemm_int4_int8_exact.py"),
    ),
    Mutant(
        "int4: every strip has the first columns",
        "csrc/quant/group_columns.h",
        "+ n0 * from.stride,",
        ",",
        ("tests/ops/test_gemm_int4_int8.py", "tests/ops/test_gemm_int4_int8_exact.py"),
    ),
    Mutant(
        "int4 groups: a row of the next block",
        "csrc/quant/group_rows.cuh",
        "bytes > 0 ? from + row * group_stride",
        "bytes > 0 ? data + row * group_stride",
        GEMM_INT4_CUDA,
    ),
    Mutant(
        "int4 groups: columns apart taken for neighbours",
        "csrc/quant/group_rows.cuh",
        "row * group_stride + column * stride;",
        "row * group_stride + column * element_bytes;",
        GEMM_INT4_CUDA,
    ),
    Mutant(
        "int4 groups: columns in int32",
        "csrc/quant/group_rows.cuh",
        "row * group_stride + column * stride;",
        "row * group_stride + static_cast<int32_t>(column * stride);",
        ("tests/ops/test_large.py", "-k", "gemm_int4 and emulator"),
    ),
    Mutant(
        "quantize: truncates",
        "csrc/quant/int8.h",
        "std::bit_cast<int32_t>(x * inverse_ + kRound)",
        "static_cast<int32_t>(x * inverse_) + kZero",
    ),
    Mutant(
        "quantize: sign of the zero point", "csrc/quant/int8.h", "-128.0f - range.low", "-128.0f + range.low"
    ),
    Mutant(
        "quantize: clamps without the zero point",
        "csrc/quant/int8.h",
        "kZero + 127 - grid.zero_point",
        "kZero + 127",
    ),
    Mutant("quantize: -128 when symmetric", "csrc/quant/int8.h", "(symmetric ? -127 : -128)", "-128"),
    Mutant(
        "quantize: NaN under a static scale",
        "csrc/quant/int8.h",
        "low != low || high != high",
        "low != low && high != high",
    ),
    Mutant(
        "quantize: Inf has a scale",
        "csrc/quant/int8.h",
        "!(low >= -FLT_MAX && high <= FLT_MAX)",
        "low != low || high != high",
    ),
    Mutant(
        "quantize: rows of zeros get scale 0", "csrc/quant/int8.h", "/ 127.0f, FLT_MIN)", "/ 127.0f, 0.0f)"
    ),
    Mutant(
        "perm: one feature too many is allowed",
        "csrc/quant/perm.cc",
        "static_cast<uint32_t>(feature) + 1 > most",
        "static_cast<uint32_t>(feature) + 1 > most + 1",
        ("tests/ops/test_act_order.py", "tests/ops/test_errors.py"),
    ),
)
