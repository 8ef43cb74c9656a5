"""Roofline arithmetic, and that the ceiling helpers compile and run here."""

from __future__ import annotations

import pytest

from bench import machine
from bench.native.build import NATIVE, NativeBuildError, build_shared
from bench.roofline import PEAKS, Ceilings, ReadProbe, Work, floor_seconds, measure_peaks

VISIBLE = machine.visible_flags()


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        pytest.param(Work(200, 10, "int8"), 2.0, id="memory bound: 200 bytes at 100 a second"),
        pytest.param(Work(200, 5000, "int8"), 5.0, id="compute bound: 5000 ops at 1000 a second"),
        pytest.param(Work(200, 5000, "none"), 2.0, id="no arithmetic ceiling"),
        pytest.param(Work(0, 0, "int8"), 0.0, id="no work"),
    ],
)
def test_floor_is_the_larger_of_bytes_and_operations(work: Work, expected: float) -> None:
    assert floor_seconds(work, read_bytes_per_s=100, ops_per_s=1000) == expected


def test_a_missing_peak_leaves_the_bytes() -> None:
    assert floor_seconds(Work(200, 10**9, "int8"), 100, None) == 2.0


def test_peak_is_that_of_the_isa_or_the_best() -> None:
    ceilings = Ceilings(1, ops_per_s={"int8": {"avx2": 3.0, "amx_int8": 7.0}, "f32": {"avx2": 2.0}})
    assert ceilings.peak("int8", "avx2") == 3.0
    assert ceilings.peak("int8") == 7.0
    assert ceilings.peak("int8", "generic") is None
    assert ceilings.peak("bf16") == 2.0, "without bf16 instructions, bf16 is computed in f32"
    assert ceilings.peak("none") is None
    ceilings.ops_per_s["f32"] = {"avx2": 2.0, "avx512": 4.0}
    assert ceilings.peak("f32", "amx_int8") == 4.0
    assert ceilings.peak("f32", "avx2") == 2.0
    ceilings.ops_per_s["int8"] = {"avx512_vnni": 5.0}
    assert ceilings.peak("int8", "avx512_bf16") == 5.0, "avx512_bf16 has no int8 arithmetic of its own"
    assert ceilings.peak("f32", "avx512_bf16") == 4.0


@pytest.mark.parametrize("run_bytes", [0, 64, 4096, 12288])
@pytest.mark.parametrize("footprint", [1, 4096 * 5 + 1, 3 << 20])
def test_read_probe_reads_any_footprint(footprint: int, run_bytes: int) -> None:
    probe = ReadProbe(2, footprint, VISIBLE, run_bytes)
    for _ in range(3):
        probe.sample()
    probe.close()
    assert probe.bytes >= footprint
    assert probe.bytes % 4096 == 0
    assert probe.ceiling.best > 0
    with pytest.raises(ValueError, match="closed"):
        probe.sample()


def test_peaks_are_measured_for_what_this_machine_has() -> None:
    ceilings = Ceilings(1)
    measure_peaks(ceilings, VISIBLE, samples=1, sample_s=0.0005)
    here = {f"{peak.arithmetic}/{peak.isa}" for peak in PEAKS if VISIBLE.issuperset(peak.needs)}
    measured = {f"{kind}/{isa}" for kind, sets in ceilings.ops_per_s.items() for isa in sets}
    assert measured | set(ceilings.missing) == here
    assert all(ops > 0 for sets in ceilings.ops_per_s.values() for ops in sets.values())


def test_more_samples_of_peaks_keep_the_best() -> None:
    ceilings = Ceilings(1, ops_per_s={"int8": {"generic": 1e30}, "f32": {"generic": 1.0}})
    measure_peaks(ceilings, VISIBLE & {"sse2"}, samples=1, sample_s=0.0005)
    assert ceilings.ops_per_s["int8"]["generic"] == 1e30
    assert ceilings.ops_per_s["f32"]["generic"] > 1.0


def test_a_probe_adds_to_the_ceiling_of_an_earlier_one() -> None:
    first = ReadProbe(1, 4096, VISIBLE)
    first.sample()
    first.close()
    second = ReadProbe(1, first.ceiling.footprint_bytes, VISIBLE, ceiling=first.ceiling)
    second.sample()
    second.close()
    assert len(first.ceiling.samples) == 2


def test_peaks_leave_out_hidden_sets() -> None:
    ceilings = Ceilings(1)
    measure_peaks(ceilings, VISIBLE & {"sse2"}, samples=1, sample_s=0.0005)
    assert all(set(sets) == {"generic"} for sets in ceilings.ops_per_s.values())


def test_a_helper_that_does_not_compile_says_why() -> None:
    with pytest.raises(NativeBuildError, match="name the instruction set"):
        build_shared(NATIVE / "peak.c", ("-DPEAK_NONE",))
