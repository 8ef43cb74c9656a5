"""Host time of a call: python bench/host_time.py [--device emulator|cuda|cpu] [--m 1 --n 576 ...] [--json F].

emulator   The library for tests with its kernels left out, as compute capability 9.0 with 132 SMs: all that
       lamina's host code does. Not in it is what CUDA's runtime and driver do: launches, the encoding of
       tensor maps, the device guard, the lookup of the stream.
cuda   Calls that go to the queue of a GPU, which is empty when a sample begins and never fills.
cpu    Whole calls, products included.

Each op is called in three ways: with the same arguments again, with another max_sms in each call, which needs
a plan of its own, and with a weight at another address in each call, which needs a tensor map of its own.
An op that does nothing (in the library for tests) shows what torch itself needs for a call of so many
arguments; `beside torch` is what remains. `--instructions` counts by valgrind what lamina's part executes,
with all of torch that it calls: exact on a busy machine.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file: make `bench` importable, from the checkout
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
from torch import Tensor

from bench import instructions, machine
from bench.results_file import ROW_KEYS, Row, save
from bench.table import Table, cell, make_printer
from bench.timing import MIN_SAMPLES, Timing
from lamina.testing import emulated_gpu, load_emulator

OPS = (
    "gemm_int8", "gemm_int8_quantized", "gemm_int4", "gemm_int4_int8", "quantize_int8", "paged_attention",
)  # fmt: skip
DISPATCH = "dispatch_only"
WAYS = ("same again", "other plan", "other weight")
EMULATED_DEVICE = (90, 132)
NEW_CAP = 1_000_000  # apart, the caps of ops that share plans
OTHERS = 4096  # weights in turn: more than a thread remembers
ALIGNMENT = 128  # bytes between the weights that are called in turn
# Three launches a call at most: a GPU's queue of 1024 never fills.
CALLS = 200
Key = tuple[str, str]  # an op and a way to call it


@dataclass(frozen=True)
class Call:
    """call(weight, max_sms), and the weight."""

    call: Callable[[Tensor | None, int | None], object]
    weight: Tensor | None


@dataclass(frozen=True)
class Shape:
    m: int
    n: int
    k: int
    group: int


def make_call(op: str, ops: Any, shape: Shape, device: str) -> Call:
    """`op` with operands on `device`; the emulator's are on the CPU."""
    place = "cuda" if device == "cuda" else "cpu"
    layout = "int4_rows" if device == "cpu" else "int4_tile"
    m, n, k, group = shape.m, shape.n, shape.k, shape.group
    x = torch.randn(m, k).bfloat16().to(place)
    a = torch.ones(m, k, dtype=torch.int8, device=place)
    a_scale, w_scale = torch.ones(m, 1, device=place), torch.ones(n, device=place)
    w8, sums = (t.to(place) for t in torch.ops.lamina.pack_int8(torch.ones(n, k, dtype=torch.int8)))
    w4 = torch.ops.lamina.pack_int4(torch.ones(n, k, dtype=torch.uint8), layout).to(place)
    groups = torch.ones(-(-k // group), n, device=place, dtype=torch.bfloat16)
    none, bf16 = None, torch.bfloat16
    int8_ops, int4, int4_int8 = (ops.gemm_int8.default, ops.gemm_int4.default, ops.gemm_int4_int8.default)
    quantized, quantize = ops.gemm_int8_quantized.default, ops.quantize_int8.default
    calls = {
        "gemm_int8": Call(
            lambda w, sms: int8_ops(a, w, sums, a_scale, w_scale, none, none, bf16, none, none, none, sms), w8
        ),
        "gemm_int8_quantized": Call(
            lambda w, sms: quantized(
                a, w, sums, a_scale, w_scale, none, none, none, none, none, none, True, sms
            ),
            w8,
        ),
        "gemm_int4": Call(
            lambda w, sms: int4(x, w, groups, group, none, none, none, none, none, none, none, sms), w4
        ),
        "gemm_int4_int8": Call(
            lambda w, sms: int4_int8(
                x, w, groups, group, none, none, none, none, bf16, none, none, none, none, sms
            ),
            w4,
        ),
        "quantize_int8": Call(lambda _w, _sms: quantize(x), None),
        "paged_attention": Call(attention_of(ops, m, place), None),
    }
    if op == DISPATCH:
        nothing = torch.ops.lamina_emu.dispatch_only.default
        a, a_scale, w_scale, w8, sums = (t.cpu() for t in (a, a_scale, w_scale, w8, sums))
        return Call(
            lambda w, sms: nothing(a, w, sums, a_scale, w_scale, none, none, bf16, none, none, none, sms), w8
        )
    return calls[op]


def attention_of(ops: Any, m: int, place: str) -> Callable[[Tensor | None, int | None], object]:
    """A call that decodes m requests of 16 keys, with 32/8 heads of 128, whatever the other sizes are."""
    q, cache = (torch.zeros(*sizes, 128, device=place).bfloat16() for sizes in ((m, 32), (m, 16, 8)))
    table, starts = (torch.arange(count, device=place).int() for count in (m, m + 1))
    blocks = table[:, None].contiguous()
    lens, attention = torch.full((m,), 16, device=place).int(), ops.paged_attention.default
    return lambda _w, _sms: attention(q, cache, cache, blocks, lens, starts, max_seqlen_q=1)


def weights_in_turn(weight: Tensor) -> Iterator[Tensor]:
    """Weights of zeros with the shape and dtype of `weight`, at OTHERS addresses."""
    space = torch.zeros(weight.nbytes + OTHERS * ALIGNMENT, dtype=torch.uint8, device=weight.device)
    views = [space[i * ALIGNMENT :][: weight.nbytes].view(weight.dtype) for i in range(OTHERS)]
    return itertools.cycle([view.view(weight.shape) for view in views])


def subjects(op: str, ops: Any, shape: Shape, device: str) -> dict[str, Callable[[], object]]:
    """By way, of those that the op has."""
    made = make_call(op, ops, shape, device)
    weight, all_sms = itertools.cycle([made.weight]), itertools.cycle([None])
    ways: dict[str, Callable[[], object]] = {WAYS[0]: lambda: made.call(next(weight), next(all_sms))}
    if made.weight is None or op == DISPATCH or device == "cpu":
        return ways
    # More SMs than there are: the same plan, but nobody has asked for it with this cap before.
    caps, weights = itertools.count(NEW_CAP * (1 + OPS.index(op))), weights_in_turn(made.weight)
    ways[WAYS[1]] = lambda: made.call(next(weight), next(caps))
    ways[WAYS[2]] = lambda: made.call(next(weights), next(all_sms))
    return ways


@contextmanager
def calls_on(device: str, shape: Shape) -> Iterator[tuple[dict[Key, Callable[[], object]], Any]]:
    """The timed calls, and the ops."""
    load_emulator()
    emulated = torch.ops.lamina_emu
    ops = emulated if device == "emulator" else torch.ops.lamina
    with emulated_gpu(*EMULATED_DEVICE, run_kernels=False) if device == "emulator" else nullcontext():
        yield (
            {
                (op, way): call
                for op in (DISPATCH, *OPS)
                for way, call in subjects(op, ops, shape, device).items()
            },
            ops,
        )


def sample(call: Callable[[], object], wait: Callable[[], None]) -> float:
    """Seconds of a call, of CALLS in a row after an eighth as many that do not count."""
    for _ in range(CALLS // 8):
        call()
    wait()
    start = time.perf_counter()
    for _ in range(CALLS):
        call()
    seconds = time.perf_counter() - start
    wait()
    return seconds / CALLS


def measure(
    calls: Sequence[Callable[[], object]], samples: int, wait: Callable[[], None]
) -> list[list[float]]:
    """The samples of each, one a round, in an order drawn anew."""
    seconds: list[list[float]] = [[] for _ in calls]
    order = list(range(len(calls)))
    shuffle = random.Random(0).shuffle
    gc.disable()
    try:
        for _ in range(samples):
            shuffle(order)
            for i in order:
                seconds[i].append(sample(calls[i], wait))
    finally:
        gc.enable()
    return seconds


def made_by(call: Callable[[], object], ops: Any) -> dict[str, int]:
    """Plans and tensor maps of a call that is not the first: by then torch's allocator repeats itself."""
    for _ in range(CALLS):
        call()
    before = json.loads(ops.host_work())
    call()
    after = json.loads(ops.host_work())
    return {name: after[name] - before[name] for name in after}


def rows_of(
    shape: Shape,
    device: str,
    seconds: Mapping[Key, list[float]],
    made: Mapping[Key, dict[str, int]],
    counted: Mapping[str, float],
) -> list[Row]:
    timings = {key: Timing.of(each, CALLS) for key, each in seconds.items()}
    dispatch = timings[DISPATCH, WAYS[0]].median_us
    rows = []
    for (op, way), timing in timings.items():
        is_ours = op != DISPATCH
        facts = {
            **vars(shape),
            "dtype": "bf16",
            "way": way,
            "calls_per_sample": timing.calls,
            "fastest_us": min(seconds[op, way]) * 1e6,
            "beside_torch_us": timing.median_us - dispatch if is_ours else None,
            "instructions": counted.get(f"{op}, {way}"),
            **made[op, way],
        }
        row: Row = dict.fromkeys(ROW_KEYS)
        row.update(op=op, impl="lamina" if is_ours else "torch", device=device, case=facts)
        row.update(median_us=timing.median_us, iqr_us=timing.iqr_us)
        rows.append(row)
    return rows


def table_of(rows: Sequence[Row]) -> Table:
    table = Table(
        "host time of a call",
        (
            *("op", "way", "median us", "iqr us", "fastest us", "beside torch us", "instructions"),
            *("plans", "maps"),
        ),
        left=2,
    )
    for row in rows:
        case = row["case"]
        times = (row["median_us"], row["iqr_us"], case["fastest_us"], case["beside_torch_us"])
        counts = (case["instructions"], case["plans"], case["tensor_maps"])
        cells = [*[cell(value, ".2f") for value in times], *[cell(value, ",.0f") for value in counts]]
        table.add([row["op"], case["way"], *cells])
    return table


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="bench/host_time.py"
    )
    default = "cuda" if torch.cuda.is_available() else "emulator"
    made.add_argument("--device", choices=("emulator", "cuda", "cpu"), default=default)
    for name, value in (("m", 1), ("n", 576), ("k", 576), ("group", 64)):
        made.add_argument(f"--{name}", type=int, default=value)
    made.add_argument("--samples", type=int, default=2 * MIN_SAMPLES, help="of each call, interleaved")
    made.add_argument(
        "--instructions", action="store_true", help="count them too: needs valgrind, two minutes"
    )
    made.add_argument("--under-valgrind", action="store_true", help=argparse.SUPPRESS)
    made.add_argument("--json", type=Path, help="also write the rows to this file")
    return made


def problem(wanted: argparse.Namespace) -> str | None:
    """Why the request cannot be met."""
    if wanted.samples < MIN_SAMPLES:
        return f"--samples: got {wanted.samples}; a median needs at least {MIN_SAMPLES}"
    if wanted.device == "cuda" and wanted.instructions:
        return "--instructions: not allowed with --device cuda"
    if wanted.device == "cuda" and not torch.cuda.is_available():
        return "--device: got 'cuda', but torch sees no CUDA device; allowed here: emulator, cpu"
    if wanted.instructions and not shutil.which("valgrind"):
        return "--instructions: valgrind is not installed"
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table."""
    wanted = parser().parse_args(arguments)
    if refused := problem(wanted):
        print(refused, file=sys.stderr)
        return 2
    shape = Shape(wanted.m, wanted.n, wanted.k, wanted.group)
    noise = machine.Noise()
    wait = torch.cuda.synchronize if wanted.device == "cuda" else lambda: None
    counted: dict[str, float] = {}
    with calls_on(wanted.device, shape) as (calls, ops):
        if wanted.under_valgrind:
            instructions.mark({", ".join(key): call for key, call in calls.items()})
            return 0
        seconds = dict(zip(calls, measure(list(calls.values()), wanted.samples, wait), strict=True))
        made = {key: made_by(call, ops) for key, call in calls.items()}
    if wanted.instructions:
        sizes = [f"--{name}={value}" for name, value in vars(shape).items()]
        counted = instructions.count([f"--device={wanted.device}", *sizes])
    rows = rows_of(shape, wanted.device, seconds, made, counted)
    make_printer()(table_of(rows))
    if wanted.json:
        described = machine.describe()
        described.update(
            threads=torch.get_num_threads(),
            hot=True,
            rotation_target_bytes=0,
            protocol={"samples": wanted.samples, "sample": f"mean of {CALLS} calls in a row", "seed": 0},
            noise=noise.to_json(),
        )
        save(wanted.json, {"machine": described, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
