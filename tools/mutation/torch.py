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
)
