"""The command `lamina`: what it prints and how it exits. The demo has a file of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

pytest.importorskip("click")
pytest.importorskip("rich")

from click.testing import CliRunner, Result

from lamina import doctor
from lamina.cli import environment
from lamina.cli.app import app
from lamina.doctor import Check, Outcome


def lamina(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, prog_name="lamina")


def test_info() -> None:
    result = lamina("info")
    assert result.exit_code == 0
    for word in (torch.__version__, "cpu isa in use", *doctor.cpu_isas()):
        assert word in result.output
    facts = json.loads(lamina("info", "--json").output)
    assert facts["torch"] == torch.__version__
    assert facts["cpu_isas_found"] == doctor.cpu_isas()


def test_info_says_why_an_isa_cannot_be_used() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "lamina.cli", "info", "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "LAMINA_CPU_ISA": "mmx"},
        check=True,
    )
    assert "mmx" in json.loads(result.stdout)["cpu_isa"]


def test_explain() -> None:
    assert "gemm_int8 --m M --n N --k K" in lamina("explain").output
    result = lamina("explain", "gemm_int8", "--m", "16", "--n", "100", "--k", "300")
    assert result.exit_code == 0
    assert "m = 16, n = 100, k = 300" in result.output
    assert "kernel" in result.output
    assert lamina("explain", "lamina::quantize_int8", "--m", "1", "--k", "8").exit_code == 0


EXPLAIN_ERRORS = {
    "unknown": (["gem_int8"], "did you mean gemm_int8?"),
    "missing": (["gemm_int8", "--m", "1"], "takes --m M --n N --k K, got --m M"),
    "surplus": (["quantize_int8", "--m", "1", "--n", "1", "--k", "1"], "takes --m M --k K"),
    "unsupported": (["gemm_int8", "--m", "1", "--n", "1", "--k", "99999999"], "must be at most 16777215"),
    "negative": (["gemm_int8", "--m", "-1", "--n", "1", "--k", "1"], "may be negative"),
}


@pytest.mark.parametrize("case", EXPLAIN_ERRORS)
def test_explain_says_why_not(case: str) -> None:
    arguments, message = EXPLAIN_ERRORS[case]
    result = lamina("explain", *arguments)
    assert result.exit_code != 0
    assert message in result.output


def test_doctor_passes() -> None:
    result = lamina("doctor", "--verbose")
    assert result.exit_code == 0, result.output
    assert "checks passed" in result.output
    assert "| gemm_int8" in result.output
    assert f"- torch: {torch.__version__}" in result.output


def test_doctor_fails_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = [
        Check("gemm_int8", "cpu avx2", (Outcome("good", 0.5), Outcome("a bad case", 3.0))),
        Check("pack_int8", "cpu avx2", (), "RuntimeError: no kernel"),
        Check("quantize_int8", "cpu avx2", (Outcome("exact", 0.0),)),
    ]
    monkeypatch.setattr("lamina.cli.doctor.run_checks", lambda: iter(checks))
    result = lamina("doctor")
    assert result.exit_code == 1
    for text in ("a bad case: 3.000", "RuntimeError: no kernel", "FAILED", "2 of 3 checks FAILED"):
        assert text in result.output
    assert "good" not in result.output


def test_missing_extras_are_named() -> None:
    code = "import sys; sys.modules['rich'] = None; from lamina.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "needs rich: pip install 'lamina[cli]'" in done.stderr
    assert "Traceback" not in done.stderr


class FakeDriver:
    """cuda.bindings.driver with one device."""

    class CUdevice_attribute:
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 9
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 0

    cuDeviceGet = staticmethod(lambda index: (0, index))
    cuDeviceGetName = staticmethod(lambda size, device: (0, b"Example GPU\0\0"))
    cuDeviceGetAttribute = staticmethod(lambda which, device: (0, which))
    cuDeviceTotalMem = staticmethod(lambda device: (0, 80 * 2**30))


def test_cuda_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    driver: Any = FakeDriver
    assert environment._describe_device(driver, 0) == "0: Example GPU, sm_90, 80 GiB"
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    assert "pip install 'lamina[cuda]'" in environment.cuda_devices()[0]
    assert "'lamina[cuda]'" in lamina("info").output
