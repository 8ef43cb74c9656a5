"""Error of int4 layers' outputs on a real encoder: python -m bench.weight_error [--json F].

Each linear layer alone: |x (w_int4 - w).T| / |x w.T|, Frobenius, for the inputs x that it has in the f32
model on sentences that calibration has not seen. Means over the six blocks of all-MiniLM-L6-v2.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor, nn

from bench.machine import describe
from lamina.cli.demo.encoder import Encoder, embed, load_encoder
from lamina.cli.demo.sentences import SENTENCES, calibration_sentences
from lamina.quant import gptq, hessian, quantize_weight_int4

COLUMNS = ("nearest", "nearest, search", "GPTQ", "GPTQ, act_order", "GPTQ, g_idx")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--group", type=int, default=128)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    encoder = load_encoder("cpu")
    seen = inputs_of_layers(encoder, calibration_sentences())
    held_out = inputs_of_layers(encoder, SENTENCES)
    rows: dict[tuple[str, bool], list[list[float]]] = {}
    for name, x in held_out.items():
        layer = encoder.model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        w = layer.weight.detach()
        for symmetric in (True, False):
            h = hessian(seen[name])
            made = (
                quantize_weight_int4(w, options.group, symmetric=symmetric),
                quantize_weight_int4(w, options.group, symmetric=symmetric, search=True),
                gptq(w, h, options.group, symmetric=symmetric),
                gptq(w, h, options.group, symmetric=symmetric, act_order=True),
                gptq(w, h, options.group, symmetric=symmetric, act_order=True, static_groups=False),
            )
            kind = re.sub(r".*layer\.\d+\.", "", name)
            rows.setdefault((kind, symmetric), []).append([output_error(w, q.dequantize(), x) for q in made])
    print(f"| layer | weights | {' | '.join(COLUMNS)} |\n|---|---|{'---:|' * len(COLUMNS)}")
    table = []
    for (kind, symmetric), errors in rows.items():
        means = [mean(column) for column in zip(*errors, strict=True)]
        weights = "symmetric" if symmetric else "asymmetric"
        table.append({"layer": kind, "weights": weights} | dict(zip(COLUMNS, means, strict=True)))
        print(f"| {kind} | {weights} | {' | '.join(f'{value:.4f}' for value in means)} |")
    if options.json:
        options.json.write_text(
            json.dumps({"machine": describe(), "group": options.group, "rows": table}, indent=2) + "\n"
        )


def inputs_of_layers(encoder: Encoder, sentences: Sequence[str]) -> dict[str, Tensor]:
    """By name what each linear layer of the blocks sees, [rows, k], padding included."""
    inputs: dict[str, list[Tensor]] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            inputs.setdefault(name, []).append(args[0].flatten(0, -2))

        return hook

    layers = {n: m for n, m in encoder.model.named_modules() if isinstance(m, nn.Linear) and "layer." in n}
    handles = [m.register_forward_pre_hook(keep(n)) for n, m in layers.items()]
    for first in range(0, len(sentences), 16):
        embed(encoder.model, encoder.tokenize(sentences[first : first + 16]))
    for handle in handles:
        handle.remove()
    return {name: torch.cat(found) for name, found in inputs.items()}


def output_error(w: Tensor, approximate: Tensor, x: Tensor) -> float:
    """The relative error of the outputs of x."""
    difference = approximate.double() - w.double()
    return float((x.double() @ difference.T).norm() / (x.double() @ w.double().T).norm())


if __name__ == "__main__":
    main()
