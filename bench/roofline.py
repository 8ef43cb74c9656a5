"""Measured ceilings of this machine, and the arithmetic that sets a kernel's time against them.

A ceiling is the best of many short samples: what the machine has shown it can do, by code that is neither
lamina's nor torch's, and not by a data sheet.
"""

from __future__ import annotations

import ctypes
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from bench.native.build import NATIVE, NativeBuildError, build_shared

Arithmetic = Literal["int8", "f32", "bf16", "none"]
# Instructions of any kind that a vector port executes; shuffles and multiplications, which fewer ports do.
Issue = Literal["vector", "shuffle", "multiply"]
PAGE_BYTES = 4096


@dataclass(frozen=True)
class Peak:
    """One way to do one kind of arithmetic: the macro of peak.c, compiler flags, CPU flags it needs.

    The rates of "vector" and "shuffle" are instructions a second, the others operations.
    """

    arithmetic: Arithmetic | Issue
    isa: str
    macro: str
    flags: tuple[str, ...]
    needs: tuple[str, ...]


# Ascending in speed within one arithmetic. The isa names of int8 are those of lamina's kernels.
PEAKS = (
    Peak("int8", "generic", "SSE2_INT8", (), ("sse2",)),
    Peak("int8", "avx2", "AVX2_INT8", ("-mavx2",), ("avx2",)),
    Peak("int8", "avx_vnni", "AVX_VNNI_INT8", ("-mavx2", "-mavxvnni"), ("avx_vnni",)),
    Peak(
        "int8", "avx512_vnni", "AVX512_VNNI_INT8", ("-mavx512f", "-mavx512vnni"), ("avx512f", "avx512_vnni")
    ),
    Peak("int8", "amx_int8", "AMX_INT8", ("-mamx-tile", "-mamx-int8"), ("amx_tile", "amx_int8")),
    Peak("f32", "generic", "SSE2_F32", (), ("sse2",)),
    Peak("f32", "avx2", "AVX2_F32", ("-mavx2", "-mfma"), ("avx2", "fma")),
    Peak("f32", "avx512", "AVX512_F32", ("-mavx512f",), ("avx512f",)),
    Peak("bf16", "avx512_bf16", "AVX512_BF16", ("-mavx512f", "-mavx512bf16"), ("avx512f", "avx512_bf16")),
    Peak("bf16", "amx_bf16", "AMX_BF16", ("-mamx-tile", "-mamx-bf16"), ("amx_tile", "amx_bf16")),
    Peak("vector", "avx2", "AVX2_VECTOR", ("-mavx2",), ("avx2",)),
    Peak("vector", "avx512", "AVX512_VECTOR", ("-mavx512f",), ("avx512f",)),
    Peak("shuffle", "avx2", "AVX2_SHUFFLE", ("-mavx2",), ("avx2",)),
    Peak("shuffle", "avx512", "AVX512_SHUFFLE", ("-mavx512f",), ("avx512f",)),
)


LANES = {"avx2": 8, "avx512": 16}  # of f32

# The instruction set whose arithmetic each of lamina's uses where it has none of its own.
LOWER = {"amx_int8": "avx512", "amx_bf16": "avx512", "avx512_bf16": "avx512_vnni", "avx512_vnni": "avx512"}


def _downwards(isa: str) -> Iterator[str]:
    """The instruction set, then those below."""
    yield isa
    while isa in LOWER:
        isa = LOWER[isa]
        yield isa


@dataclass
class ReadCeiling:
    """Read bandwidth over one footprint: what fits a cache reads faster than what does not."""

    footprint_bytes: int
    samples: list[float] = field(default_factory=list)  # bytes per second
    probe: str = ""  # what reads, where there is a choice

    @property
    def best(self) -> float:
        return max(self.samples)

    def to_json(self) -> dict[str, object]:
        return {
            "footprint_bytes": self.footprint_bytes,
            "gb_per_s": self.best / 1e9,
            "gb_per_s_median": statistics.median(self.samples) / 1e9,
            "samples": len(self.samples),
            **({"probe": self.probe} if self.probe else {}),
        }


@dataclass
class Ceilings:
    """The rates that `threads` threads reached. ops_per_s is keyed by arithmetic, then instruction set."""

    threads: int
    reads: list[ReadCeiling] = field(default_factory=list)
    ops_per_s: dict[str, dict[str, float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def peak(self, arithmetic: Arithmetic | Issue, isa: str | None = None) -> float | None:
        """The peak on `isa`, or the best measured; bf16 without its own instructions is computed in f32."""
        measured = self.ops_per_s.get(arithmetic, {})
        if isa is not None:
            return next((measured[name] for name in _downwards(isa) if name in measured), None)
        if not measured and arithmetic == "bf16":
            return self.peak("f32")
        return max(measured.values(), default=None)

    def instructions_per_s(self, kind: Issue, isa: str | None) -> float | None:
        """The rate of one kind; that of multiplications is the rate of an f32 multiply-add."""
        if kind != "multiply":
            return self.peak(kind, isa)
        ops = self.peak("f32", isa)
        lanes = next((LANES[name] for name in _downwards(isa or "") if name in LANES), None)
        return ops / (2 * lanes) if ops and lanes else None

    def to_json(self) -> dict[str, object]:
        gops = {kind: {isa: ops / 1e9 for isa, ops in sets.items()} for kind, sets in self.ops_per_s.items()}
        return {
            "threads": self.threads,
            "read": [read.to_json() for read in self.reads],
            "gop_per_s": gops,
            "missing": self.missing,
        }


@dataclass(frozen=True)
class Work:
    """The least that an implementation must move and compute for one call."""

    bytes: int
    ops: int
    arithmetic: Arithmetic
    issue: Mapping[Issue, int] = field(default_factory=dict)  # instructions, where they are counted
    isa: str | None = None  # of the ceilings, where that is not the row's
    run_bytes: int = 0  # bytes that lie next to each other, between jumps; 0: nearly all

    def issue_seconds(self, ceilings: Ceilings, isa: str | None) -> float:
        """No call can issue its instructions in less."""
        rates = {kind: ceilings.instructions_per_s(kind, isa) for kind in self.issue}
        return max((self.issue[kind] / rate for kind, rate in rates.items() if rate), default=0.0)


def floor_seconds(work: Work, read_bytes_per_s: float, ops_per_s: float | None) -> float:
    """No call can be shorter: its bytes at the read ceiling, or its operations at the arithmetic one."""
    memory = work.bytes / read_bytes_per_s
    compute = work.ops / ops_per_s if ops_per_s and work.arithmetic != "none" else 0.0
    return max(memory, compute)


class ReadProbe:
    """Reads a ring of memory as large as the benchmark's own rotation, a slice per sample.

    run_bytes  0: long streams. Otherwise runs of this many bytes, a multiple of 64, in random order, as the
               pages of a cache lie
    ceiling    of an earlier probe, which gets more samples
    """

    # Below it the start of the threads shows: 64 MiB last milliseconds.
    SLICE_BYTES = 64 << 20

    def __init__(
        self,
        threads: int,
        footprint_bytes: int,
        visible: Iterable[str],
        run_bytes: int = 0,
        ceiling: ReadCeiling | None = None,
    ) -> None:
        available = set(visible)
        vector = next((flag for flag in ("avx512f", "avx2") if flag in available), None)
        self._library = _read_library((f"-m{vector}",) if vector else ())
        self.threads = threads
        self.bytes = -(-max(footprint_bytes, threads * 8 * PAGE_BYTES) // PAGE_BYTES) * PAGE_BYTES
        self._data: int | None = self._library.read_allocate(self.bytes)
        if not self._data:
            raise MemoryError(f"the read probe got no {self.bytes} bytes")
        self._slice = min(self.bytes, self.SLICE_BYTES)
        self._passes = -(-self.SLICE_BYTES // self._slice)
        self._offset = 0
        self.run_bytes = run_bytes
        probe = f"runs of {run_bytes} bytes" if run_bytes else ""
        self.ceiling = ceiling or ReadCeiling(self.bytes, probe=probe)
        self._pattern = self._best_pattern()

    def _best_pattern(self) -> int:
        best = [0.0] * self._library.read_pattern_count(self.run_bytes)
        for _ in range(8):
            for pattern in range(len(best)):
                best[pattern] = max(best[pattern], self._read(pattern))
        return max(range(len(best)), key=best.__getitem__)

    def _read(self, pattern: int) -> float:
        """Bytes per second over the next slice of the ring."""
        if self._data is None:
            raise ValueError("the read probe is closed")
        if self._offset + self._slice > self.bytes:
            self._offset = 0
        start = self._data + self._offset
        self._offset += self._slice
        read = self._library.read_bytes_per_s
        return float(read(start, self._slice, self.run_bytes, self.threads, pattern, self._passes))

    def sample(self) -> None:
        self.ceiling.samples.append(self._read(self._pattern))

    def close(self) -> None:
        if self._data is not None:
            self._library.read_free(self._data, self.bytes)
            self._data = None


def _read_library(flags: tuple[str, ...]) -> ctypes.CDLL:
    library = ctypes.CDLL(str(build_shared(NATIVE / "read_bandwidth.c", flags)))
    library.read_allocate.restype = ctypes.c_void_p
    library.read_allocate.argtypes = [ctypes.c_size_t]
    library.read_free.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    library.read_bytes_per_s.restype = ctypes.c_double
    library.read_pattern_count.argtypes = [ctypes.c_size_t]
    library.read_bytes_per_s.argtypes = [ctypes.c_void_p, *[ctypes.c_size_t] * 2, *[ctypes.c_int] * 3]
    return library


def cpu_flags() -> frozenset[str]:
    """Names of /proc/cpuinfo, which an ISA mask does not reach (machine.visible_flags honours it)."""
    try:
        with open("/proc/cpuinfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("flags"):
                    return frozenset(line.split(":", 1)[1].split())
    except OSError:
        pass
    return frozenset()


def measure_peaks(
    ceilings: Ceilings, visible: Iterable[str], samples: int = 24, sample_s: float = 0.004
) -> None:
    """Raises ops_per_s to the best of `samples` more short runs of every set among the visible CPU flags.

    A run that calls this at several moments is spared the ceilings of a bad one.
    """
    flags = set(visible)
    for peak in PEAKS:
        name = f"{peak.arithmetic}/{peak.isa}"
        if not flags.issuperset(peak.needs) or name in ceilings.missing:
            continue
        try:
            library = ctypes.CDLL(str(build_shared(NATIVE / "peak.c", (f"-DPEAK_{peak.macro}", *peak.flags))))
        except NativeBuildError as error:
            ceilings.missing[name] = str(error).splitlines()[0]
            continue
        run = library.peak_ops_per_s
        run.restype, run.argtypes = ctypes.c_double, [ctypes.c_int, ctypes.c_double]
        best = max(float(run(ceilings.threads, sample_s)) for _ in range(samples))
        if best > 0:
            sets = ceilings.ops_per_s.setdefault(peak.arithmetic, {})
            sets[peak.isa] = max(best, sets.get(peak.isa, 0.0))
        else:
            ceilings.missing[name] = "the kernel refused the instruction set"
