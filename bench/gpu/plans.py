"""The plan of lamina for a case, as text, and the kernel that the plan names."""

from __future__ import annotations

import re

import torch

from bench.cases import AnyCase, Case


def plan(case: Case, group: int | None) -> str:
    """The text of the plan on the case's device; empty if the op has no planner for it."""
    ops, extents = torch.ops.lamina, (case.m, case.n, case.k)
    is_of_integers = (case.weight_dtype or "").startswith("int")
    op = f"explain_{case.op}_{case.weight_dtype}" if is_of_integers else f"explain_{case.op}"
    options = {} if group is None else {"group": group}
    try:
        if case.device != "cuda":
            return str(getattr(ops, op)(*extents, **options))
        p = torch.cuda.get_device_properties(torch.cuda.current_device())
        arch, sms = 10 * p.major + p.minor, p.multi_processor_count
        return str(getattr(ops, f"{op}_cuda")(*extents, arch, sms, **options))
    except (AttributeError, RuntimeError, TypeError):
        return ""


def kernel_of(case: AnyCase) -> str:
    """The kernel that the case takes, as op and name; empty if the plan names none."""
    if not isinstance(case, Case):
        return ""  # attention has no text of its plan
    found = re.findall(r"^kernel +(\w+)", plan(case, case.group), flags=re.MULTILINE)
    return str(found[0]) if found else ""
