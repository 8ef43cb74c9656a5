"""Planted bugs: quantize_int8."""

from __future__ import annotations

from tools.mutation.mutant import Mutant

MUTANTS = (
    Mutant(
        "quantize: last value not searched",
        "csrc/ops/quantize_int8/cpu/body.h",
        "j < k; ++j) { const int32_t key",
        "j < k - 1; ++j) { const int32_t key",
    ),
    Mutant(
        "quantize: static scale of the first row",
        "csrc/ops/quantize_int8/cpu/body.h",
        "p.static_scale[i], p.symmetric",
        "p.static_scale[0], p.symmetric",
    ),
    Mutant("quantize: row stride ignored", "csrc/ops/quantize_int8/cpu/body.h", "i * p.x_stride", "i * p.k"),
    Mutant(
        "rows: extremes of the next row overwrite those being read",
        "csrc/ops/quantize_int8/cuda/rows.cu",
        "dev::block_sync();  // all threads have read the extremes",
        "{}",
        (
            "tests/ops/test_emulator.py",
            "tests/ops/test_quantize_int8.py",
            "tests/ops/test_gemm_int8.py",
            "-k",
            "emulator and (cap or sms or the_same_in_every_batch)",
        ),
    ),
    Mutant(
        "rows: rows in int32",
        "csrc/ops/quantize_int8/cuda/rows.cu",
        "static_cast<const In*>(p.x) + i * p.x_stride",
        "static_cast<const In*>(p.x) + static_cast<int32_t>(i * p.x_stride)",
        ("tests/ops/test_large.py", "-k", "quantize and emulator"),
    ),
    Mutant(
        "quantize: only the first static scale is checked",
        "csrc/ops/quantize_int8/run.cc",
        "i < (scale.stride == 0 ? std::min<int64_t>(m, 1) : m)",
        "i < std::min<int64_t>(m, 1)",
        ("tests/ops/test_errors.py", "-k", "scale"),
    ),
)
