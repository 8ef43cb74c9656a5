"""Self-test of every op on every instruction set and CUDA device here, and what to paste into a report.

What is expected is computed here in float64 and integers, from the definitions in lamina.ops: no kernel of
lamina takes part, and neither do click or rich.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from lamina import ops
from lamina.devices import cuda_problem
from lamina.pack import GROUP, INT4_LAYOUTS, pack_int4, pack_int8

CPU = torch.device("cpu")
FLT_MIN = 2.0**-126
UNIT = {torch.float32: 0.0, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


@dataclass(frozen=True)
class Outcome:
    """One case: the largest error over its bound; where the result must be exact, 0 or infinity."""

    case: str
    ratio: float


@dataclass(frozen=True)
class Check:
    """One op on one backend."""

    op: str
    backend: str
    outcomes: tuple[Outcome, ...]
    error: str = ""  # an exception
    skipped: str = ""  # why it did not run

    @property
    def worst(self) -> Outcome:
        """The case nearest to its bound, or past it."""
        return max(self.outcomes, key=lambda o: o.ratio, default=Outcome("none", math.inf))

    @property
    def passed(self) -> bool:
        """Whether every case ran and is within its bound."""
        return not self.error and not self.skipped and self.worst.ratio <= 1.0

    @property
    def failed(self) -> bool:
        """Whether it ran and did not pass."""
        return not self.passed and not self.skipped


DeviceCheck = Callable[[torch.device], Iterator[Outcome]]


def run_checks() -> Iterator[Check]:
    """Every check on every ISA and every CUDA device, one by one as they finish."""
    for isa in cpu_isas():
        with using_isa(isa):
            for op, check in CHECKS.items():
                yield _run(op, f"cpu {isa}", check, CPU)
    yield _run("gemm_int8", "cpu all", _check_same_bits, CPU)
    problem = cuda_problem()
    if problem is not None:
        for op in CHECKS:
            yield Check(op, "cuda", (), skipped=problem)
        return
    for device in (torch.device("cuda", index) for index in range(torch.cuda.device_count())):
        for op, check in CHECKS.items():
            yield _run(op, str(device), check, device)
        yield _run("gemm_int8", f"{device} and cpu", _check_same_bits_as_cpu, device)


def count_checks() -> int:
    """How many checks run_checks yields; a few too many where a CUDA device is there that cannot be used."""
    return len(CHECKS) * len(cpu_isas()) + 1 + max(len(CHECKS), torch.cuda.device_count() * (len(CHECKS) + 1))


def cpu_isas() -> list[str]:
    """Instruction sets that this machine runs and the build has, ascending."""
    names: str = torch.ops.lamina.cpu_isas()
    return names.split(",")


@contextmanager
def using_isa(name: str) -> Iterator[None]:
    """Runs the CPU kernels of one instruction set."""
    previous = torch.ops.lamina.set_cpu_isa(name)
    try:
        yield
    finally:
        torch.ops.lamina.set_cpu_isa(previous)


def _run(op: str, backend: str, check: DeviceCheck, device: torch.device) -> Check:
    try:
        return Check(op, backend, tuple(check(device)))
    except (RuntimeError, ValueError) as error:  # a broken build is what the doctor is asked about
        return Check(op, backend, (), f"{type(error).__name__}: {error}")


def _check_quantize_int8(device: torch.device) -> Iterator[Outcome]:
    seed = torch.Generator().manual_seed(1)
    for m, k in ((1, 1), (3, 65), (17, 200)):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            wide = (torch.randn(m, k + 3, generator=seed) * 3 + 1).to(dtype)
            x = wide[:, :k]  # rows are k + 3 apart
            if m > 3:
                x[0], x[1, 5], x[2, 7] = 0.0, math.nan, math.inf
            scale = torch.rand(m, 1, generator=seed) * 0.05 + 0.01
            zero_point = torch.randint(-128, 128, (m, 1), dtype=torch.int8, generator=seed)
            for kind, given, point, symmetric in (
                ("dynamic symmetric", None, None, True),
                ("dynamic asymmetric", None, None, False),
                ("static symmetric", scale, None, True),
                ("static asymmetric", scale, zero_point, False),
            ):
                got = ops.quantize_int8(
                    wide.to(device)[:, :k],
                    scale=_on(device, given),
                    zero_point=_on(device, point),
                    symmetric=symmetric,
                )
                expected = reference_quantize_int8(x, given, point, symmetric)
                same = _same(got.q, expected[0]) and _same(got.scale, expected[1])
                if got.zero_point is not None:
                    same = same and _same(got.zero_point, expected[2])
                yield Outcome(f"{kind} {_short(dtype)} [{m}, {k}]", 0.0 if same else math.inf)


def reference_quantize_int8(
    x: Tensor, scale: Tensor | None, zero_point: Tensor | None, symmetric: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """q, scale, zero point as lamina.ops.quantize_int8 defines them; f64 rounded to f32 at every step."""
    x = x.double()
    bad = torch.isnan(x).any(1, keepdim=True)
    low = x.amin(1, keepdim=True).clamp(max=0)
    high = x.amax(1, keepdim=True).clamp(min=0)
    zero = torch.zeros_like(low)
    if scale is not None:
        step = scale.double()
        zero = zero if zero_point is None else zero_point.double()
        inverse = _f32(1 / step)
    else:
        bad |= torch.isinf(x).any(1, keepdim=True)
        widest = torch.maximum(high, -low)
        step = _f32(widest / 127) if symmetric else _f32(_f32(high / 255) - _f32(low / 255))
        step = step.clamp(min=FLT_MIN)
        inverse = _f32(1 / step)
        if not symmetric:
            zero = torch.round(_f32(-128 - _f32(low * inverse))).clamp(-128, 127)
    least = -127 if symmetric else -128
    q = (torch.round(_f32(x * inverse)) + zero).clamp(least, 127)
    q, zero = torch.where(bad, 0.0, q), torch.where(bad, 0.0, zero)
    return q, torch.where(bad, math.nan, step), zero


def _check_pack_int8(device: torch.device) -> Iterator[Outcome]:
    seed = torch.Generator().manual_seed(2)
    for n, k in ((1, 1), (16, 64), (33, 70), (5, 257)):
        w = torch.randint(-128, 128, (n, k), dtype=torch.int8, generator=seed)
        packed = pack_int8(w.to(device))
        same = (
            packed.device == device
            and _same(packed.unpack(), w)
            and _same(packed.column_sums, w.long().sum(1))
            # Padding is zero: it adds nothing to either sum.
            and int(packed.data.long().abs().sum()) == int(w.long().abs().sum())
        )
        yield Outcome(f"[{n}, {k}]", 0.0 if same else math.inf)


def _check_pack_int4(device: torch.device) -> Iterator[Outcome]:
    seed = torch.Generator().manual_seed(6)
    for layout in INT4_LAYOUTS:
        for n, k in ((1, 1), (16, 64), (33, 70), (5, 257)):
            q = torch.randint(0, 16, (n, k), dtype=torch.uint8, generator=seed)
            packed = pack_int4(q.to(device), layout)
            codes = packed.data.long() % 16 + packed.data.long() // 16
            # Padding is zero: it adds nothing to the sum.
            same = (
                packed.device == device
                and _same(packed.unpack(), q)
                and int(codes.sum()) == int(q.long().sum())
            )
            yield Outcome(f"{layout} [{n}, {k}]", 0.0 if same else math.inf)


# m, n, k: smallest, one row, ragged on every axis, full tiles, long k.
_GEMM_CASES = ((1, 1, 1), (1, 100, 300), (5, 33, 63), (17, 31, 129), (32, 64, 128), (70, 50, 1000), (0, 8, 8))


def _check_gemm_int8(device: torch.device) -> Iterator[Outcome]:
    seed = torch.Generator().manual_seed(3)
    for m, n, k in _GEMM_CASES:
        for dtype in UNIT:
            for shifted in (False, True):
                wide = torch.randint(-128, 128, (m, k + 5), dtype=torch.int8, generator=seed)
                w = torch.randint(-128, 128, (n, k), dtype=torch.int8, generator=seed)
                yield _gemm_case(wide, w, dtype, shifted, seed, device)
    for m, n, k in ((1, 100, 300), (17, 31, 1100), (70, 50, 1000)):
        wide = torch.randint(-128, 128, (m, k + 5), dtype=torch.int8, generator=seed)
        w = torch.randint(-128, 128, (n, k), dtype=torch.int8, generator=seed)
        yield _gemm_case(wide, w, torch.float32, True, seed, device, GROUP)
    # Every product is the largest there is: an accumulator that saturates shows here.
    for a_value, w_value in ((-128, -128), (127, -128), (-128, 127)):
        wide = torch.full((9, 520), a_value, dtype=torch.int8)
        w = torch.full((19, 513), w_value, dtype=torch.int8)
        yield _gemm_case(wide, w, torch.float32, True, seed, device)


def _gemm_case(
    wide: Tensor,
    w: Tensor,
    dtype: torch.dtype,
    shifted: bool,
    seed: torch.Generator,
    device: torch.device,
    group: int | None = None,
) -> Outcome:
    """One product; a is the first k columns of `wide`, so its rows are further apart."""
    (n, k), m = w.shape, len(wide)
    a = wide[:, :k]
    cuts = [slice(first, first + (group or k)) for first in range(0, k, group or k)]
    a_scale = torch.rand(m, len(cuts), generator=seed) * 0.01 + 0.001
    w_scale = torch.rand(len(cuts), n, generator=seed) * 0.01 + 0.001
    zero_point = torch.randint(-128, 128, (m, 1), dtype=torch.int8, generator=seed) if shifted else None
    bias = torch.randn(n, generator=seed).to(dtype) if shifted else None
    out = ops.gemm_int8(
        wide.to(device)[:, :k],
        pack_int8(w.to(device), group),
        a_scale.to(device),
        (w_scale[0] if group is None else w_scale).to(device),
        a_zero_point=_on(device, zero_point),
        bias=_on(device, bias),
        out_dtype=dtype,
    ).cpu()
    centred = a.double() if zero_point is None else a.double() - zero_point.double()
    # The sums are exact: below 2^53.
    products = torch.stack(
        [
            centred[:, cut] @ w[:, cut].double().T * a_scale[:, g : g + 1].double() * w_scale[g].double()
            for g, cut in enumerate(cuts)
        ]
    )
    exact = products.sum(0) if bias is None else products.sum(0) + bias.double()
    tiny = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    steps = 4 if group is None else 4 + min(len(cuts), 8) + -(-len(cuts) // 8)
    bound = steps * 2.0**-24 * products.abs().sum(0) + (2.0**-24 + UNIT[dtype]) * exact.abs() + tiny
    what = " zero point and bias" * shifted + " scales along k" * (group is not None)
    label = f"{_short(dtype)}{what} m = {m}, n = {n}, k = {k}"
    return Outcome(label, _worst_ratio(out, exact, bound))


def _check_gemm_int8_quantized(device: torch.device) -> Iterator[Outcome]:
    """Half a step from silu(product) * gate + residual, and a hundredth for its f32 steps."""
    seed = torch.Generator().manual_seed(5)
    for m, n, k in ((1, 100, 300), (5, 33, 63), (17, 31, 129)):
        a = torch.randint(-128, 128, (m, k), dtype=torch.int8, generator=seed)
        w = torch.randint(-128, 128, (n, k), dtype=torch.int8, generator=seed)
        scales = torch.full((m, 1), 2.0**-9), torch.rand(n, generator=seed) * 0.01 + 0.001
        gate, residual = torch.randn(2, m, n, generator=seed)
        product = a.double() @ w.double().T * scales[0].double() * scales[1].double()
        exact = torch.nn.functional.silu(product) * gate.double() + residual.double()
        for kind, out_scale in (("per token", None), ("static", (exact.abs().amax(1, True) / 127).float())):
            got = ops.gemm_int8_quantized(
                a.to(device),
                pack_int8(w.to(device)),
                scales[0].to(device),
                scales[1].to(device),
                activation="silu",
                gate=gate.to(device),
                residual=residual.to(device),
                out_scale=_on(device, out_scale),
            )
            steps = got.scale.cpu().double()
            ratio = _worst_ratio(got.q.cpu().double() * steps, exact, (0.51 * steps).expand(m, n))
            yield Outcome(f"silu, gate, residual, {kind} m = {m}, n = {n}, k = {k}", ratio)


def _layer(device: torch.device) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """An input and an int8 layer, from f32 to f32, both on the device."""
    seed = torch.Generator().manual_seed(4)
    x = torch.randn(37, 300, generator=seed).to(device)
    w = pack_int8(torch.randint(-128, 128, (70, 300), dtype=torch.int8, generator=seed)).to(device)
    w_scale = (torch.rand(70, generator=seed) * 0.01).to(device)

    def product(rows: Tensor) -> Tensor:
        a = ops.quantize_int8(rows, symmetric=False)
        return ops.gemm_int8(a.q, w, a.scale, w_scale, a_zero_point=a.zero_point)

    return x, product


def _one_by_one(x: Tensor, product: Callable[[Tensor], Tensor], expected: Tensor) -> Outcome:
    alone = torch.cat([product(x[row : row + 1]) for row in range(len(x))])
    return Outcome("rows one by one", 0.0 if _same(alone, expected) else math.inf)


def _check_same_bits_as_cpu(device: torch.device) -> Iterator[Outcome]:
    """A row of the result has the same bits on the device as on the CPU, and in every batch."""
    x, product = _layer(device)
    x_cpu, product_cpu = _layer(CPU)
    got = product(x)
    yield Outcome("against the cpu", 0.0 if _same(got, product_cpu(x_cpu)) else math.inf)
    yield _one_by_one(x, product, got)


def _check_same_bits(device: torch.device) -> Iterator[Outcome]:
    """A row of the result has the same bits on every ISA, in every batch and with any thread count."""
    x, product = _layer(device)
    expected = product(x)
    for isa in cpu_isas():
        with using_isa(isa):
            yield Outcome(f"{isa} against the default", 0.0 if _same(product(x), expected) else math.inf)
    yield _one_by_one(x, product, expected)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        yield Outcome("one thread", 0.0 if _same(product(x), expected) else math.inf)
    finally:
        torch.set_num_threads(threads)


def _worst_ratio(out: Tensor, exact: Tensor, bound: Tensor) -> float:
    """Largest error over bound; infinity for a NaN, an Inf or a shape that should not be there."""
    if out.shape != exact.shape or not bool(torch.isfinite(out).all()):
        return math.inf
    if out.numel() == 0:
        return 0.0
    return float(((out.double() - exact).abs() / bound).max())


def _same(got: Tensor, expected: Tensor) -> bool:
    """Equal values at every place, on whatever devices; a NaN equals a NaN."""
    if got.shape != expected.shape:
        return False
    left, right = got.cpu().double(), expected.cpu().double()
    return bool(((left == right) | (torch.isnan(left) & torch.isnan(right))).all())


def _on(device: torch.device, tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.to(device)


def _f32(x: Tensor) -> Tensor:
    return x.float().double()


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# unpack_int8 and unpack_int4 are checked by what they are for: giving back what was packed.
CHECKS: dict[str, DeviceCheck] = {
    "quantize_int8": _check_quantize_int8,
    "pack_int8": _check_pack_int8,
    "pack_int4": _check_pack_int4,
    "gemm_int8": _check_gemm_int8,
    "gemm_int8_quantized": _check_gemm_int8_quantized,
}
