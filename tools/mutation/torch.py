"""Bugs to plant in csrc/torch."""

from __future__ import annotations

from tools.mutation.mutant import plant

MUTANTS = (
    *plant(
        "csrc/torch/int4.cc",
        (
            "binding, int4: residual on another device",
            'then.argument("w_zero_point", in.w_zero_point), then.argument("bias", then.bias), '
            'then.argument("gate", then.gate), then.argument("residual", then.residual), ',
            'then.argument("w_zero_point", in.w_zero_point), then.argument("bias", then.bias), '
            'then.argument("gate", then.gate), ',
        ),
        tests="tests/ops/test_placement.py",
    ),
)
