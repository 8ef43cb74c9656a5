"""The memory that lamina.load_checkpoint needs beside the loaded model: one layer, whatever the file has."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.python.test_load_checkpoint import compressed_tensors, write
from tests.support.cases import generator

LAYERS, N, K, GROUP = 24, 1024, 2048, 128
SCRIPT = """
import sys, threading
import torch
import lamina

def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("RssAnon"))

def sample():
    while not done.wait(0.002):
        seen.append(anonymous())

torch.set_num_threads(1)
with torch.device("meta"):
    model = torch.nn.Sequential(*(torch.nn.Linear({k}, {n}, bias=False) for _ in range({layers})))
lamina.pack_int4(torch.zeros(64, 64, dtype=torch.uint8))
done, seen, before = threading.Event(), [anonymous()], anonymous()
thread = threading.Thread(target=sample, daemon=True)
thread.start()
lamina.load_checkpoint(model, sys.argv[1])
done.set()
thread.join()
held = sum(buffer.nbytes for buffer in model.buffers())
print(max(seen) - before, anonymous() - before, held)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux shows the memory of a process")
def test_one_layer_is_read_at_a_time(tmp_path: Path) -> None:
    """All codes in a byte each would take 48 MiB beside the packed ones, the float weights 192 MiB."""
    g = generator("memory")
    tensors = {}
    for layer in range(LAYERS):
        words = torch.randint(-(2**31), 2**31, (N, K // 8), generator=g, dtype=torch.int64).int()
        tensors[f"{layer}.weight_packed"] = words
        tensors[f"{layer}.weight_scale"] = torch.rand(N, K // GROUP, generator=g).half()
    weights = {"num_bits": 4, "symmetric": True, "strategy": "group", "group_size": GROUP}
    write(tmp_path, tensors, compressed_tensors(weights, "pack-quantized"))
    script = SCRIPT.format(n=N, k=K, layers=LAYERS)
    run = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True)
    peak, after, held = map(int, run.stdout.split())
    assert held == LAYERS * (N * (K // 2 + K // GROUP * 2) + 8 * 8)  # codes, scales, weight_format
    text = f"{peak >> 20} MiB at most, {after >> 20} MiB after, {held >> 20} MiB held"
    assert peak < held + LAYERS * N * K // 2, text  # the modules that are imported meanwhile take 12 MiB
