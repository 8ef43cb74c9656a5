"""The two protocols of a GPU, on a device whose clock the calls move themselves."""

from __future__ import annotations

import json

import pytest

from bench.gpu.timing import PROTOCOLS, GpuProtocol, GpuSubject, calls_per_graph, measure
from tests.bench.gpu_fake import FakeDevice

QUICK = GpuProtocol(samples=30, warm_up_s=1e-3)


def test_both_protocols_find_the_time_of_a_call() -> None:
    device = FakeDevice(step_ms=0)
    subjects = [
        GpuSubject(lambda: device.advance(0.2)),
        GpuSubject(lambda: device.advance(0.5), copies=4),
    ]
    for result, expected_us in zip(measure(subjects, QUICK, device), (200, 500), strict=True):
        assert set(result.timings) == set(PROTOCOLS)
        for timing in result.timings.values():
            assert timing.median_us == pytest.approx(expected_us)
            assert timing.iqr_us == pytest.approx(0, abs=1e-6)
        assert result.timings["do_bench"].calls == 1
    assert device.captured == [10, 4], "2 ms of calls, in whole turns of the copies"


def test_the_cache_is_flushed_before_every_sample_and_outside_it() -> None:
    device = FakeDevice(step_ms=0)

    def call() -> None:
        device.log.append("call")
        device.advance(0.1)

    measure([GpuSubject(call), GpuSubject(call)], QUICK, device)
    text = " ".join(device.log)
    assert text.count("flush record call record") == text.count("flush") == 2 * QUICK.samples
    # No flush in the graph protocol: rotation does it. One replay of each graph is untimed.
    assert text.count("record replay record") == 2 * QUICK.samples
    assert text.count("replay") == 2 * QUICK.samples + 2


def test_the_order_of_a_round_varies_and_every_round_has_all() -> None:
    device = FakeDevice(step_ms=0)
    names: list[str] = []

    def subject(name: str) -> GpuSubject:
        def call() -> None:
            names.append(name)
            device.advance(1.0)

        return GpuSubject(call)

    measure([subject("x"), subject("y"), subject("z")], GpuProtocol(warm_up_s=0, replay_s=1e-6), device)
    # Three warm-up calls each, then the rounds, then one captured call each.
    rounds = [tuple(names[i : i + 3]) for i in range(9, len(names) - 3, 3)]
    assert len(rounds) == GpuProtocol().samples
    assert all(sorted(one) == ["x", "y", "z"] for one in rounds)
    assert len(set(rounds)) > 2


def test_a_median_is_of_samples_not_of_the_sum() -> None:
    device = FakeDevice(step_ms=0)
    times = iter([0.1] * 3 + [0.1, 0.1, 9.0] * 1000)
    result = measure([GpuSubject(lambda: device.advance(next(times)))], QUICK, device)[0]
    assert result.timings["do_bench"].median_us == pytest.approx(100)


def test_a_capture_that_fails_is_a_reason() -> None:
    class Refusing(FakeDevice):
        def capture(self, call: object, calls: int) -> object:  # type: ignore[override]
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

    device = Refusing(step_ms=0)
    result = measure([GpuSubject(lambda: device.advance(0.1))], QUICK, device)[0]
    assert set(result.timings) == {"do_bench"}
    assert result.not_timed == {
        "graph": "capture failed: RuntimeError: operation not permitted when stream is capturing"
    }


@pytest.mark.parametrize(
    ("call_s", "copies", "expected"),
    [
        pytest.param(1e-4, 1, 20, id="2 ms"),
        pytest.param(1e-4, 8, 24, id="whole turns"),
        pytest.param(1.0, 8, 8, id="at least one turn"),
        pytest.param(1e-9, 7, 511, id="at most 512 calls, in whole turns"),
        pytest.param(1e-9, 1000, 512, id="a turn is too long"),
    ],
)
def test_calls_of_a_graph(call_s: float, copies: int, expected: int) -> None:
    assert calls_per_graph(call_s, copies, GpuProtocol(max_calls=512)) == expected


def test_halfway_runs_once() -> None:
    device, seen = FakeDevice(step_ms=0), []
    measure([GpuSubject(lambda: device.advance(0.1))], QUICK, device, lambda: seen.append(device.pending))
    assert seen == [True], "it runs while the GPU works"


def test_fewer_than_thirty_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 30"):
        GpuProtocol(samples=29)


def test_protocol_is_json() -> None:
    assert set(PROTOCOLS) <= set(json.loads(json.dumps(QUICK.to_json())))
