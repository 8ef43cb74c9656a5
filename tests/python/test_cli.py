"""The command `lamina`: what it prints and how it exits. The demo has a file of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest
import torch

pytest.importorskip("click")
pytest.importorskip("rich")

from click.testing import CliRunner, Result

from lamina import _library
from lamina.cli import environment
from lamina.cli.app import app
from lamina.devices import CudaDevice, cpu_isas
from lamina.doctor import Check, Outcome
from tests.support.backends import kernel_rows


def lamina(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, prog_name="lamina")


def test_info() -> None:
    result = lamina("info")
    assert result.exit_code == 0
    for word in (torch.__version__, "cpu isa in use", *cpu_isas()):
        assert word in result.output
    facts = json.loads(lamina("info", "--json").output)
    assert facts["torch"] == torch.__version__
    assert facts["cpu_isas_found"] == cpu_isas()


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


def test_explain_attention() -> None:
    given = ("--batch", "2", "--q-len", "40", "--context", "1025", "--heads", "8", "--kv-heads", "2")
    result = lamina("explain", "paged_attention", *given)
    assert result.exit_code == 0
    assert "heads = 8, kv_heads = 2" in result.output
    # 160 rows of a request are two or three tiles. Only the tokens of the last tile see more than 1024 keys,
    # which are three chunks; the others see two.
    assert re.search(r"tiles +(4 of up to 128|6 of up to 64) rows", result.output)
    assert re.search(r"visits +(20|28):", result.output)
    bad = lamina("explain", "paged_attention", *given[:-1], "3")
    assert bad.exit_code != 0 and "heads = 8, kv_heads = 3; heads must be" in bad.output


A100 = CudaDevice(0, compute_capability=80, sm_count=108, smem_per_block=166912, l2_bytes=41943040)
H200 = CudaDevice(0, compute_capability=90, sm_count=132, smem_per_block=232448, l2_bytes=62914560)
SHAPE = ("gemm_int8", "--m", "1", "--n", "4096", "--k", "4096")
has_cuda = pytest.mark.skipif(
    _library.build_info()["cuda_compiler"] == "", reason="lamina is built without CUDA"
)


def see(monkeypatch: pytest.MonkeyPatch, devices: list[CudaDevice] | None) -> None:
    monkeypatch.setattr("lamina.cli.explain.runtime_devices", lambda: devices)
    monkeypatch.setattr("lamina.cli.environment.runtime_devices", lambda: devices)


@has_cuda
@pytest.mark.parametrize("op", ["", "_int8", "_int4", "_int4_int8"])
def test_explain_products_with_2_4_weights(op: str) -> None:
    shape = ("explain", f"matmul_sparse24{op}", "--m", "16", "--n", "4096", "--k", "4096")
    assert "on a CPU" in lamina(*shape, "--device", "cpu").output
    result = lamina(*shape, "--arch", "90", "--sms", "132")
    assert f"kernel     matmul_sparse24{op}_sm90a_m" in result.output


def test_explain_gemm_int4_of_bf16() -> None:
    shape = ("explain", "gemm_int4", "--m", "16", "--n", "64", "--k", "64", "--bf16")
    assert "bf16 activations with integer zero points" in lamina(*shape, "--device", "cpu").output
    assert "--bf16 is of a plan for the CPU, --device is cuda" in lamina(*shape, "--arch", "90").output
    assert "gemm_int8 has no --bf16" in lamina("explain", "gemm_int8", *shape[2:]).output
    assert "[--group GROUP] [--bf16] [--max-sms MAX_SMS]" in lamina("explain").output


def test_explain_lists_an_op_once() -> None:
    lines = {line.split()[2]: line for line in lamina("explain").output.splitlines()[1:]}
    planned = {
        op for kind, op, _ in kernel_rows() if kind == "CPU" and hasattr(torch.ops.lamina, f"explain_{op}")
    }
    assert list(lines) == sorted(planned)
    assert "[--device cpu|cuda] [--arch 80 --sms 108]" in lines["gemm_int8"]
    assert "--m M --n N --k K [--group GROUP] [--max-sms MAX_SMS] [--device" in lines["gemm_int4_int8"]
    assert lines["quantize_int8"].endswith("--m M --k K")


@has_cuda
def test_explain_chooses_the_device_that_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    see(monkeypatch, [])
    assert "on a CPU" in lamina("explain", *SHAPE).output
    see(monkeypatch, [H200])
    output = lamina("explain", *SHAPE).output
    assert "on compute capability 9.0 with 132 SMs" in output
    assert "device     this machine's CUDA device 0: compute capability 9.0" in output
    assert "on a CPU" in lamina("explain", *SHAPE, "--device", "cpu").output
    # Without a plan of its own on CUDA an op keeps the one for the CPU.
    assert "quantize_int8_" in lamina("explain", "quantize_int8", "--m", "1", "--k", "8").output


HYPOTHETICAL = {
    "no device": ([], ["--device", "cuda"], "8.0 with 108 SMs", "this machine has no CUDA device"),
    "another arch": ([], ["--arch", "90"], "9.0 with 132 SMs", "as --arch and --sms have it"),
    "fewer SMs": ([], ["--device", "cuda", "--sms", "20"], "8.0 with 20 SMs", "as --arch and --sms have it"),
    "another device": ([A100], ["--arch", "86", "--sms", "84"], "8.6 with 84 SMs", "as --arch and --sms"),
}


@has_cuda
@pytest.mark.parametrize("case", HYPOTHETICAL)
def test_explain_says_that_a_device_is_hypothetical(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    devices, options, plan, note = HYPOTHETICAL[case]
    see(monkeypatch, devices)
    result = lamina("explain", *SHAPE, *options)
    assert result.exit_code == 0, result.output
    assert f"on compute capability {plan}" in result.output
    assert f"device     hypothetical, {note}" in result.output


EXPLAIN_ERRORS = {
    "unknown": (["gem_int8"], "did you mean gemm_int8?"),
    "missing": (["gemm_int8", "--m", "1"], "takes --m M --n N --k K, got --m M"),
    "surplus": (["quantize_int8", "--m", "1", "--n", "1", "--k", "1"], "takes --m M --k K"),
    "unsupported": (["gemm_int8", "--m", "1", "--n", "1", "--k", "99999999"], "must be at most 16777215"),
    "negative": (["gemm_int8", "--m", "-1", "--n", "1", "--k", "1"], "-1 is not in the range 0<=x<="),
    "beyond int64": (
        ["gemm_int8", "--m", "9223372036854775808", "--n", "1", "--k", "1"],
        "Invalid value for '--m': 9223372036854775808 is not in the range 0<=x<=9223372036854775807",
    ),
    "arch on the cpu": ([*SHAPE, "--device", "cpu", "--arch", "80"], "--device is cpu"),
    "unknown arch": ([*SHAPE, "--arch", "86"], "--arch 86 needs --sms; there is a default for 80, 90"),
    "old arch": ([*SHAPE, "--arch", "70"], "70 is not in the range 80<=x"),
    "no SMs": ([*SHAPE, "--sms", "0"], "0 is not in the range 1<=x"),
    "no CUDA plan": (["quantize_int8", "--m", "1", "--k", "1", "--device", "cuda"], "plan for the CPU only"),
}


@pytest.mark.parametrize("case", EXPLAIN_ERRORS)
def test_explain_says_why_not(case: str) -> None:
    arguments, message = EXPLAIN_ERRORS[case]
    result = lamina("explain", *arguments)
    assert result.exit_code != 0
    assert message in result.output
    assert "pybind" not in result.output.lower()


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
        Check("quantize_int8", "cuda", (), skipped="no device"),
        Check("gemm_int8", "cuda", (), skipped="no device"),
    ]
    monkeypatch.setattr("lamina.cli.doctor.run_checks", lambda: iter(checks))
    result = lamina("doctor")
    assert result.exit_code == 1
    for text in ("a bad case: 3.000", "RuntimeError: no kernel", "FAILED", "2 of 3 checks FAILED, 2 skipped"):
        assert text in result.output
    assert result.output.count("- cuda skipped: no device") == 1
    assert result.output.count("| skipped |") == 2
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


def test_driver_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    driver: Any = FakeDriver
    assert environment._describe_device(driver, 0) == "0: Example GPU, sm_90, 80 GiB"
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    assert "pip install 'lamina[cuda]'" in environment.driver_devices()[0]
    assert "'lamina[cuda]'" in lamina("info").output


def test_info_shows_what_the_runtime_sees_without_cuda_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    see(monkeypatch, [H200])
    assert "0: compute capability 9.0, 132 SMs" in " ".join(lamina("info").output.split())
    assert json.loads(lamina("info", "--json").output)["cuda_devices"] == [str(H200)]
    see(monkeypatch, [])
    assert environment.cuda_devices() == ["none"]
    see(monkeypatch, None)
    assert environment.cuda_devices() == ["none: lamina is built without CUDA"]


def test_info_survives_a_device_that_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ValueError("lamina::device_info: CUDA device 0: out of memory")

    monkeypatch.setattr("lamina.cli.environment.runtime_devices", fail)
    assert environment.cuda_devices() == ["unknown: lamina::device_info: CUDA device 0: out of memory"]
