"""The engine and two workers in processes of their own, each with a half of every layer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.backends import ROOT
from tests.vllm.checkpoints import Scheme, save_quantized, tiny
from tests.vllm.engine import engine, generate
from tests.vllm.two_workers import PROMPTS, TOKENS

LAYERS, LINEARS = 2, 4


def run_two_workers(model: Path, **environment: str) -> dict[str, Any]:
    """Tokens and the calls of each worker."""
    given = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "OMP_NUM_THREADS": "1"} | environment
    command = [sys.executable, "-m", "tests.vllm.two_workers", str(model)]
    done = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    report: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return report


def test_two_workers_give_the_tokens_of_one_process(folder: Path) -> None:
    model = folder / "shared"
    save_quantized(tiny(), Scheme(bits=4, symmetric=False), model)
    with engine(model, {"LAMINA_VLLM_ATTENTION": "lamina"}) as llm:
        expected = generate(llm, PROMPTS, TOKENS)
    report = run_two_workers(model, LAMINA_VLLM_ATTENTION="lamina")
    assert report["tokens"] == expected
    assert len(report["calls"]) == 2
    for calls in report["calls"]:
        assert set(calls) == {"gemm_int4", "paged_attention", "append_paged_kv"}
        assert calls["paged_attention"] % LAYERS == 0
        assert calls["gemm_int4"] == LINEARS * calls["paged_attention"] >= TOKENS * LAYERS * LINEARS
