"""The command `lamina`: info, doctor, explain, demo, chat. Needs the extra `cli` (click and rich)."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the console script."""
    try:
        import click  # noqa: F401
        import rich  # noqa: F401
    except ImportError as error:
        print(f"lamina: the command line needs {error.name}: pip install 'lamina[cli]'", file=sys.stderr)
        sys.exit(2)
    from lamina.cli.app import app

    app(prog_name="lamina")
