"""Every input that an op refuses, with the parts that its message must have: all lists in bad_*.py beside
this file.

The tests run this list, and it prints docs/errors.md:
python -m tests.support.bad_inputs > docs/errors.md
"""

from __future__ import annotations

import importlib
from pathlib import Path

from tests.support.bad_input import BadInput


def bad_inputs() -> list[BadInput]:
    """The bad_inputs() of every module that has them."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("bad_*.py"))
    modules = [
        importlib.import_module(f"tests.support.{name}") for name in names if name != Path(__file__).stem
    ]
    return [bad for module in modules if hasattr(module, "bad_inputs") for bad in module.bad_inputs()]


def document() -> str:
    """The text of docs/errors.md."""
    lines = [
        "# Error messages of the ops",
        "",
        "`make docs` runs every bad input and writes this page. A bad input raises `ValueError`, or",
        "`TypeError` if an argument has a wrong Python type. The tests check that each message names the",
        "argument, its value and the allowed values, and that this page is current.",
    ]
    op = ""
    for bad in bad_inputs():
        if bad.op != op:
            op = bad.op
            lines += ["", f"## {op}", "", "| input | message |", "|---|---|"]
        lines.append(f"| {bad.what} | `{bad.message()}` |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(document(), end="")
