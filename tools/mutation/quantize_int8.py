"""Bugs to plant in csrc/ops/quantize_int8."""

from __future__ import annotations

from tools.mutation.mutant import CAPPED, plant

MUTANTS = (
    *plant(
        "csrc/ops/quantize_int8/cpu/body.h",
        ("quantize: static scale of the first row", "p.static_grid(i)", "p.static_grid(0)"),
        ("quantize: row stride ignored", "i * p.x_stride", "i * p.k"),
    ),
    *plant(
        "csrc/ops/quantize_int8/cuda/rows.cu",
        (
            "rows: extremes of the next row overwrite those being read",
            "dev::block_sync();  // all threads have read the extremes",
            "{}",
        ),
        (
            "rows: rows in int32",
            "static_cast<const In*>(p.x) + i * p.x_stride",
            "static_cast<const In*>(p.x) + static_cast<int32_t>(i * p.x_stride)",
            "tests/ops/test_large.py -k quantize and emulator",
        ),
        tests=CAPPED,
    ),
    *plant(
        "csrc/ops/quantize_int8/run.cc",
        (
            "quantize: only the first static scale is checked",
            "i < (scale.stride == 0 ? std::min<int64_t>(m, 1) : m)",
            "i < std::min<int64_t>(m, 1)",
        ),
        tests="tests/ops/test_errors.py -k scale",
    ),
)
