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
from rich.progress import Progress

from bench import isa_mask, machine
from bench.allocator import keep_freed_memory
from bench.attention.cases import Options
from bench.attention.options import options as attention_options
from bench.cases import (
    Accuracy,
    AnyBench,
    AnyCase,
    BenchError,
    Candidate,
    Context,
    Rotation,
    check_peers,
    load_op,
    make_cases,
    op_names,
    weight_dtype_of,
)
from bench.native.build import NativeBuildError
from bench.ops.paged_attention import AttentionBench
from bench.results_file import Measured, Row, is_wrong, save
from bench.roofline import Ceilings, ReadCeiling, ReadProbe, measure_peaks
from bench.table import WIDTH, make_printer, not_timed_lines, row_tables
from bench.timing import MIN_SAMPLES, Protocol, Subject, Timing, measure

# A set twice the cache leaves a copy no chance to survive a full turn, however the cache replaces its lines.
ROTATION_PER_CACHE = 2
MEMORY_SHARE = 16  # at most 1/16 of the free memory for one implementation's copies


def rotation_target(rotate_mib: int) -> int:
    """Bytes of copies per implementation: past the last-level cache, within the cap and the free memory."""
    wanted = ROTATION_PER_CACHE * machine.last_level_cache_bytes()
    return min(wanted, rotate_mib << 20, machine.available_memory_bytes() // MEMORY_SHARE)


def lamina_isas(wanted: str | None) -> list[str]:
    available: list[str] = torch.ops.lamina.cpu_isas().split(",")
    if wanted is None:
        return [torch.ops.lamina.cpu_isa()]
    chosen = available if wanted == "all" else wanted.split(",")
    for isa in chosen:
        if isa not in available:
            raise BenchError(f"--isa: got {isa!r}; allowed here: {', '.join(available)}, all")
    return chosen


class Runner:
    """Checks and times every implementation of every case, and keeps what all rows share."""

    def __init__(self, op: AnyBench[Any], context: Context, protocol: Protocol) -> None:
        self.op, self.context, self.protocol = op, context, protocol
        self.noise = machine.Noise()
        self.ceilings = Ceilings(context.threads)
        self.measured: list[tuple[Measured, ReadCeiling]] = []
        self._probes: dict[int, ReadProbe] = {}  # by the run_bytes of the work

    def run(self, cases: Sequence[AnyCase], console: Console) -> None:
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task("measuring ceilings", total=len(cases) + 1)
            measure_peaks(self.ceilings, machine.visible_flags())
            for case in cases:
                progress.update(task, advance=1, description=f"{case.op} {case.title()}")
                self._run_case(case)
        self._close_probes()

    def _close_probes(self) -> None:
        for probe in self._probes.values():
            probe.close()
        self._probes.clear()

    def _run_case(self, case: AnyCase) -> None:
        candidates = self.op.candidates(case, self.context)
        probes = self._probes_for(candidates)
        checked = []
        for candidate in candidates:
            if candidate.select:
                candidate.select()
            checked.append(self._row(case, candidate, candidate.check(), None))
        right = [c for c, row in zip(candidates, checked, strict=True) if not row.is_wrong]
        subjects = [Subject(candidate.call, candidate.select) for candidate in right]

        def sample() -> None:
            for probe in probes.values():
                probe.sample()

        timings = iter(measure(subjects, self.protocol, sample) if subjects else [])
        for candidate, row in zip(candidates, checked, strict=True):
            timing = None if row.is_wrong else next(timings)
            ceiling = probes[candidate.work.run_bytes].ceiling
            self.measured.append((self._row(case, candidate, row.accuracy, timing), ceiling))
        sample()

    @staticmethod
    def _row(
        case: AnyCase, candidate: Candidate, accuracy: Accuracy | None, timing: Timing | None
    ) -> Measured:
        ring = candidate.ring
        facts = {
            "computes": candidate.computes,
            "copies": len(ring.copies) if ring else 1,
            "rotation_bytes": ring.nbytes if ring else 0,
            "unsettled_samples": timing.unsettled if timing else None,
            "disturbed_samples": timing.disturbed if timing else None,
            "plan": candidate.plan,
        }
        return Measured(case, candidate.impl, candidate.isa, candidate.work, accuracy, timing, facts)

    def _probes_for(self, candidates: Sequence[Candidate]) -> dict[int, ReadProbe]:
        """By run_bytes. Cold cases share a probe over the largest rotation so far; hot: what a call reads."""
        rotation, found = self.context.rotation, dict[int, ReadProbe]()
        for run_bytes in sorted({candidate.work.run_bytes for candidate in candidates}):
            same = [candidate for candidate in candidates if candidate.work.run_bytes == run_bytes]
            footprint = same[0].work.bytes
            if not rotation.hot:
                footprint = max([rotation.target_bytes, *(c.ring.nbytes for c in same if c.ring)])
            probe = self._probes.get(run_bytes)
            if probe is None or rotation.hot or probe.bytes < footprint:
                if probe is not None:
                    probe.close()
                probe = ReadProbe(self.context.threads, footprint, machine.visible_flags(), run_bytes)
                self._probes[run_bytes] = probe
                self.ceilings.reads.append(probe.ceiling)
            found[run_bytes] = probe
        return found

    def to_json(self) -> dict[str, object]:
        rotation = self.context.rotation
        described = machine.describe()
        described.update(
            threads=self.context.threads,
            hot=rotation.hot,
            rotation_target_bytes=0 if rotation.hot else rotation.target_bytes,
            ceilings=self.ceilings.to_json(),
            protocol=self.protocol.to_json(),
            noise=self.noise.to_json(),
            skipped=self.context.skipped,
        )
        return {"machine": described, "rows": self.rows()}

    def rows(self) -> list[Row]:
        return [row.to_json(self.ceilings, read.best) for row, read in self.measured]


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
) -> dict[str, object]:
    from bench.gpu.device import CudaDevice
    from bench.gpu.runner import DeviceLost, GpuRunner, make_context
    from bench.gpu.timing import GpuProtocol

    device = CudaDevice()
    context = make_context(device.rotation_target(rotate_mib), peers, skip, hot=hot)
    runner = GpuRunner(op, context, GpuProtocol(samples=samples), device)
    try:
        runner.measure_ceilings()
        for case in cases:
            runner.run_case(case)
    except DeviceLost as error:
        click.echo(str(error), err=True)
    return runner.to_json()


def finish(
    result: dict[str, Any], json_path: Path | None, print_conditions: Callable[[], None] = lambda: None
) -> None:
    """Prints, writes, and fails where lamina was wrong."""
    rows: list[Row] = result["rows"]
    show = make_printer()
    for table in row_tables(rows):
        show(table)
    for line in not_timed_lines(rows):
        show(line)
    print_conditions()
    if json_path:
        save(json_path, result)
    if any(is_wrong(row) for row in rows):
        raise click.ClickException("lamina's result is outside its error bound: no speed is printed for it")
    if failed := [row for row in rows if row["impl"] == "lamina" and row["median_us"] is None]:
        raise click.ClickException(f"lamina was not timed: {failed[0]['case'].get('not_timed')}")


def _split(_context: click.Context, _parameter: click.Parameter, text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _sizes(context: click.Context, parameter: click.Parameter, text: str) -> list[int]:
    try:
        return [int(part) for part in _split(context, parameter, text)]
    except ValueError:
        raise click.BadParameter(f"got {text!r}; allowed: whole numbers, comma separated") from None


def require_own_options(op: str, *, is_attention: bool) -> None:
    """Options of the other family of ops are refused, not ignored."""
    context = click.get_current_context()
    products, attention = ("ms", "n", "k", "group", "weight_dtype", "values"), tuple(Options.__annotations__)
    refused = products if is_attention else attention
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        if parameter.name in refused and source is click.core.ParameterSource.COMMANDLINE:
            kind = "products" if is_attention else "paged_attention"
            raise BenchError(f"{parameter.opts[0]}: of {kind}; not an option of {op}")


@click.command(help=f"Times OP beside its peers. OP: {', '.join(op_names())}.")
@click.argument("op")
@click.option("--device", default="cpu", show_default=True, help="cpu | cuda")
@click.option(
    "--m", "ms", default="1,16,64,256", show_default=True, callback=_sizes, help="tokens, comma separated"
)
@click.option("--n", default=4096, show_default=True, help="output features")
@click.option("--k", default=4096, show_default=True, help="input features")
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
    "--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="write the result there"
)
def main(
    op: str,
    device: str,
    ms: list[int],
    n: int,
    k: int,
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
    **attention: Any,
) -> None:
    try:
        chosen = load_op(op)
        require_own_options(op, is_attention=isinstance(chosen, AttentionBench))
        cases: Sequence[AnyCase]
        if isinstance(chosen, AttentionBench):
            cases = chosen.cases(device, dtype, cast(Options, attention))
        else:
            products = make_cases(chosen, device, ms, n, k, dtype, group)
            weights = weight_dtype_of(chosen, weight_dtype)
            cases = [replace(case, values=values, weight_dtype=weights) for case in products]
        check_peers(chosen, device, [*peers, *skip])
        if device == "cuda":
            require_cpu_options_unset(isa, mask_isa, threads, wait_quiet)
            finish(run_on_gpu(chosen, cases, peers, skip, hot, samples, rotate_mib), json_path)
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
        console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
        runner.run(cases, console)
    except (BenchError, isa_mask.IsaMaskError, NativeBuildError, ImportError) as error:
        raise click.ClickException(str(error)) from error
    finish(runner.to_json(), json_path, lambda: _print_conditions(runner, console))


if __name__ == "__main__":
    main()
