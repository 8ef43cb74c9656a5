"""The command group, and the command info; chat, demo, doctor and explain have their own files."""

from __future__ import annotations

import json

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

import lamina
from lamina.cli.chat import chat
from lamina.cli.demo.command import demo
from lamina.cli.doctor import doctor
from lamina.cli.environment import environment, rows
from lamina.cli.explain import explain


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


app.add_command(explain)
app.add_command(doctor)
app.add_command(demo)
app.add_command(chat)
