"""Bugs to plant in csrc/torch."""

from __future__ import annotations

from tools.mutation.mutant import plant

MUTANTS = (
    *plant(
        "csrc/torch/int4.cc",
        (
            "binding, int4: residual on another device",
            'then.argument("w_zero_point", in.w_zero_point), then.argument("bias", in.bias), '
            'then.argument("gate", in.gate), then.argument("residual", in.residual), ',
            'then.argument("w_zero_point", in.w_zero_point), then.argument("bias", in.bias), '
            'then.argument("gate", in.gate), ',
        ),
        tests="tests/ops/test_placement.py",
    ),
)
