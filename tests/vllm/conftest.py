"""The environment of vLLM's CPU engine, and the checkpoints. Without vLLM nothing here is collected."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

HAS_VLLM = importlib.util.find_spec("vllm") is not None
collect_ignore_glob = [] if HAS_VLLM else ["test_*.py"]

# The engine runs in this process, so that tests can look into it; test_workers.py starts others. Where these
# tests are not collected, the variables would change other tests.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # bound threads wait minutes for a core that is in use
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "TORCHDYNAMO_DISABLE": "1",  # a part of the engine compiles in spite of enforce_eager
    "VLLM_LOGGING_LEVEL": "ERROR",
}
if HAS_VLLM:
    os.environ |= ENVIRONMENT


@pytest.fixture(scope="session")
def smollm2() -> LlamaForCausalLM:
    from tests.vllm.checkpoints import smollm2

    return smollm2()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for checkpoints."""
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="session")
def float_model(smollm2: LlamaForCausalLM, folder: Path) -> Path:
    from tests.vllm.checkpoints import save_float

    return save_float(smollm2, folder / "float")


@pytest.fixture(autouse=True)
def keep_threads() -> None:
    """vLLM forbids torch.set_num_threads, so restore_threads has nothing to restore."""
    torch.set_grad_enabled(True)
