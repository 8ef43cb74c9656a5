"""Times one op over several weights on the GPU and keeps a result file current: a stage of gpu_check.py.

    python bench/gpu/suite.py gemm_int8 --m 1,16 --shapes 4096x4096,6144x4096 --json F [--seconds 60]
    python bench/gpu/suite.py paged_attention --cases "scenario=decode batch=32; scenario=prefill" --json F

The file is written before and after every case, and a second run continues it. Needs neither click nor rich.
Cases go last that failed or did not end in an earlier run, and those whose kernel is not right by --smoke.
Exit status: 0 done; 1 lamina failed a check; 3 the CUDA context was lost, run again; 4 out of --seconds;
5 --smoke found no kernel of the op to be right.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file: make `bench` importable, from the checkout
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from bench.attention.cases import parse_options
from bench.cases import AnyCase, BenchError, check_peers, make_cases, op_names, parse_sizes, weight_dtype_of
from bench.gpu import target as targets
from bench.gpu import verdicts
from bench.gpu.plans import kernel_of
from bench.gpu.runner import DeviceLost, GpuRunner, library_sha256, make_context
from bench.gpu.stages import EXIT_FAILED, EXIT_LOST, EXIT_NO_TIME, EXIT_NOTHING
from bench.results_file import save

RUNNING = "running"  # key in the file of the case that runs; it stays there if the process dies in the case


def parse_shapes(text: str) -> list[tuple[int, int, int | None]]:
    """ "6144x4096,4096x4096g128" as [(n, k, group or None), ...]."""
    found = [re.fullmatch(r"(\d+)x(\d+)(?:g(\d+))?", part) for part in text.split(",") if part]
    if not found or None in found:
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: NxK or NxKgGROUP, comma separated")
    shapes = [match.groups() for match in found if match]
    return [(int(n), int(k), int(group) if group else None) for n, k, group in shapes]


def sizes(text: str) -> list[int]:
    try:
        return parse_sizes(text)
    except BenchError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="bench/gpu/suite.py"
    )
    made.add_argument("op", choices=op_names())
    made.add_argument("--m", type=sizes, default=[1, 16, 64, 256, 1024, 4096])
    made.add_argument("--shapes", type=parse_shapes, default=[], help="NxK or NxKgGROUP, comma separated")
    made.add_argument("--cases", help="of paged_attention: options of bench/run.py as NAME=VALUE; ...")
    made.add_argument("--dtype", default="bf16", help="of activations or output")
    made.add_argument("--weight-dtypes", default="", help="of an op with several, comma separated")
    made.add_argument("--peers", default="all", help="names, comma separated; all or none")
    made.add_argument("--values", choices=("normal", "uniform"), default="normal")
    made.add_argument("--samples", type=int, default=50)
    made.add_argument("--rotate-mib", type=int, default=1024, help="most memory for copies, each")
    made.add_argument(
        "--seconds", type=float, default=float("inf"), help="start no case that would end later"
    )
    made.add_argument("--smoke", type=Path, help="verdicts of the kernels")
    made.add_argument("--json", type=Path, required=True, help="result file, continued if it is there")
    return made


def earlier_result(path: Path, library: str | None, gpu: str) -> dict[str, Any] | None:
    """The file to continue: of the same library on the same GPU. None starts a new one."""
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        machine = content["machine"]
        same = machine["library_sha256"] == library and machine["gpu"]["name"] == gpu
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return content if same and library is not None else None


def run_cases(
    runner: GpuRunner,
    cases: Sequence[AnyCase],
    path: Path,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
    start: float | None = None,
    bad: Collection[str] = (),
) -> int:
    """Runs the cases that the earlier file lacks, while there is time; returns the exit status."""
    start = clock() if start is None else start
    longest = 0.0
    status = 0
    # Cases that failed before go last: one that loses the CUDA context must not keep the others from running.
    ordered = sorted(
        dict.fromkeys(cases), key=lambda case: (runner.has_failed_before(case), kernel_of(case) in bad)
    )
    save(path, runner.to_json())  # includes the rows of a case in which an earlier run ended
    for number, case in enumerate(ordered):
        began = clock()
        if runner.is_done(case):
            continue
        # The next case may be larger than any before: half as long again as the longest.
        if began - start + 1.5 * longest > seconds:
            print(f"out of time after {number} of {len(ordered)} cases; a second run continues", flush=True)
            status = EXIT_NO_TIME
            break
        print(f"{case.title()} ...", flush=True)
        save(path, {**runner.to_json(), RUNNING: case.to_json()})
        try:
            runner.run_case(case)
        except DeviceLost as error:
            status = EXIT_LOST
            print(f"{case.title()}: {error}", flush=True)
            break
        finally:
            save(path, runner.to_json())
        longest = max(longest, clock() - began)
        print(f"{case.title()}  {_line(runner, case)}  ({clock() - began:.1f} s)", flush=True)
    if status in (0, EXIT_NO_TIME) and runner.has_failed():
        return EXIT_FAILED
    return status


def _line(runner: GpuRunner, case: AnyCase) -> str:
    """The case's times in a line, in microseconds: graph / do_bench."""
    times: dict[str, list[str]] = {}
    for row in runner.measured:
        if row.case == case:
            times.setdefault(row.impl, []).insert(0, f"{row.timing.median_us:.1f}" if row.timing else "-")
    return "  ".join(f"{impl} {' / '.join(found)}" for impl, found in times.items())


def wanted_cases(op: Any, where: str, wanted: argparse.Namespace) -> list[AnyCase]:
    is_attention = wanted.op == "paged_attention"
    if is_attention != bool(wanted.cases) or is_attention == bool(wanted.shapes):
        raise BenchError("paged_attention has --cases; the other ops have --shapes")
    if is_attention:
        return [
            case for options in parse_options(wanted.cases) for case in op.cases(where, wanted.dtype, options)
        ]
    weights = [weight_dtype_of(op, kind or None) for kind in wanted.weight_dtypes.split(",")]
    return [
        replace(case, values=wanted.values, weight_dtype=kind)
        for n, k, group in wanted.shapes
        for kind in weights
        for case in make_cases(op, where, wanted.m, [(n, k)], wanted.dtype, group)
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    start = time.monotonic()
    wanted = parser().parse_args(arguments)
    try:
        target = targets.load()
        op, where = target.bench_op(wanted.op), target.torch_device
        peers = {"all": list(op.peers_on(where)), "none": []}.get(wanted.peers, wanted.peers.split(","))
        check_peers(op, where, peers)
        cases = wanted_cases(op, where, wanted)
        device = target.bench_device()
        protocol = target.protocol(wanted.samples)
    except (BenchError, ValueError) as error:
        print(error, file=sys.stderr)
        return EXIT_FAILED
    smoke = [v for v in verdicts.load(wanted.smoke) if v.suite == wanted.op]
    if smoke and all(verdict.verdict != verdicts.RIGHT for verdict in smoke):
        print(f"no kernel of {wanted.op} is right: {smoke[0].name} is {smoke[0].verdict}")
        return EXIT_NOTHING
    context = make_context(target.rotation_bytes(device, wanted.rotate_mib), peers, (), hot=False)
    earlier = earlier_result(wanted.json, library_sha256(), str(device.describe()["name"]))
    runner = GpuRunner(op, context, protocol, device, earlier)
    for case in cases:
        if earlier and case.to_json() == earlier.get(RUNNING):
            runner.note_unfinished(case, "an earlier run ended in this case: it hung, or the time was over")
    if all(runner.is_done(case) for case in cases):
        print("every case is in the file already")
        return 0
    target.measure_ceilings(runner)
    print(f"ceilings after {time.monotonic() - start:.1f} s", flush=True)
    bad = {verdict.name for verdict in smoke if not verdict.is_fine}
    return run_cases(runner, cases, wanted.json, wanted.seconds, start=start, bad=bad)


if __name__ == "__main__":
    exit_status = main()
    sys.stdout.flush()
    if exit_status == EXIT_LOST:
        os._exit(exit_status)  # what tears CUDA down may abort, and hide the status
    sys.exit(exit_status)
