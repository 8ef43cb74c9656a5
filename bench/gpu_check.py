"""Tests and measures lamina on this machine's GPU, in one command and a few minutes.

    python bench/gpu_check.py --prepare DIR                         on a machine with nvcc: builds DIR
    python bench/gpu_check.py --out OUT --prebuilt DIR              on the machine with the GPU
    python bench/gpu_check.py --out OUT --prebuilt DIR --resume F   continues; F is gpu_check.tar.gz of a run

The most valuable stages come first: the library, every kernel in its own process (smoke), the tests marked
`gpu`, the device vectors, memcheck, the benchmarks beside torch, the host time of a call, racecheck, more
benchmarks. bench/README.md describes them. OUT gets summary.json and gpu_check.tar.gz (results, logs); a
killed run leaves both usable.
Exit status: 0 nothing failed; 1 a stage failed, or there is no GPU; 2 the request cannot be met.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

if __package__ in (None, ""):  # run as a file: make `bench` importable, from the checkout
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench.gpu.archive import ARCHIVE, ArchiveError, continue_from, publish
from bench.gpu.find import PRETENDED, Gpu, find_gpu
from bench.gpu.prepare import PrepareError, prepare
from bench.gpu.processes import exit_on_sigterm
from bench.gpu.stage_list import ROOT, SUITES, library_file, make_stages
from bench.gpu.stages import FAILED, TIMED_OUT, Outcome, Stage, Watch, last_line, run_stages
from bench.gpu.summary import earlier_outcomes, summary, tables
from bench.table import make_printer

PUBLISH_S = 15.0  # between two updates of OUT within a stage; a rehearsal is shorter
REHEARSED_PUBLISH_S = 1.0


def made_with(prebuilt: Path | None, gpu: Gpu) -> dict[str, str]:
    """The GPU and the library of a run; a run continues only from results of the same two."""
    library = library_file(prebuilt)
    content = library.read_bytes() if library.is_file() else b""
    return {"gpu": gpu.name, "library": hashlib.sha256(content).hexdigest()}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="bench/gpu_check.py"
    )
    made.add_argument("--out", type=Path, help="folder that gets summary.json and gpu_check.tar.gz")
    made.add_argument("--prepare", type=Path, help="build library and vectors into this folder, then end")
    made.add_argument("--prebuilt", type=Path, help="folder made by --prepare; default: this checkout")
    made.add_argument(
        "--resume", type=Path, help="archive of an earlier run; default: the one in --out, if it is there"
    )
    made.add_argument("--fresh", action="store_true", help="do not continue from the archive in --out")
    made.add_argument("--only", choices=sorted(SUITES), help="one op")
    made.add_argument("--minutes", type=float, default=8.0, help="for all stages (default: 8)")
    made.add_argument("--build", action="store_true", help="build this checkout even if it has a library")
    made.add_argument(
        "--dry-run", action="store_true", help="rehearse without a GPU: few kernels on the emulator"
    )
    return made


def check_request(wanted: argparse.Namespace) -> str | None:
    if (wanted.out is None) == (wanted.prepare is None):
        return "give either --out DIR (run) or --prepare DIR (build what a run needs)"
    if wanted.minutes <= 0:
        return f"--minutes: got {wanted.minutes:g}; must be above 0"
    if wanted.prebuilt is not None and wanted.build:
        return "--build: not allowed with --prebuilt"
    if wanted.prebuilt is not None and not library_file(wanted.prebuilt).is_file():
        return f"--prebuilt: {wanted.prebuilt} has no python/lamina/_C.abi3.so"
    if wanted.resume is not None and not wanted.resume.is_file():
        return f"--resume: {wanted.resume} is not a file"
    if wanted.resume is not None and wanted.fresh:
        return "--fresh: not allowed with --resume"
    return None


@dataclass
class Check:
    """One run. `work` is the folder that the archive holds; `out` gets the archive and summary.json."""

    wanted: argparse.Namespace
    gpu: Gpu
    work: Path
    ended: dict[str, Outcome] = field(default_factory=dict)
    published: float = 0.0
    said: str = ""

    def __post_init__(self) -> None:
        self.show = make_printer()
        self.out = Path(self.wanted.out).resolve()
        self.publish_s = REHEARSED_PUBLISH_S if self.wanted.dry_run else PUBLISH_S
        self.made_with = made_with(self.wanted.prebuilt, self.gpu)

    def resume(self) -> None:
        """Fills the working folder from an earlier run. Raises ArchiveError."""
        archive = self.wanted.resume or self.out / ARCHIVE
        if self.wanted.fresh or self.wanted.build or not archive.is_file():
            return
        if why_not := continue_from(archive, self.work, self.made_with):
            self.show(f"{archive} is not resumed: {why_not}")
            return
        self.ended = earlier_outcomes(self.work)
        self.show(f"{archive} is resumed: {len(self.ended)} stages")

    def publish(self) -> None:
        publish(self.work, self.out, summary(self.work, self.made_with, list(self.ended.values())))
        self.published = time.monotonic()

    def begun(self, stage: Stage, limit_s: float) -> None:
        self.show(f"{stage.name}: at most {limit_s:.0f} s")

    def tick(self, log: Path) -> None:
        if time.monotonic() - self.published < self.publish_s:
            return
        self.publish()
        if (line := last_line(log.read_text(errors="replace"))) not in ("", self.said):
            self.said = line
            self.show(f"  {log.stem}: {line}")

    def stage_ended(self, outcome: Outcome) -> None:
        self.ended[outcome.name] = outcome
        self.show(f"{outcome.name}: {outcome.status} after {outcome.seconds:.0f} s  {outcome.detail}")
        self.made_with = made_with(self.wanted.prebuilt, self.gpu)  # the stage `build` makes a library
        self.publish()

    def run(self) -> int:
        self.show(f"GPU: {self.gpu.name}, {self.gpu.arch}; results in {self.out}")
        self.out.mkdir(parents=True, exist_ok=True)
        self.resume()
        watch = Watch(self.begun, self.tick, self.stage_ended, min(1.0, self.publish_s))
        stages, seconds = make_stages(self.wanted, self.gpu, self.work), self.wanted.minutes * 60
        try:
            outcomes = run_stages(stages, self.work, ROOT, seconds, dict(self.ended), watch)
        except (KeyboardInterrupt, SystemExit):
            self.publish()
            self.show("stopped: what has ended is in the archive, and --resume goes on with it")
            raise
        for item in tables(self.work, outcomes):
            self.show(item)
        return 1 if any(outcome.status in (FAILED, TIMED_OUT) for outcome in outcomes) else 0


def main(arguments: Sequence[str] | None = None) -> int:
    wanted = parser().parse_args(arguments)
    if problem := check_request(wanted):
        print(problem, file=sys.stderr)
        return 2
    if wanted.prepare is not None:
        try:
            prepare(wanted.prepare.resolve(), build=wanted.build)
        except PrepareError as error:
            print(error, file=sys.stderr)
            return 1
        return 0
    gpu = PRETENDED if wanted.dry_run else find_gpu()
    if isinstance(gpu, str):
        print(f"no GPU: {gpu}", file=sys.stderr)
        return 1
    exit_on_sigterm()
    work = Path(tempfile.mkdtemp(prefix="lamina_gpu_check_"))
    try:
        return Check(wanted, gpu, work).run()
    except ArchiveError as error:
        print(f"--resume: {error}", file=sys.stderr)
        return 2
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
