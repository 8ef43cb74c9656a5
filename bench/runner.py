"""Checks and times every implementation of every case on a CPU, and keeps the results while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import Progress

from bench import machine
from bench.cases import Accuracy, AnyBench, AnyCase, Candidate, Context
from bench.gpu.runner import DeviceLost, GpuRunner
from bench.results_file import Measured, Row, save
from bench.roofline import Ceilings, ReadCeiling, ReadProbe, measure_peaks
from bench.timing import Protocol, Subject, Timing, measure, settle

# A set twice the cache leaves a copy no chance to survive a full turn, however the cache replaces its lines.
ROTATION_PER_CACHE = 2
MEMORY_SHARE = 16  # at most 1/16 of the free memory for one implementation's copies
PEAK_SAMPLES, PEAK_SAMPLES_PER_CASE = 24, 4  # of the arithmetic ceilings: at the start, and after every case
# A row above it has met a ceiling of a bad moment, or its bytes or operations are counted wrong.
MOST_OF_ROOFLINE = 1.02
MORE_CEILINGS = 3  # times that the ceilings are measured again because of such rows
MORE_READ_SAMPLES = 30


def rotation_target(rotate_mib: int) -> int:
    """Bytes of copies per implementation: past the last-level cache, within the cap and the free memory."""
    wanted = ROTATION_PER_CACHE * machine.last_level_cache_bytes()
    return min(wanted, rotate_mib << 20, machine.available_memory_bytes() // MEMORY_SHARE)


class Runner:
    """Checks and times every implementation of every case, and keeps what all rows share."""

    def __init__(self, op: AnyBench[Any], context: Context, protocol: Protocol) -> None:
        self.op, self.context, self.protocol = op, context, protocol
        self.noise = machine.Noise()
        self.ceilings = Ceilings(context.threads)
        self.measured: list[tuple[Measured, ReadCeiling]] = []
        self._machine = machine.describe()
        self._operands: tuple[object, ...] | None = None
        self._probes: dict[int, ReadProbe] = {}  # by the run_bytes of the work

    def measure_ceilings(self, samples: int = PEAK_SAMPLES) -> None:
        settle(self.protocol.settle_s)
        measure_peaks(self.ceilings, machine.visible_flags(), samples)

    def close(self) -> None:
        """Measures the ceilings again while a row is above them, and frees the memory."""
        self._close_probes()
        self.context.rotation.clear()
        for _ in range(MORE_CEILINGS):
            if not (above := self._above_roofline()):
                break
            self.measure_ceilings()
            for read, run_bytes in {id(read): (read, row.run_bytes) for row, read, _ in above}.values():
                flags = machine.visible_flags()
                probe = ReadProbe(self.context.threads, read.footprint_bytes, flags, run_bytes, read)
                for _ in range(MORE_READ_SAMPLES):
                    probe.sample()
                probe.close()

    def _above_roofline(self) -> list[tuple[Measured, ReadCeiling, float]]:
        """The rows above MOST_OF_ROOFLINE, and their fractions."""
        fractions = [row["roofline_fraction"] or 0.0 for row in self.rows()]
        found = zip(self.measured, fractions, strict=True)
        return [(row, read, part) for (row, read), part in found if part > MOST_OF_ROOFLINE]

    def untrusted(self) -> list[str]:
        """Why the rooflines of this run are in doubt. Caches serve the calls of a hot run, which may pass."""
        if self.context.rotation.hot:
            return []
        return [
            f"{row.case.title()}: {row.impl} ({row.isa or 'peer'}) has {part:.1%} of its roofline"
            for row, _, part in self._above_roofline()
        ]

    def _close_probes(self) -> None:
        for probe in self._probes.values():
            probe.close()
        self._probes.clear()

    def run_case(self, case: AnyCase) -> None:
        """Adds the rows of the case, all of them or none."""
        if self._operands != case.operands:
            self.context.rotation.clear()
            self._operands = case.operands
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
        sample()
        self.measure_ceilings(PEAK_SAMPLES_PER_CASE)
        found = []
        for candidate, row in zip(candidates, checked, strict=True):
            timing = None if row.is_wrong else next(timings)
            ceiling = probes[candidate.work.run_bytes].ceiling
            found.append((self._row(case, candidate, row.accuracy, timing), ceiling))
        self.measured += found

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
        described = dict(self._machine)
        described.update(
            threads=self.context.threads,
            hot=rotation.hot,
            rotation_target_bytes=0 if rotation.hot else rotation.target_bytes,
            ceilings=self.ceilings.to_json(),
            protocol=self.protocol.to_json(),
            noise=self.noise.to_json(),
            skipped=self.context.skipped,
        )
        if reasons := self.untrusted():
            described["untrusted"] = reasons
        return {"machine": described, "rows": self.rows()}

    def rows(self) -> list[Row]:
        return [row.to_json(self.ceilings, read.best) for row, read in self.measured]


class Stop(NamedTuple):
    """The early end of a run."""

    why: str
    missing: int
    cases: int
    exit_status: int

    def __str__(self) -> str:
        return f"{self.why}: {self.missing} of {self.cases} cases are missing"


def run_cases(
    runner: Runner | GpuRunner, cases: Sequence[AnyCase], console: Console, json_path: Path | None
) -> Stop | None:
    """Saves the rows after every case. Ctrl-C or the loss of the CUDA context ends the run early."""
    done = 0
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("measuring ceilings", total=len(cases) + 1)
        try:
            runner.measure_ceilings()
            for case in cases:
                progress.update(task, advance=1, description=f"{case.op} {case.title()}")
                runner.run_case(case)
                done += 1
                if json_path:
                    save(json_path, runner.to_json())
            if isinstance(runner, Runner):
                runner.close()
        except KeyboardInterrupt:
            return Stop("interrupted", len(cases) - done, len(cases), 130)
        except DeviceLost as error:
            return Stop(str(error), len(cases) - done, len(cases), 1)
    return None
