"""Self-test of every op on every instruction set and CUDA device here; needs neither click nor rich."""

from __future__ import annotations

from lamina.doctor.checks import CHECKS
from lamina.doctor.outcome import Outcome
from lamina.doctor.run import Check, count_checks, run_checks

__all__ = ["CHECKS", "Check", "Outcome", "count_checks", "run_checks"]
