"""Bugs to plant in csrc/torch."""

from __future__ import annotations

from tools.mutation.mutant import plant

MUTANTS = (
    *plant(
        "csrc/torch/epilogue.h",
        (
            "binding: residual on another device",
            'argument("gate", gate), argument("residual", residual)}',
            'argument("gate", gate), argument("gate", gate)}',
        ),
        tests="tests/ops/test_placement.py",
    ),
)
