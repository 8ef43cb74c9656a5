"""The command group and its small commands; demo and doctor have files of their own."""

from __future__ import annotations

import difflib
import json

import click
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

import lamina
from lamina.cli.demo import demo
from lamina.cli.doctor import doctor
from lamina.cli.environment import environment, rows


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(lamina.__version__, package_name="lamina")
def app() -> None:
    """lamina: the kernel layer of LLM inference."""


@app.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(as_json: bool) -> None:
    """Versions, instruction sets, CUDA architectures and devices."""
    if as_json:
        click.echo(json.dumps(environment(), indent=2))
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows():
        table.add_row(name, Text(value))  # not str: "[cuda]" is markup to rich
    Console().print(table, highlight=False)


@app.command()
@click.argument("op", required=False)
@click.option("--m", type=int, help="Tokens.")
@click.option("--n", type=int, help="Output features.")
@click.option("--k", type=int, help="Input features.")
def explain(op: str | None, **extents: int | None) -> None:
    """The plan for OP on this machine: kernel, blocks, reason; or why there is none.

    Without OP, or with one that is unknown, the ops are listed.
    """
    ops = explainable_ops()
    usage = "\n".join(f"  lamina explain {name} {_options(wanted)}" for name, wanted in ops.items())
    if op is None:
        click.echo(f"Ops with a plan:\n{usage}")
        return
    op = op.removeprefix("lamina::").removeprefix("lamina.")
    if op not in ops:
        close = difflib.get_close_matches(op, ops, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise click.UsageError(f"no op {op!r}{hint}\nOps with a plan:\n{usage}")
    given = {name for name, value in extents.items() if value is not None}
    if given != set(ops[op]):
        raise click.UsageError(f"{op} takes {_options(ops[op])}, got {_options(sorted(given)) or 'nothing'}")
    try:
        plan = getattr(torch.ops.lamina, f"explain_{op}")(*(extents[name] for name in ops[op]))
    except (ValueError, RuntimeError) as error:
        raise click.ClickException(f"no plan: {error}") from error
    click.echo(plan)


def explainable_ops() -> dict[str, list[str]]:
    """The ops that can print a plan, and the extents that it depends on."""
    prefix = "lamina::explain_"
    names = sorted(
        name.removeprefix(prefix) for name in torch._C._dispatch_get_all_op_names() if name.startswith(prefix)
    )
    return {
        name: [a.name for a in getattr(torch.ops.lamina, f"explain_{name}").default._schema.arguments]
        for name in names
    }


def _options(names: list[str]) -> str:
    return " ".join(f"--{name} {name.upper()}" for name in names)


app.add_command(doctor)
app.add_command(demo)
