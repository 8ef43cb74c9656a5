"""Error of 2:4 layers' outputs on a real encoder: python -m bench.sparse24_error [--json F].

Each linear layer alone: |x (w_pruned - w).T| / |x w.T|, Frobenius, for the inputs x that it has in the f32
model on the sentences of the demo. Calibration sees made text (made_text.py). Means over the six blocks of
all-MiniLM-L6-v2.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor, nn

from bench.machine import describe
from bench.made_text import made_batches
from bench.weight_error import inputs_of_layers, output_error
from lamina.cli.demo.encoder import load_encoder
from lamina.cli.demo.sentences import SENTENCES
from lamina.quant import (
    feature_order_sparse24,
    prune_sparse24,
    prune_sparse24_int4,
    prune_sparse24_int8,
)
from lamina.quant.calibration import quantize_calibrated


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    encoder = load_encoder("cpu")
    held_out = inputs_of_layers(encoder, SENTENCES)
    linears = {
        name: [module]
        for name, module in encoder.model.named_modules()
        if name in held_out and isinstance(module, nn.Linear)
    }
    text = made_batches(encoder, 24, seed=0)
    calibrated = quantize_calibrated(encoder.model, linears, text, lambda _, w, h: (w.detach(), h))
    layers: list[dict[str, str | float]] = []
    kinds: dict[str, list[Mapping[str, float]]] = {}
    for name, found in calibrated:
        assert found is not None
        errors = _errors(*found, held_out.pop(name))
        layers.append({"layer": name, **errors})
        kinds.setdefault(re.sub(r".*layer\.\d+\.", "", name), []).append(errors)
    columns = list(layers[0])[1:]
    print(f"| layer | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}")
    rows = [
        {"layer": kind, **{column: mean(errors[column] for errors in of_kind) for column in columns}}
        for kind, of_kind in kinds.items()
    ]
    for row in rows:
        print(f"| {row['layer']} | {' | '.join(f'{row[column]:.4f}' for column in columns)} |")
    if options.json:
        result = {"machine": describe(), "rows": rows, "layers": layers}
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def _errors(w: Tensor, h: Tensor, x: Tensor) -> dict[str, float]:
    order = feature_order_sparse24(w, h).long()
    eight = prune_sparse24_int8(w, h)
    made = {
        "magnitude": prune_sparse24(w).weight,
        "Wanda": prune_sparse24(w, h, method="wanda").weight,
        "SparseGPT": prune_sparse24(w, h).weight,
        "SparseGPT, reordered": _in_order(prune_sparse24(w[:, order], h[order][:, order]).weight, order),
        "SparseGPT, int8": eight.q * eight.scale[:, None],
        "SparseGPT, int4": prune_sparse24_int4(w, h).quantized.dequantize(),
    }
    return {name: output_error(w, weight, x) for name, weight in made.items()}


def _in_order(weight: Tensor, order: Tensor) -> Tensor:
    """A weight whose features were in `order`, with its features where they were."""
    return torch.empty_like(weight).index_copy_(1, order, weight)


if __name__ == "__main__":
    main()
