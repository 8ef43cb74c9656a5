"""The bugs that tools/mutants.py plants, a module for each folder of csrc and each op. Add some with every kernel."""

from __future__ import annotations

import importlib
import pkgutil

from tools.mutation.mutant import Mutant

MUTANTS: tuple[Mutant, ...] = tuple(
    mutant
    for module in pkgutil.iter_modules(__path__, "tools.mutation.")
    for mutant in getattr(importlib.import_module(module.name), "MUTANTS", ())
)
