"""Says which lamina a process gets and fails where it cannot run on this GPU: a stage of gpu_check.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: make `bench` importable, from the checkout
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch

from bench.gpu.runner import library_sha256

M, N, K = 3, 40, 72


def main() -> int:
    import lamina

    info = json.loads(torch.ops.lamina.build_info())
    print(json.dumps({"file": lamina.__file__, "sha256": library_sha256(), **info}))
    if not info.get("cuda_archs"):
        print("this library was built without CUDA: build it with nvcc on the PATH (gpu_check.py --build)")
        return 1
    w = torch.randint(-128, 128, (N, K), dtype=torch.int8)
    a = torch.randint(-128, 128, (M, K), dtype=torch.int8)
    scale = torch.ones(1)
    packed = lamina.pack_int8(w).to("cuda")
    out = lamina.gemm_int8(a.cuda(), packed, scale.cuda(), scale.cuda()).cpu()
    if not torch.equal(out, (a.long() @ w.long().T).float()):
        print("gemm_int8 runs on this GPU and is wrong: the tests say more")
        return 0
    print(f"gemm_int8 runs on {torch.cuda.get_device_name()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
