"""Fixtures of the tests of benchmarks."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest
import torch

from bench import run
from bench.timing import Protocol


@pytest.fixture(scope="module")
def short_runs() -> Iterator[None]:
    """Runs take as many samples as ever, each of one call and at once, because the tests compare no time."""
    short = functools.partial(Protocol, sample_s=0.0, warm_up_s=0.0, settle_s=0.0, wake_s=0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "Protocol", short)
        yield
    torch.ops.lamina.set_cpu_isa("auto")  # a run forces the ISA of every row
