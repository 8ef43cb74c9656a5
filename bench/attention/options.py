"""The options of bench/run.py for paged_attention. They need click, which a machine with a GPU may lack."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from bench.attention.cases import DEFAULTS, KV_DTYPES, LAYOUTS, SCENARIOS

HELP = {
    "scenario": f"{' | '.join(SCENARIOS)}, comma separated",
    "kv_dtype": f"of the cache: {' | '.join(KV_DTYPES)}, comma separated",
    "page": "tokens of a page",
    "batch": "requests; default: prefill 1, skewed 16, others 8",
    "context": "keys of a request",
    "heads": "heads of queries / of the cache",
    "head_dim": None,
    "tokens": "tokens of a request that verifies drafts",
    "layout": f"of a page: {' | '.join(LAYOUTS)}",
}


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options of attention to a command."""
    for name, default in reversed(DEFAULTS.items()):
        option = f"--{name.replace('_', '-')}"
        kind = int if name == "batch" else None
        command = click.option(
            option, type=kind, default=default, show_default=default is not None, help=HELP[name]
        )(command)
    return command
