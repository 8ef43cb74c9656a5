"""Time of int4 products without zero points, and with them in each dtype: python -m bench.zero_point_times.

n = k = 4096, f32 activations and scales. The calls of a case come in turn, each of them multiplies another
one of several copies of the weight, and the median counts. A case takes two seconds.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

import lamina
from bench.machine import describe

N = K = 4096
COPIES = 4
SECONDS = 2.0
OPS: dict[str, Callable[..., torch.Tensor]] = {
    "gemm_int4": lamina.gemm_int4,
    "gemm_int4_int8": lamina.gemm_int4_int8,
}


def main() -> None:
    """Prints a row for each op, group, m and dtype."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--op", choices=list(OPS), action="append")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = [row for op in options.op or OPS for row in of_op(op)]
    for row in rows:
        print("{op} group {group} m {m} {zero_points}: {median_us:.0f} +- {iqr_us:.0f} us".format(**row))
    if options.json:
        options.json.write_text(json.dumps({"machine": describe(), "rows": rows}, indent=2) + "\n")


def of_op(op: str) -> Iterator[dict[str, Any]]:
    """The rows of one op."""
    g = torch.Generator().manual_seed(0)
    codes = [torch.randint(0, 16, (N, K), dtype=torch.uint8, generator=g) for _ in range(COPIES)]
    packed = [lamina.pack_int4(q, "int4_rows") for q in codes]
    for group, m in product((32, 128), (1, 16, 256)):
        x, scale = torch.randn(m, K, generator=g), torch.rand(K // group, N, generator=g) * 0.01
        zero = torch.rand(K // group, N, generator=g) * 15
        zeros = {"none": None, "uint8": zero.to(torch.uint8), "f16": zero.half(), "f32": zero}
        times: dict[str, list[float]] = {name: [] for name in zeros}
        calls, end = 0, time.perf_counter() + SECONDS
        while time.perf_counter() < end or calls < 8 * len(zeros):
            for name, w_zero_point in zeros.items():
                calls += 1
                start = time.perf_counter()
                OPS[op](x, packed[calls % COPIES], scale, group=group, w_zero_point=w_zero_point)
                times[name].append((time.perf_counter() - start) * 1e6)
        for name, found in times.items():
            low, _, high = quantiles(found[2:], n=4)
            row = {"op": op, "group": group, "m": m, "zero_points": name}
            yield row | {"median_us": median(found[2:]), "iqr_us": high - low}


if __name__ == "__main__":
    main()
