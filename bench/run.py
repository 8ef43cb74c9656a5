"""Times lamina's ops beside their peers: `python bench/run.py OP ...`; a table, and JSON on request."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

if __package__ in (None, ""):  # run as a file: make `bench` importable, from the checkout
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import click
import torch
from rich.console import Console

from bench import isa_mask
from bench.allocator import keep_freed_memory
from bench.attention.cases import Options
from bench.attention.options import options as attention_options
from bench.cases import (
    AnyBench,
    AnyCase,
    BenchError,
    Context,
    Rotation,
    check_peers,
    load_op,
    make_cases,
    op_names,
    parse_sizes,
    weight_dtype_of,
    weights_of_model,
)
from bench.growth import growth_table
from bench.models import MODELS
from bench.native.build import NativeBuildError
from bench.ops.paged_attention import AttentionBench
from bench.plot import draw, require_plot
from bench.results_file import Result, Row, is_wrong, save
from bench.runner import Runner, Stop, rotation_target, run_cases
from bench.table import WIDTH, make_printer, not_timed_lines, row_tables
from bench.timing import MIN_SAMPLES, Protocol


def lamina_isas(wanted: str | None) -> list[str]:
    available: list[str] = torch.ops.lamina.cpu_isas().split(",")
    if wanted is None:
        return [torch.ops.lamina.cpu_isa()]
    chosen = available if wanted == "all" else wanted.split(",")
    for isa in chosen:
        if isa not in available:
            raise BenchError(f"--isa: got {isa!r}; allowed here: {', '.join(available)}, all")
    return chosen


def _print_conditions(runner: Runner, console: Console) -> None:
    context, noise = runner.context, runner.noise.to_json()
    rotation = "hot" if context.rotation.hot else f"{context.rotation.target_bytes >> 20} MiB of copies each"
    level = isa_mask.active_level()
    mask = f"; instruction sets above {level} hidden from this process" if level else ""
    console.print(f"{context.threads} threads; {rotation}{mask}")
    for read in runner.ceilings.reads:
        how = f" in {read.probe} in random order" if read.probe else ""
        over = f"{read.footprint_bytes / 2**20:.1f} MiB"
        console.print(f"read ceiling  {read.best / 1e9:.1f} GB/s over {over}{how}")
    for kind, sets in runner.ceilings.ops_per_s.items():
        peaks = ", ".join(f"{isa} {ops / 1e9:,.0f}" for isa, ops in sets.items())
        console.print(f"{kind} ceiling  {peaks} GOP/s")
    for impl, why in context.skipped.items():
        console.print(f"[yellow]no row for {impl}: {why}[/]")
    for reason in runner.untrusted():
        console.print(f"[yellow]ceilings not to be trusted: {reason}[/]")
    timings = [row.timing for row, _ in runner.measured if row.timing]
    disturbed = sum(timing.disturbed for timing in timings)
    samples = sum(timing.samples for timing in timings)
    if disturbed > samples // 10:
        of_all = f"{disturbed} of {samples} samples"
        console.print(f"[yellow]{of_all} were disturbed by other processes: see --wait-quiet[/]")
    if few := [timing.samples for timing in timings if timing.samples < runner.protocol.samples]:
        console.print(f"{min(few)} samples only where a call lasts over {runner.protocol.long_call_s} s")
    if noise["cores_used_by_others"] > 0.05 or noise["cores_stolen"] > 0.02:
        console.print(
            f"[yellow]not quiet: others used {noise['cores_used_by_others']:.2f} cores, "
            f"the hypervisor took {noise['cores_stolen']:.2f}[/]"
        )


def require_cpu_options_unset(
    isa: str | None, mask_isa: bool, threads: int | None, wait_quiet: float
) -> None:
    given = {"--isa": isa, "--mask-isa": mask_isa, "--threads": threads, "--wait-quiet": wait_quiet}
    for name, value in given.items():
        if value:
            raise BenchError(f"{name}: of the CPU; not allowed with --device cuda")


def run_on_gpu(
    op: AnyBench[Any],
    cases: Sequence[AnyCase],
    peers: list[str],
    skip: list[str],
    hot: bool,
    samples: int,
    rotate_mib: int,
    json_path: Path | None,
    console: Console,
) -> tuple[dict[str, Any], Stop | None]:
    from bench.gpu.device import CudaDevice
    from bench.gpu.runner import GpuRunner, make_context
    from bench.gpu.timing import GpuProtocol

    device = CudaDevice()
    context = make_context(device.rotation_target(rotate_mib), peers, skip, hot=hot)
    runner = GpuRunner(op, context, GpuProtocol(samples=samples), device)
    stop = run_cases(runner, cases, console, json_path)
    return runner.to_json(), stop


def finish(
    result: dict[str, Any],
    stop: Stop | None,
    json_path: Path | None,
    plot_path: Path | None,
    print_conditions: Callable[[], None] = lambda: None,
) -> None:
    """Prints, writes, and fails where lamina was wrong. A run without rows leaves the files as they are."""
    rows: list[Row] = result["rows"]
    if json_path and rows:
        save(json_path, result)
    show = make_printer()
    for table in row_tables(rows):
        show(table)
    if growth := growth_table(rows):
        show(growth)
    for line in not_timed_lines(rows):
        show(line)
    print_conditions()
    timed = [row for row in rows if row["median_us"]]
    if plot_path and timed:
        draw(Result(json_path or plot_path, result["machine"], rows), timed, plot_path)
    if stop:
        click.echo(str(stop), err=True)
        raise SystemExit(stop.exit_status)
    if any(is_wrong(row) for row in rows):
        raise click.ClickException("lamina's result is outside its error bound: no speed is printed for it")
    if failed := [row for row in rows if row["impl"] == "lamina" and row["median_us"] is None]:
        raise click.ClickException(f"lamina was not timed: {failed[0]['case'].get('not_timed')}")


def _split(_context: click.Context, _parameter: click.Parameter, text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _sizes(_context: click.Context, _parameter: click.Parameter, text: str) -> list[int]:
    try:
        return parse_sizes(text)
    except BenchError as error:
        raise click.BadParameter(str(error)) from None


def require_own_options(op: str, *, is_attention: bool) -> None:
    """Options of the other family of ops are refused, not ignored."""
    context = click.get_current_context()
    products = ("ms", "n", "k", "model", "group", "weight_dtype", "values", "plot_path")
    attention = tuple(Options.__annotations__)
    refused = products if is_attention else attention
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        if parameter.name in refused and source is click.core.ParameterSource.COMMANDLINE:
            kind = "products" if is_attention else "paged_attention"
            raise BenchError(f"{parameter.opts[0]}: of {kind}; not an option of {op}")


def weights_of(op: str, model: str | None, n: int, k: int) -> list[tuple[int, int]]:
    """(n, k) of the weights: those of the model, or the one that --n and --k give."""
    if model is None:
        return [(n, k)]
    context = click.get_current_context()
    for name, size in (("n", n), ("k", k)):
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise BenchError(f"--{name}: got {size} with --model {model}; allowed: --model, or --n and --k")
    return weights_of_model(op, model)


@click.command(help=f"Times OP beside its peers. OP: {', '.join(op_names())}.")
@click.argument("op")
@click.option("--device", default="cpu", show_default=True, help="cpu | cuda")
@click.option(
    "--m",
    "ms",
    default="1,16,64,256",
    show_default=True,
    callback=_sizes,
    help="tokens, comma separated; 1:512 is all powers of two from 1 to 512",
)
@click.option("--n", default=4096, show_default=True, help="output features")
@click.option("--k", default=4096, show_default=True, help="input features")
@click.option(
    "--model",
    help=f"instead of --n and --k: all linear layers of a model, for matrix products: {' | '.join(MODELS)}",
)
@click.option("--group", type=int, help="weight group along k, for ops that have one")
@click.option(
    "--weight-dtype", help="of ops with weights of several types: int8 | int4 | int4_int8 | bf16 ..."
)
@click.option("--dtype", help="of activations and output: f32 | bf16 | f16")
@click.option(
    "--values",
    type=click.Choice(["normal", "uniform"]),
    default="normal",
    show_default=True,
    help="int8 operands: normal ones, quantised to their maximum as in a model, or uniform over the range",
)
@attention_options
@click.option(
    "--peers", default="", callback=_split, help="names or families, comma separated; none by default"
)
@click.option("--skip", default="", callback=_split, help="peers to leave out of a family")
@click.option("--isa", help="lamina's CPU instruction sets, comma separated, or all; default: the one in use")
@click.option(
    "--mask-isa", is_flag=True, help="hide everything above --isa from the whole process, peers too"
)
@click.option("--hot", is_flag=True, help="one copy of the weight, in cache where it fits")
@click.option("--threads", type=click.IntRange(min=1), help="default: torch's")
@click.option("--samples", type=click.IntRange(min=MIN_SAMPLES), default=MIN_SAMPLES, show_default=True)
@click.option(
    "--rotate-mib",
    type=click.IntRange(min=1),
    default=1024,
    show_default=True,
    help="most memory for copies, each",
)
@click.option("--wait-quiet", type=click.FloatRange(min=0), default=0.0, help="seconds to wait, per case")
@click.option(
    "--json",
    "json_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="write the rows there, after every case",
)
@click.option(
    "--plot",
    "plot_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="draw time against m there, a panel for each weight: .svg | .png | .pdf",
)
def main(
    op: str,
    device: str,
    ms: list[int],
    n: int,
    k: int,
    model: str | None,
    group: int | None,
    weight_dtype: str | None,
    dtype: str | None,
    values: str,
    peers: list[str],
    skip: list[str],
    isa: str | None,
    mask_isa: bool,
    hot: bool,
    threads: int | None,
    samples: int,
    rotate_mib: int,
    wait_quiet: float,
    json_path: Path | None,
    plot_path: Path | None,
    **attention: Any,
) -> None:
    try:
        chosen = load_op(op)
        require_own_options(op, is_attention=isinstance(chosen, AttentionBench))
        cases: Sequence[AnyCase]
        if isinstance(chosen, AttentionBench):
            cases = chosen.cases(device, dtype, cast(Options, attention))
        else:
            products = make_cases(chosen, device, ms, weights_of(op, model, n, k), dtype, group)
            weight_dtype = weight_dtype_of(chosen, weight_dtype)
            cases = [replace(case, values=values, weight_dtype=weight_dtype) for case in products]
        check_peers(chosen, device, [*peers, *skip])
        if plot_path:
            require_plot(plot_path)
        console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
        if device == "cuda":
            require_cpu_options_unset(isa, mask_isa, threads, wait_quiet)
            gpu_result = run_on_gpu(chosen, cases, peers, skip, hot, samples, rotate_mib, json_path, console)
            finish(*gpu_result, json_path, plot_path)
            return
        if mask_isa and isa_mask.active_level() is None:
            isa_mask.reexecute(isa or "")
        import lamina  # noqa: F401  (registers the ops; after the mask, which must come first)

        keep_freed_memory()
        if threads:
            torch.set_num_threads(threads)
        rotation = Rotation(hot, rotation_target(rotate_mib))
        context = Context(rotation, torch.get_num_threads(), lamina_isas(isa), peers, skip)
        runner = Runner(chosen, context, Protocol(samples=samples, quiet_s=wait_quiet))
        stop = run_cases(runner, cases, console, json_path)
    except (BenchError, isa_mask.IsaMaskError, NativeBuildError, ImportError) as error:
        raise click.ClickException(str(error)) from error
    finish(runner.to_json(), stop, json_path, plot_path, lambda: _print_conditions(runner, console))


if __name__ == "__main__":
    main()
