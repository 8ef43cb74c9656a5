"""The command `lamina demo`."""

from __future__ import annotations

from pathlib import Path

import click

from lamina.cli.demo.encoder_command import run_encoder
from lamina.cli.demo.llm_command import run_llm
from lamina.cli.demo.prose import QUESTION

REPEATS = {"smollm2": 3, "minilm": 30}
FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.option("--model", type=click.Choice(list(REPEATS)), default="smollm2", show_default=True)
@click.option("--scheme", "schemes", multiple=True, help="May be repeated; by default all of the model.")
@click.option(
    "--repeats", type=click.IntRange(min=1), help=f"Timed rounds; by default {REPEATS['smollm2']} of smollm2."
)
@click.option("--json", "json_path", type=FILE, help="Write the figures here.")
@click.option("--plot", type=FILE, help="smollm2: draw speed and perplexity here (.svg, .png).")
@click.option("--question", default=QUESTION, help="smollm2: the question that the last scheme answers.")
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="minilm runs on both; smollm2 runs on a CPU.",
)
@click.option("-v", "--verbose", is_flag=True, help="minilm: cosine similarity of every sentence.")
def demo(
    model: str,
    schemes: tuple[str, ...],
    repeats: int | None,
    json_path: Path | None,
    plot: Path | None,
    question: str,
    device: str,
    verbose: bool,
) -> None:
    """Compress a real model; compare size, speed and quality with torch in the same run.

    smollm2 is the language model SmolLM2-135M-Instruct: prefill and decode, perplexity, and an answer.
    minilm is the sentence encoder all-MiniLM-L6-v2: latency and embeddings.

    Exit status 1 if a scheme loses more quality than its bound allows.
    """
    repeats = repeats or REPEATS[model]
    if model == "minilm":
        if plot is not None:
            raise click.UsageError("--plot: allowed with --model smollm2")
        run_encoder(device, schemes, repeats, json_path, verbose)
    if device == "cuda":
        raise click.UsageError("--device cuda: allowed with --model minilm; smollm2 runs on a CPU")
    run_llm(schemes, repeats, json_path, plot, question)
