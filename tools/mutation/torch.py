"""Planted bugs: torch."""

from __future__ import annotations

from tools.mutation.mutant import Mutant

MUTANTS = (
    Mutant(
        "binding, int4: residual on another device",
        "csrc/torch/gemm_int4.cc",
        'then.argument("residual", residual), then.argument("perm", perm)',
        'then.argument("perm", perm)',
        ("tests/ops/test_placement.py",),
    ),
    Mutant(
        "int4_int8: rows quantised, all scaled as the first",
        "csrc/torch/gemm_int4_int8.cc",
        "(quantized->scale.data_ptr()), 1}",
        "(quantized->scale.data_ptr()), 0}",
        ("tests/ops/test_gemm_int4_int8.py", "tests/ops/test_gemm_int4_int8_exact.py"),
    ),
    Mutant(
        "perm: rows quantised, k apart",
        "csrc/torch/gemm_int4_int8.cc",
        "params.a_stride = a.size(1);",
        "params.a_stride = k;",
        ("tests/ops/test_act_order.py", "tests/ops/test_errors.py"),
    ),
)
