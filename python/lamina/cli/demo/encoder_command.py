"""`lamina demo --model minilm`: its tables and notes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median
from typing import NoReturn

import click
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from lamina.cli.demo.encoder import MODEL_NAME, DemoError
from lamina.cli.demo.measure import (
    BASELINE,
    BASELINES,
    BATCHES,
    MIN_COSINE,
    SCHEME_NAMES,
    SchemeResult,
    as_dict,
    run_demo,
)
from lamina.cli.demo.sentences import SENTENCES
from lamina.cli.environment import environment
from lamina.devices import cuda_problem

MIN_REPEATS = 20


def run_encoder(
    device: str, schemes: tuple[str, ...], repeats: int, json_path: Path | None, verbose: bool
) -> NoReturn:
    """Compresses the encoder, prints size, latency and embeddings beside torch, and exits.

    On a CUDA device torch runs the model in f32 and in f16, and the f16 model is compressed. Exit status 1 if
    the cosine similarity of a sentence is under the bound of its scheme.
    """
    if unknown := set(schemes) - set(MIN_COSINE):
        raise click.UsageError(f"--scheme {min(unknown)}: allowed for {MODEL_NAME}: {', '.join(MIN_COSINE)}")
    if repeats < MIN_REPEATS:
        raise click.UsageError(f"--repeats {repeats}: must be at least {MIN_REPEATS} for {MODEL_NAME}")
    device = _choose_device(device)
    chosen = list(dict.fromkeys(schemes)) or list(SCHEME_NAMES[device])
    if missing := set(chosen) - set(SCHEME_NAMES[device]):
        allowed = ", ".join(SCHEME_NAMES[device])
        raise click.UsageError(f"--scheme {min(missing)}: runs on cpu only; allowed on {device}: {allowed}")
    console = Console()
    try:
        results = run_demo(device, chosen, repeats, None)
    except DemoError as error:
        raise click.ClickException(str(error)) from error
    machine = environment()
    console.print(_table(results), highlight=False)
    console.print(_notes(machine, device, repeats), highlight=False, markup=False)
    if verbose:
        console.print(_cosine_table(results), highlight=False)
    if json_path is not None:
        json_path.write_text(json.dumps(as_dict(results, machine | {"device": device}), indent=2) + "\n")
    failed = [result for result in results if not result.passed]
    for result in failed:
        click.echo(
            f"FAILED: {result.scheme}: cosine {min(result.cosines):.6f} is under {result.min_cosine}",
            err=True,
        )
    sys.exit(1 if failed else 0)


def _choose_device(wanted: str) -> str:
    if wanted == "cpu":
        return "cpu"
    problem = cuda_problem()
    if wanted == "cuda" and problem:
        raise click.UsageError(f"--device cuda: {problem}; use --device cpu")
    return "cpu" if problem else "cuda"


def _table(results: list[SchemeResult]) -> Table:
    """At most 80 columns wide."""
    title = f"{MODEL_NAME}, {len(SENTENCES)} sentences"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column("scheme", no_wrap=True)
    headers = ["model\nMB", "linear\nMB"]
    for size in BATCHES:
        headers += [f"batch\n{size} ms", "\nx"]
    headers += ["cosine\nmin", "\nmedian", "nearest\nkept", "pairs\nfound"]
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)
    for result in results:
        table.add_row(*_cells(result), style=None if result.passed else "red")
    return table


def _cells(result: SchemeResult) -> list[str]:
    count = len(result.cosines)
    cells = [result.scheme, f"{result.model_bytes / 1e6:.1f}", f"{result.linear_bytes / 1e6:.1f}"]
    for latency in result.latencies:
        cells += [f"{latency.median_ms:#.4g}", f"{latency.speedup:.2f}"]
    cells += [f"{min(result.cosines):.4f}", f"{median(result.cosines):.4f}"]
    return [*cells, f"{result.neighbours_agree}/{count}", f"{result.paraphrases_found}/{count}"]


def _notes(machine: dict[str, object], device: str, repeats: int) -> str:
    where = f"{machine['cpu']}, {machine['threads']} threads, {machine['cpu_isa']}"
    if device == "cuda":
        where = torch.cuda.get_device_name()
    return (
        f"ms: median of {repeats} forward passes, models in turn, on {where}; x: speed-up over {BASELINE}\n"
        f"the schemes compress the model of {list(BASELINES[device])[-1]}; gptq: calibrated on other text\n"
        f"cosine: of each embedding with that of {BASELINE}\n"
        f"nearest kept: sentences with the same nearest neighbour as under {BASELINE}\n"
        "pairs found: sentences whose nearest neighbour is their paraphrase"
    )


def _cosine_table(results: list[SchemeResult]) -> Table:
    compressed = [result for result in results if result.scheme != BASELINE]
    title = f"cosine similarity with {BASELINE}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0, show_edge=False)
    for result in compressed:
        table.add_column(result.scheme.replace("_", "_\n"), justify="right")
    table.add_column("sentence", overflow="fold", min_width=22)
    for index, sentence in enumerate(SENTENCES):
        table.add_row(*(f"{result.cosines[index]:.6f}" for result in compressed), sentence)
    return table
