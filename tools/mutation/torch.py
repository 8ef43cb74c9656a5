"""Bugs to plant in csrc/torch."""

from __future__ import annotations

from tools.mutation.mutant import plant

MUTANTS = (
    *plant(
        "csrc/torch/gemm_int4.cc",
        (
            "binding, int4: residual on another device",
            'then.argument("residual", residual), then.argument("perm", perm)',
            'then.argument("perm", perm)',
        ),
        tests="tests/ops/test_placement.py",
    ),
)
