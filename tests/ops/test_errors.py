"""Every documented error: the message names the argument, its value and the allowed values."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import lamina
from tests.support.backends import ROOT
from tests.support.bad_inputs import BadInput, bad_inputs, document


@pytest.mark.parametrize("bad", bad_inputs(), ids=str)
def test_message(bad: BadInput) -> None:
    message = bad.message()
    assert message.startswith("lamina::")
    for part in (bad.argument, bad.got, bad.allowed):
        assert part in message


def test_the_documentation_is_current() -> None:
    """Regenerate with: python -m tests.support.bad_inputs > docs/errors.md"""
    assert (ROOT / "docs" / "errors.md").read_text() == document()


def test_a_refused_call_changes_no_setting() -> None:
    before = torch.ops.lamina.cpu_isa()
    with pytest.raises(ValueError, match="sse9"):
        torch.ops.lamina.set_cpu_isa("sse9")
    assert torch.ops.lamina.cpu_isa() == before


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


USE = (
    "import torch, lamina; print(torch.ops.lamina.cpu_isa(), lamina.quantize_int8(torch.ones(1, 4)).q.sum())"
)


def test_environment_forces_the_isa() -> None:
    result = run_python(USE, LAMINA_CPU_ISA="generic")
    assert result.stdout.split() == ["generic", "tensor(508)"], result.stderr


def test_environment_with_an_unknown_isa_is_an_error_at_first_use() -> None:
    """There is no fallback: a user who forces an ISA gets this ISA or an error with the reason."""
    result = run_python(USE, LAMINA_CPU_ISA="avx9000")
    assert result.returncode != 0
    assert 'LAMINA_CPU_ISA = "avx9000" is not a CPU ISA; allowed: auto, generic' in result.stderr


def test_memory_that_is_not_there_is_torchs_own_error() -> None:
    rows = torch.zeros(1, 1024).expand(2**45, 1024)
    with pytest.raises(
        torch.OutOfMemoryError, match=r"lamina asked for a tensor of shape \[35184372088832, 1024\]"
    ):
        lamina.quantize_int8(rows)
