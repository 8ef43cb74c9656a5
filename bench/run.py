"""Times lamina's ops beside their peers: `python bench/run.py OP ...`; a table, and JSON on request."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

if __package__ in (None, ""):  # run as a file: make `bench` importable, from the checkout
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import click
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench import isa_mask, machine
from bench.allocator import keep_freed_memory
from bench.cases import (
    Accuracy,
    BenchError,
    Candidate,
    Case,
    Context,
    OpBench,
    Rotation,
    check_peers,
    finite,
    load_op,
    make_cases,
    op_names,
)
from bench.native.build import NativeBuildError
from bench.roofline import Ceilings, ReadCeiling, ReadProbe, floor_seconds, measure_peaks
from bench.timing import MIN_SAMPLES, Protocol, Subject, Timing, measure

# A set twice the cache leaves a copy no chance to survive a full turn, however the cache replaces its lines.
ROTATION_PER_CACHE = 2
WIDTH = 130  # of a table that goes to a file or a pipe
MEMORY_SHARE = 16  # at most 1/16 of the free memory for one implementation's copies


@dataclass(frozen=True)
class Measured:
    """One row before the ceilings are final. No timing: the check failed, and a wrong result has no speed."""

    case: Case
    candidate: Candidate
    accuracy: Accuracy
    timing: Timing | None
    read: ReadCeiling

    @property
    def is_wrong(self) -> bool:
        return self.candidate.impl == "lamina" and not self.accuracy.over_bound <= 1

    def to_json(self, ceilings: Ceilings) -> dict[str, object]:
        candidate, work = self.candidate, self.candidate.work
        ring = candidate.ring
        facts = {
            "isa": candidate.isa,
            "computes": candidate.computes,
            "bytes": work.bytes,
            "ops": work.ops,
            "copies": len(ring.copies) if ring else 1,
            "rotation_bytes": ring.nbytes if ring else 0,
            "max_error": finite(self.accuracy.max_error),
            "calls_per_sample": self.timing.calls if self.timing else None,
            "unsettled_samples": self.timing.unsettled if self.timing else None,
            "disturbed_samples": self.timing.disturbed if self.timing else None,
            "plan": candidate.plan,
        }
        seconds = self.timing.median_us * 1e-6 if self.timing else None
        peak = ceilings.peak(work.arithmetic, candidate.isa)
        floor = floor_seconds(work, self.read.best, peak)
        return {
            "op": self.case.op,
            "impl": candidate.impl,
            "device": self.case.device,
            "case": {
                **self.case.to_json(),
                **{name: fact for name, fact in facts.items() if fact is not None},
            },
            "median_us": self.timing.median_us if self.timing else None,
            "iqr_us": self.timing.iqr_us if self.timing else None,
            "gb_per_s": work.bytes / seconds / 1e9 if seconds else None,
            "ops_per_s": work.ops / seconds if seconds else None,
            "roofline_fraction": floor / seconds if seconds else None,
            "error_over_bound": finite(self.accuracy.over_bound),
        }


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

    def __init__(self, op: OpBench, context: Context, protocol: Protocol) -> None:
        self.op, self.context, self.protocol = op, context, protocol
        self.noise = machine.Noise()
        self.ceilings = Ceilings(context.threads)
        self.measured: list[Measured] = []
        self._probe: ReadProbe | None = None

    def run(self, cases: list[Case], console: Console) -> None:
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task("measuring ceilings", total=len(cases) + 1)
            measure_peaks(self.ceilings, machine.visible_flags())
            for case in cases:
                progress.update(task, advance=1, description=f"{case.op} {case.title()}")
                self._run_case(case)
        if self._probe:
            self._probe.close()

    def _run_case(self, case: Case) -> None:
        candidates = self.op.candidates(case, self.context)
        probe = self._probe_for(candidates[0])
        accuracies = []
        for candidate in candidates:
            if candidate.select:
                candidate.select()
            accuracies.append(candidate.check())
        checked = zip(candidates, accuracies, strict=True)
        rows = [Measured(case, candidate, accuracy, None, probe.ceiling) for candidate, accuracy in checked]
        right = [row for row in rows if not row.is_wrong]
        subjects = [Subject(row.candidate.call, row.candidate.select) for row in right]
        timings = iter(measure(subjects, self.protocol, probe.sample) if subjects else [])
        for row in rows:
            timing = None if row.is_wrong else next(timings)
            self.measured.append(Measured(case, row.candidate, row.accuracy, timing, row.read))
        probe.sample()

    def _probe_for(self, candidate: Candidate) -> ReadProbe:
        """Cold cases share one probe over the rotation's size; a hot case reads as much as one call does."""
        rotation = self.context.rotation
        if self._probe and not rotation.hot:
            return self._probe
        if self._probe:
            self._probe.close()
        footprint = candidate.work.bytes if rotation.hot else rotation.target_bytes
        self._probe = ReadProbe(self.context.threads, footprint, machine.visible_flags())
        self.ceilings.reads.append(self._probe.ceiling)
        return self._probe

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
        return {"machine": described, "rows": [row.to_json(self.ceilings) for row in self.measured]}


def _cell(value: object, form: str) -> str:
    return format(value, form) if isinstance(value, (int, float)) else "-"


def print_tables(result: dict[str, object], runner: Runner, console: Console) -> None:
    """One table per case. `time / lamina` above 1: lamina is faster than that row."""
    rows = [(measured, measured.to_json(runner.ceilings)) for measured in runner.measured]
    for case in dict.fromkeys(measured.case for measured, _ in rows):
        table = Table(title=f"{case.op}  {case.device}  {case.title()}", title_justify="left")
        table.add_column("impl")
        table.add_column("isa")
        for heading in (
            "median us",
            "iqr us",
            "GB/s",
            "GOP/s",
            "roofline",
            "max error",
            "error/bound",
            "time / lamina",
        ):
            table.add_column(heading, justify="right")
        mine = [(measured, row) for measured, row in rows if measured.case == case]
        lamina = [measured for measured, _ in mine if measured.candidate.impl == "lamina"]
        times = [measured.timing.median_us for measured in lamina if measured.timing]
        for measured, row in mine:
            ratio = measured.timing.median_us / min(times) if measured.timing and times else None
            ops = row["ops_per_s"]
            error = "[red]wrong: not timed[/]" if measured.is_wrong else _cell(row["error_over_bound"], ".3g")
            table.add_row(
                measured.candidate.impl,
                measured.candidate.isa or "",
                _cell(row["median_us"], ",.1f"),
                _cell(row["iqr_us"], ",.1f"),
                _cell(row["gb_per_s"], ".1f"),
                _cell(ops / 1e9 if isinstance(ops, float) else None, ",.1f"),
                _cell(row["roofline_fraction"], ".1%"),
                _cell(measured.accuracy.max_error, ".3g"),
                error,
                _cell(ratio, ".2f"),
                style="bold" if measured.candidate.impl == "lamina" else None,
            )
        console.print(table)
    _print_conditions(runner, console)


def _print_conditions(runner: Runner, console: Console) -> None:
    context, noise = runner.context, runner.noise.to_json()
    rotation = "hot" if context.rotation.hot else f"{context.rotation.target_bytes >> 20} MiB of copies each"
    level = isa_mask.active_level()
    mask = f"; instruction sets above {level} hidden from this process" if level else ""
    console.print(f"{context.threads} threads; {rotation}{mask}")
    for read in runner.ceilings.reads:
        console.print(f"read ceiling  {read.best / 1e9:.1f} GB/s over {read.footprint_bytes / 2**20:.1f} MiB")
    for kind, sets in runner.ceilings.ops_per_s.items():
        peaks = ", ".join(f"{isa} {ops / 1e9:,.0f}" for isa, ops in sets.items())
        console.print(f"{kind} ceiling  {peaks} GOP/s")
    for impl, why in context.skipped.items():
        console.print(f"[yellow]no row for {impl}: {why}[/]")
    timings = [row.timing for row in runner.measured if row.timing]
    disturbed = sum(timing.disturbed for timing in timings)
    if disturbed > len(timings) * runner.protocol.samples // 10:
        of_all = f"{disturbed} of {len(timings) * runner.protocol.samples} samples"
        console.print(f"[yellow]{of_all} were disturbed by other processes: see --wait-quiet[/]")
    if noise["cores_used_by_others"] > 0.05 or noise["cores_stolen"] > 0.02:
        console.print(
            f"[yellow]not quiet: others used {noise['cores_used_by_others']:.2f} cores, "
            f"the hypervisor took {noise['cores_stolen']:.2f}[/]"
        )


def _split(_context: click.Context, _parameter: click.Parameter, text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _sizes(context: click.Context, parameter: click.Parameter, text: str) -> list[int]:
    try:
        return [int(part) for part in _split(context, parameter, text)]
    except ValueError:
        raise click.BadParameter(f"got {text!r}; allowed: whole numbers, comma separated") from None


@click.command(help=f"Times OP beside its peers. OP: {', '.join(op_names())}.")
@click.argument("op")
@click.option("--device", default="cpu", show_default=True, help="cpu | cuda")
@click.option(
    "--m", "ms", default="1,16,64,256", show_default=True, callback=_sizes, help="tokens, comma separated"
)
@click.option("--n", default=4096, show_default=True, help="output features")
@click.option("--k", default=4096, show_default=True, help="input features")
@click.option("--group", type=int, help="weight group along k, for ops that have one")
@click.option("--dtype", help="of activations and output: f32 | bf16 | f16")
@click.option(
    "--values",
    type=click.Choice(["normal", "uniform"]),
    default="normal",
    show_default=True,
    help="int8 operands: normal ones, quantised to their maximum as in a model, or uniform over the range",
)
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
) -> None:
    try:
        chosen = load_op(op)
        cases = [replace(case, values=values) for case in make_cases(chosen, device, ms, n, k, dtype, group)]
        check_peers(chosen, [*peers, *skip])
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
    result = runner.to_json()
    print_tables(result, runner, console)
    if json_path:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    if any(row.is_wrong for row in runner.measured):
        raise click.ClickException("lamina's result is outside its error bound: no speed is printed for it")


if __name__ == "__main__":
    main()
