"""Fixtures and the hypothesis profiles: bounded and the same examples every time."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

from lamina.devices import cuda_problem

pytest_plugins = ["tests.support.budget"]

settings.register_profile(
    "lamina",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
# The properties of tests/probe take microseconds: make test-all tries more examples of them.
settings.register_profile("long", settings.get_profile("lamina"), max_examples=3000)
# A planted bug needs one failure, not the smallest.
settings.register_profile("mutants", settings.get_profile("lamina"), phases=[Phase.explicit, Phase.generate])
settings.load_profile("lamina")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that compile for minutes go first; at the end they would leave the other processes idle."""
    items.sort(key=lambda item: item.path.name not in ("test_cpp.py", "test_wheel.py"))


@pytest.fixture
def working_gpu() -> None:
    """Skips the test if lamina's ops cannot run on a GPU."""
    if (problem := cuda_problem()) is not None:
        pytest.skip(problem)


@pytest.fixture
def restore_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def emulator_is_left_unset() -> Iterator[None]:
    """Fails a test that leaves an emulated GPU behind: it would take the calls of the next test, which may
    mean the CPU."""
    yield
    left = reset_emulator()
    assert not left, f"the test has left {' and '.join(left)}"


def reset_emulator() -> list[str]:
    """Returns what was set."""
    left = []
    if probe := sys.modules.get("lamina._probe"):
        if probe.emulator.has_device():
            left.append("an emulated GPU")
        probe.emulator.set_options()
        probe.emulator.set_device(0, 0)
    emu = torch.ops.lamina_emu
    if hasattr(emu, "set_cuda_kernel"):
        if name := emu.set_cuda_kernel(""):
            left.append(f"the forced kernel {name}")
        emu.take_kv_error(0)  # an error that a test provoked and did not read
    return left
