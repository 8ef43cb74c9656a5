"""`lamina demo --model smollm2`: its table, its notes, its plot, and an answer."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from lamina.cli.chat import Conversation
from lamina.cli.demo.encoder import DemoError
from lamina.cli.demo.llm import BASELINE, MODEL_NAME, VARIANTS
from lamina.cli.demo.llm_measure import ANSWER, PROMPT, LlmResult, as_dict, run_llm_demo
from lamina.cli.environment import environment

ANSWER_TOKENS = 48
PLOT_NEEDS = "the plot needs matplotlib: pip install 'lamina[bench]'"


def run_llm(
    schemes: tuple[str, ...], rounds: int, json_path: Path | None, plot: Path | None, question: str
) -> NoReturn:
    """Compresses the language model, prints a table and an answer, and exits: status 1 if a row fails."""
    if unknown := set(schemes) - set(VARIANTS):
        raise click.UsageError(f"--scheme {min(unknown)}: allowed for {MODEL_NAME}: {', '.join(VARIANTS)}")
    chosen = list(dict.fromkeys(schemes)) or list(VARIANTS)
    if plot is not None:
        _import_pyplot()
    console = Console()
    try:
        results, models, tokenizer = run_llm_demo(chosen, rounds, None)
    except DemoError as error:
        raise click.ClickException(str(error)) from error
    machine = environment()
    console.print(_table(results), highlight=False)
    console.print(_notes(machine, rounds), highlight=False, markup=False)
    if json_path is not None:
        json_path.write_text(json.dumps(as_dict(results, machine, rounds), indent=2) + "\n")
    if plot is not None:
        draw(results, plot)
    _answer(console, chosen[-1], models[chosen[-1]], tokenizer, question)
    failed = [result for result in results if not result.passed]
    for result in failed:
        click.echo(
            f"FAILED: {result.scheme}: perplexity {result.perplexity:.2f} is above "
            f"{result.most_perplexity:.2f}",
            err=True,
        )
    sys.exit(1 if failed else 0)


def _answer(console: Console, name: str, model: Any, tokenizer: Any, question: str) -> None:
    console.print(f"\n{name} is asked: {question}", highlight=False, markup=False, style="bold")
    Conversation(model, tokenizer).answer(question, ANSWER_TOKENS, lambda text: click.echo(text, nl=False))
    click.echo()


def _table(results: Sequence[LlmResult]) -> Table:
    """At most 80 columns wide."""
    table = Table(title=MODEL_NAME, title_justify="left", box=SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column("scheme", no_wrap=True)
    headers = ("MB", "prefill\ntokens/s", "\nx", "decode\ntokens/s", "\nx", "perplexity", "KL", "top-1\nkept")
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)
    baseline = next(result for result in results if result.scheme == BASELINE)
    for result in results:
        table.add_row(*_cells(result, baseline), style=None if result.passed else "red")
    return table


def _cells(result: LlmResult, baseline: LlmResult) -> list[str]:
    cells = [result.scheme, f"{result.model_bytes / 1e6:.0f}"]
    for speed, base in ((result.prefill, baseline.prefill), (result.decode, baseline.decode)):
        cells += [f"{speed:.1f}", f"{speed / base:.2f}"]
    if result.perplexity is None or result.divergence is None or result.agreement is None:
        return [*cells, "-", "-", "-"]
    return [*cells, f"{result.perplexity:.2f}", f"{result.divergence:.4f}", f"{result.agreement:.1%}"]


def _notes(machine: dict[str, object], rounds: int) -> str:
    return (
        f"tokens/s: medians of {rounds} rounds, models in turn; prompt of {PROMPT} tokens, {ANSWER} decoded\n"
        f"on {machine['cpu']}, {machine['threads']} threads, {machine['cpu_isa']}\n"
        f"x: speed-up over {BASELINE}\n"
        "+head, -file, -g32: with an int8 head; -file: int4 weights of the GGUF file\n"
        "-g32: rounded anew, with float zero points\n"
        f"perplexity, KL (nats a token) and top-1 on a text that lamina ships, beside {BASELINE}"
    )


def draw(results: Sequence[LlmResult], path: Path) -> None:
    """Writes a figure: perplexity over decoded tokens a second, a point for each result that has both."""
    pyplot = _import_pyplot()
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for result in results:
        if result.perplexity is not None:
            axes.plot(result.decode, result.perplexity, "o", color="#1f77b4")
            axes.annotate(
                result.scheme, (result.decode, result.perplexity), textcoords="offset points", xytext=(6, 4)
            )
    axes.set_xlabel("decoded tokens a second")
    axes.set_ylabel("perplexity (lower is better)")
    axes.set_title(MODEL_NAME)
    axes.margins(0.15)
    figure.savefig(path)
    pyplot.close(figure)


def _import_pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise click.ClickException(PLOT_NEEDS) from None
    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot
