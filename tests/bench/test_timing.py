"""Sampling: order, counts and statistics, with calls that count themselves."""

from __future__ import annotations

import json

import pytest

from bench.cases import Rotation
from bench.timing import MIN_SAMPLES, Protocol, Subject, Timing, measure

QUICK = Protocol(sample_s=1e-5, warm_up_s=1e-4, settle_s=0.001)


def test_median_and_quartiles() -> None:
    timing = Timing.of([1e-6, 2e-6, 3e-6, 4e-6, 5e-6], calls=7)
    assert timing.median_us == pytest.approx(3.0)
    assert timing.iqr_us == pytest.approx(2.0)
    assert timing.calls == 7


def test_fewer_than_thirty_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 30"):
        Protocol(samples=29)


def test_every_round_samples_every_subject_once_after_its_select() -> None:
    events: list[str] = []

    def subject(name: str) -> Subject:
        return Subject(lambda: events.append(name), lambda: events.append(f"select {name}"))

    timings = measure([subject("x"), subject("y")], QUICK, after_round=lambda: events.append("round"))
    assert [timing.median_us > 0 for timing in timings] == [True, True]
    rounds = " ".join(events).split("round")[:-1]
    assert len(rounds) == MIN_SAMPLES
    forced = None
    for event in events:
        if event.startswith("select "):
            forced = event.removeprefix("select ")
        elif event != "round":
            assert event == forced, "a subject ran under another one's selection"
    for text in rounds[1:]:
        assert text.count("select x") == text.count("select y") == 1
    assert len({text.split()[1] for text in rounds[1:]}) == 2, "the order must vary"


def test_protocol_is_json() -> None:
    assert json.loads(json.dumps(QUICK.to_json()))["samples"] == MIN_SAMPLES


def test_rotation_passes_its_target_and_keeps_rings() -> None:
    rotation = Rotation(hot=False, target_bytes=1000)
    made: list[int] = []

    def make() -> int:
        made.append(len(made))
        return made[-1]

    ring = rotation.ring(("w",), 300, make)
    assert (len(ring.copies), ring.nbytes) == (4, 1200)
    assert [next(ring) for _ in range(6)] == [0, 1, 2, 3, 0, 1]
    assert rotation.ring(("w",), 300, make) is ring
    assert len(rotation.ring(("other",), 300, make, max_copies=3).copies) == 3
    assert len(Rotation(hot=True, target_bytes=1000).ring(("w",), 1, make).copies) == 1
