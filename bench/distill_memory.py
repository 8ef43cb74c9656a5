"""Peak memory of lamina.distill_loss beside the plain one: python -m bench.distill_memory [--json F].

Each loss runs alone in a process of its own, with gradients of the hidden states; the figure is the growth
of the peak resident memory over that of the process with its inputs.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

import lamina
from bench.machine import describe

TOKENS, D, V = 4096, 128, 32000
KINDS = ("plain", "lamina")


def plain(student: Tensor, teacher: Tensor, head: Tensor) -> Tensor:
    """The same loss with all logits."""
    log_q = functional.linear(student, head).log_softmax(-1)
    log_p = functional.linear(teacher, head).log_softmax(-1)
    return functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def measure(kind: str) -> None:
    """Prints the growth of the peak in bytes, and the loss."""
    torch.manual_seed(0)
    head = torch.randn(V, D) * 0.05
    student, teacher = torch.randn(TOKENS, D, requires_grad=True), torch.randn(TOKENS, D)
    (student[:8] @ head.T).sum().backward()  # type: ignore[no-untyped-call]  # so that the libraries have their own buffers
    student.grad = None
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loss = (plain if kind == "plain" else lamina.distill_loss)(student, teacher, head)
    loss.backward()  # type: ignore[no-untyped-call]
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"peak_bytes": (after - before) * 1024, "loss": float(loss.detach())}))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=KINDS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.kind:
        measure(options.kind)
        return
    rows = []
    for kind in KINDS:
        command = [sys.executable, "-m", "bench.distill_memory", "--kind", kind]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        rows.append({"loss_function": kind, **json.loads(printed)})
    case = {"tokens": TOKENS, "d": D, "vocabulary": V, "logits_bytes": 4 * TOKENS * V}
    print(f"{TOKENS} tokens, d = {D}, V = {V}: all logits of one model take {4 * TOKENS * V / 1e6:.0f} MB")
    print("| loss | peak memory MB | value |\n|---|---:|---:|")
    for row in rows:
        print(f"| {row['loss_function']} | {row['peak_bytes'] / 1e6:.0f} | {row['loss']:.6f} |")
    if options.json:
        result = {"machine": describe(), "case": case, "rows": rows}
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
