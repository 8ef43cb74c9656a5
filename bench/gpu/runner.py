"""Checks and times every implementation of every case on a GPU, by both protocols."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from bench import machine
from bench.cases import Accuracy, AnyBench, AnyCase, Candidate, Context, Rotation
from bench.gpu.ceilings import PEAK_EXTENT, READ_BYTES, GpuReadProbe, measure_gpu_peaks
from bench.gpu.timing import PROTOCOLS, Device, GpuProtocol, GpuSubject, Timed, first_line, measure
from bench.results_file import Measured, Row
from bench.roofline import Ceilings

READ_SAMPLES = (
    10  # at the start; READ_SAMPLES_PER_CASE after every case, so that the ceiling is of the same run
)
READ_SAMPLES_PER_CASE = 3
MAX_COPIES = 256  # of one operand: a longer graph of tiny calls would show nothing more
# The errors that a kernel, a peer or torch may raise for one case; they must not end the run.
CASE_ERRORS = (RuntimeError, ValueError, TypeError, AttributeError)


class DeviceLost(Exception):
    """The CUDA context is unusable, as after an illegal access: only a new process can go on."""


class RunDevice(Device, Protocol):
    def is_alive(self) -> bool: ...

    def release_memory(self) -> None: ...

    def clocks(self) -> dict[str, float]: ...

    def describe(self) -> dict[str, object]: ...


def library_sha256() -> str | None:
    """Identifies the compiled library in use; results of another library are not continued."""
    import lamina

    library = Path(str(lamina.__file__)).parent / "_C.abi3.so"
    return hashlib.sha256(library.read_bytes()).hexdigest() if library.is_file() else None


@dataclass
class Checked:
    """A candidate after its check: an accuracy, or why there is none."""

    candidate: Candidate
    accuracy: Accuracy | None = None
    failure: str | None = None

    @property
    def is_right(self) -> bool:
        if self.accuracy is None:
            return False
        return self.candidate.impl != "lamina" or self.accuracy.over_bound <= 1


class GpuRunner:
    """`earlier`: the content of a result file to continue; its rows are kept as they are."""

    def __init__(
        self,
        op: AnyBench[Any],
        context: Context,
        protocol: GpuProtocol,
        device: RunDevice,
        earlier: dict[str, Any] | None = None,
    ) -> None:
        self.op, self.context, self.protocol, self.device = op, context, protocol, device
        self.noise = machine.Noise()
        self.ceilings = Ceilings(context.threads)
        self.measured: list[Measured] = []
        self.clocks: list[dict[str, object]] = []
        self._earlier = earlier or {"machine": {}, "rows": []}
        self._probe: GpuReadProbe | None = None
        self._operands: tuple[object, ...] | None = None
        self._machine = machine.describe()
        self._library = library_sha256()

    def measure_ceilings(
        self, torch_device: str = "cuda", nbytes: int = READ_BYTES, extent: int = PEAK_EXTENT
    ) -> None:
        self._probe = GpuReadProbe(self.ceilings, torch_device, nbytes)
        self._probe.sample(self.device, READ_SAMPLES)
        measure_gpu_peaks(self.ceilings, self.device, torch_device, extent)
        self.clocks.append({"after": "ceilings", **self.device.clocks()})

    def is_done(self, case: AnyCase) -> bool:
        """Whether the earlier file has the case, and lamina's time."""
        rows = [row for row in self._earlier["rows"] if is_of(row, case)]
        return bool(rows) and not _lacks_time(rows)

    def has_failed_before(self, case: AnyCase) -> bool:
        return _lacks_time([row for row in self._earlier["rows"] if is_of(row, case)])

    def run_case(self, case: AnyCase) -> None:
        """Adds the case's rows. Raises DeviceLost after adding them."""
        self._earlier["rows"] = [row for row in self._earlier["rows"] if not is_of(row, case)]
        if self._operands != case.operands:
            self.context.rotation.clear()
            self.device.release_memory()
            self._operands = case.operands
        self.context.skipped.clear()
        try:
            candidates = self.op.candidates(case, self.context)
        except CASE_ERRORS as error:
            self._add_missing(case, "lamina", first_line(error))
            self._require_alive()
            return
        checked = [self._check(candidate) for candidate in candidates]
        self._time(case, checked)
        for impl, why in self.context.skipped.items():
            self._add_missing(case, impl, why)
        self._require_alive()
        if self._probe:
            self._probe.sample(self.device, READ_SAMPLES_PER_CASE)

    def _check(self, candidate: Candidate) -> Checked:
        try:
            return Checked(candidate, candidate.check())
        except CASE_ERRORS as error:
            return Checked(candidate, failure=first_line(error))

    def _time(self, case: AnyCase, checked: list[Checked]) -> None:
        right = [entry for entry in checked if entry.is_right]
        subjects = [
            GpuSubject(c.call, len(c.ring.copies) if c.ring else 1)
            for c in (entry.candidate for entry in right)
        ]
        clocks: dict[str, object] = {}

        def halfway() -> None:
            clocks.update(self.device.clocks())

        results = [Timed() for _ in right]
        try:
            if subjects:
                results = measure(subjects, self.protocol, self.device, halfway)
        except CASE_ERRORS as error:
            for entry in right:
                entry.failure = first_line(error)
        timed = {id(entry): result for entry, result in zip(right, results, strict=True)}
        for entry in checked:
            result = timed.get(id(entry), Timed())
            for protocol in PROTOCOLS:
                self.measured.append(self._row(case, entry, result, protocol, clocks))
        if clocks:
            self.clocks.append({"after": case.title(), **clocks})

    def _row(
        self, case: AnyCase, entry: Checked, result: Timed, protocol: str, clocks: dict[str, object]
    ) -> Measured:
        candidate, accuracy = entry.candidate, entry.accuracy
        timing = result.timings.get(protocol)
        why = result.not_timed.get(protocol) or entry.failure
        if protocol == "graph" and timing and candidate.check_output:
            try:  # a kernel on another stream than the captured one would show here
                accuracy = candidate.check_output(result.graph_output)
            except CASE_ERRORS as error:
                accuracy, timing, why = None, None, first_line(error)
            if accuracy and not accuracy.over_bound <= 1:
                timing, why = None, "the replayed graph left a wrong result"
        ring = candidate.ring
        copies = len(ring.copies) if ring else 1
        # A graph shorter than one turn of the copies reads the first ones only.
        read = min(copies, timing.calls) if timing and protocol == "graph" else copies
        facts: dict[str, object] = {
            "protocol": protocol,
            "computes": candidate.computes,
            "copies": copies,
            "rotation_bytes": ring.nbytes // copies * read if ring else 0,
            "clocks": {key: value for key, value in clocks.items() if key != "t_s"} or None,
            "plan": candidate.plan or None,
            "not_timed": None if timing else why or "outside its error bound",
        }
        return Measured(case, candidate.impl, None, candidate.work, accuracy, timing, facts)

    def _add_missing(self, case: AnyCase, impl: str, why: str) -> None:
        self.measured.extend(_without_time(case, impl, why))

    def note_unfinished(self, case: AnyCase, why: str) -> None:
        """Adds rows without a time, with the reason `why`, for a case that did not end in an earlier run."""
        kept = [row for row in self._earlier["rows"] if not is_of(row, case)]
        noted = _without_time(case, "lamina", why)
        self._earlier["rows"] = kept + [row.to_json(self.ceilings, float("inf")) for row in noted]

    def _require_alive(self) -> None:
        if not self.device.is_alive():
            raise DeviceLost("the CUDA context is lost: the rest needs a new process")

    def new_rows(self) -> list[Row]:
        read = max((read.best for read in self.ceilings.reads if read.samples), default=float("inf"))
        return [row.to_json(self.ceilings, read) for row in self.measured]

    def rows(self) -> list[Row]:
        return [*self._earlier["rows"], *self.new_rows()]

    def to_json(self) -> dict[str, object]:
        rotation = self.context.rotation
        before = self._earlier["machine"]
        earlier_runs = list(before.get("earlier_runs", []))
        if before:
            earlier_runs.append({key: before.get(key) for key in ("date", "ceilings", "clocks", "noise")})
        described = {
            **self._machine,
            "threads": self.context.threads,
            "hot": rotation.hot,
            "rotation_target_bytes": 0 if rotation.hot else rotation.target_bytes,
            "gpu": self.device.describe(),
            "library_sha256": self._library,
            "ceilings": self.ceilings.to_json(),
            "protocol": self.protocol.to_json(),
            "noise": self.noise.to_json(),
            "clocks": self.clocks,
            "earlier_runs": earlier_runs,
        }
        return {"machine": described, "rows": self.rows()}

    def has_failed(self) -> bool:
        """Whether a lamina row has no time."""
        return _lacks_time(self.rows())


def _without_time(case: AnyCase, impl: str, why: str) -> list[Measured]:
    facts = [{"protocol": protocol, "not_timed": why} for protocol in PROTOCOLS]
    return [Measured(case, impl, None, None, None, None, fact) for fact in facts]


def is_of(row: Row, case: AnyCase) -> bool:
    return row["op"] == case.op and all(
        row["case"].get(key) == value for key, value in case.to_json().items()
    )


def _lacks_time(rows: Sequence[Row]) -> bool:
    return any(row["impl"] == "lamina" and row["median_us"] is None for row in rows)


def make_context(target_bytes: int, peers: Sequence[str], skip: Sequence[str], *, hot: bool) -> Context:
    return Context(Rotation(hot, target_bytes, MAX_COPIES), torch.get_num_threads(), (), peers, skip)
