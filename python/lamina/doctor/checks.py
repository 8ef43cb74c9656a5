"""The checks that lamina doctor makes of every op on a device, against lamina.testing.reference."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from lamina import ops
from lamina.doctor import activations, attention, decoder_layers, sample, sparse24
from lamina.doctor.outcome import DeviceCheck, Outcome
from lamina.ops import pack_int4, pack_int8
from lamina.ops.pack_int4 import INT4_LAYOUTS, layout_for
from lamina.ops.pack_int8 import GROUP
from lamina.testing import error_over_bound, reference, same_values
from lamina.testing.reference import Expected

HALVES = (torch.float16, torch.bfloat16)
FLOATS = (torch.float32, *HALVES)


def _check_quantize_int8(device: torch.device) -> Iterator[Outcome]:
    seed = torch.Generator().manual_seed(1)
    for m, k in ((1, 1), (3, 65), (17, 200)):
        for dtype in FLOATS:
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
                expected = reference.quantize_int8(x, given, point, symmetric)
                same = same_values(got.q, expected[0]) and same_values(got.scale, expected[1])
                if got.zero_point is not None:
                    same = same and same_values(got.zero_point, expected[2])
                yield Outcome(f"{kind} {_short(dtype)} [{m}, {k}]", 0.0 if same else math.inf)


def _check_pack_int8(device: torch.device) -> Iterator[Outcome]:
    seed = torch.Generator().manual_seed(2)
    for n, k in ((1, 1), (16, 64), (33, 70), (5, 257)):
        w = torch.randint(-128, 128, (n, k), dtype=torch.int8, generator=seed)
        packed = pack_int8(w.to(device))
        same = (
            packed.device == device
            and same_values(packed.unpack(), w)
            and same_values(packed.column_sums, w.long().sum(1))
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
                and same_values(packed.unpack(), q)
                and int(codes.sum()) == int(q.long().sum())
            )
            yield Outcome(f"{layout} [{n}, {k}]", 0.0 if same else math.inf)


# m, n, k: smallest, one row, ragged on every axis, full tiles, long k.
_GEMM_CASES = ((1, 1, 1), (1, 100, 300), (5, 33, 63), (17, 31, 129), (32, 64, 128), (70, 50, 1000), (0, 8, 8))


def _check_gemm_int8(device: torch.device) -> Iterator[Outcome]:
    seed = torch.Generator().manual_seed(3)
    for m, n, k in _GEMM_CASES:
        for dtype in FLOATS:
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
    groups = -(-k // (group or k))
    a_scale = torch.rand(m, groups, generator=seed) * 0.01 + 0.001
    w_scale = torch.rand(groups, n, generator=seed) * 0.01 + 0.001
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
    expected = reference.gemm_int8(
        wide[:, :k], w, a_scale, w_scale, dtype, group=group, a_zero_point=zero_point, bias=bias
    )
    what = " zero point and bias" * shifted + " scales along k" * (group is not None)
    label = f"{_short(dtype)}{what} m = {m}, n = {n}, k = {k}"
    return Outcome(label, error_over_bound(out, expected))


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
            bounded = Expected(exact, (0.51 * steps).expand(m, n))
            ratio = error_over_bound(got.q.cpu().double() * steps, bounded)
            yield Outcome(f"silu, gate, residual, {kind} m = {m}, n = {n}, k = {k}", ratio)


def _check_gemm_int4_int8(device: torch.device) -> Iterator[Outcome]:
    """Symmetric and with zero points, int8 and float activations; groups that end inside tiles."""
    seed = torch.Generator().manual_seed(7)
    for m, n, k, group in (
        (1, 1, 1, 16),
        (1, 100, 300, 32),
        (5, 33, 63, -1),
        (17, 31, 1100, 48),
        (0, 8, 8, 16),
    ):
        a = torch.randint(-128, 128, (m, k), dtype=torch.int8, generator=seed)
        q = torch.randint(0, 16, (n, k), dtype=torch.uint8, generator=seed)
        for shifted in (False, True):
            yield _int4_case(a, q, group, shifted, seed, device)
    # Every product is the largest there is.
    for a_value, code in ((-128, 15), (127, 15), (-128, 0)):
        a = torch.full((9, 520), a_value, dtype=torch.int8)
        q = torch.full((19, 520), code, dtype=torch.uint8)
        for group in (48, 512):
            yield _int4_case(a, q, group, True, seed, device)
    x = torch.randn(7, 300, generator=seed)
    packed = pack_int4(q[:, :300].to(device), layout_for(device))
    w_scale = torch.rand(5, 19, generator=seed).to(device)
    quantised = ops.quantize_int8(x.to(device))
    got = ops.gemm_int4_int8(x.to(device), packed, w_scale, group=64)
    expected = ops.gemm_int4_int8(quantised.q, packed, w_scale, group=64, a_scale=quantised.scale)
    yield Outcome("float activations", 0.0 if same_values(got, expected) else math.inf)


def _int4_case(
    a: Tensor, q: Tensor, group: int, shifted: bool, seed: torch.Generator, device: torch.device
) -> Outcome:
    """shifted: zero points of activations and weights, those with fractions, and a bias."""
    (m, k), n = a.shape, len(q)
    groups = -(-k // (k if group == -1 else group))
    a_scale = torch.rand(m, 1, generator=seed) * 0.01 + 0.001
    w_scale = torch.rand(groups, n, generator=seed) * 0.01 + 0.001
    w_zero = torch.rand(groups, n, generator=seed) * 15 if shifted else None
    a_zero = torch.randint(-128, 128, (m, 1), dtype=torch.int8, generator=seed) if shifted else None
    bias = torch.randn(n, generator=seed) if shifted else None
    out = ops.gemm_int4_int8(
        a.to(device),
        pack_int4(q.to(device), layout_for(device)),
        w_scale.to(device),
        group=group,
        a_scale=a_scale.to(device),
        w_zero_point=_on(device, w_zero),
        a_zero_point=_on(device, a_zero),
        bias=_on(device, bias),
    ).cpu()
    expected = reference.gemm_int4_int8(
        a, q, w_scale, group, a_scale, out.dtype, w_zero_point=w_zero, a_zero_point=a_zero, bias=bias
    )
    label = f"{'zero points and bias ' * shifted}m = {m}, n = {n}, k = {k}, group {group}"
    return Outcome(label, error_over_bound(out, expected))


def _check_gemm_int4(device: torch.device) -> Iterator[Outcome]:
    """Every dtype of a, symmetric and with zero points; groups that end inside tiles."""
    seed = torch.Generator().manual_seed(8)
    is_cuda = device.type == "cuda"
    for m, n, k, group in ((1, 1, 1, 16), (1, 100, 300, 32), (5, 33, 63, -1), (17, 31, 1100, 48)):
        for dtype in HALVES if is_cuda else FLOATS:
            kept = dtype if is_cuda else torch.float32  # of scales
            a = torch.randn(m, k, generator=seed).to(dtype)
            q = torch.randint(0, 16, (n, k), dtype=torch.uint8, generator=seed)
            each = k if group == -1 else group
            w_scale = (torch.rand(-(-k // each), n, generator=seed) * 0.01 + 0.001).to(kept)
            floats = (torch.rand(w_scale.shape, generator=seed) * 15).to(kept)
            for zero in (None, floats.to(torch.uint8), floats):
                out = ops.gemm_int4(
                    a.to(device),
                    pack_int4(q.to(device), layout_for(device)),
                    w_scale.to(device),
                    group=group,
                    w_zero_point=_on(device, zero),
                ).cpu()
                expected = reference.gemm_int4(
                    a, q, w_scale, group, dtype, w_zero_point=zero, on_cuda=is_cuda
                )
                zeros = "" if zero is None else " zero points" if zero is floats else " integer zero points"
                label = f"{_short(dtype)}{zeros} m = {m}, n = {n}, k = {k}"
                yield Outcome(f"{label}, group {group}", error_over_bound(out, expected))


def _on(device: torch.device, tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.to(device)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# The checks of pack_int8 and pack_int4 also unpack.
CHECKS: dict[str, DeviceCheck] = {
    "quantize_int8": _check_quantize_int8,
    **activations.CHECKS,
    "pack_int8": _check_pack_int8,
    "pack_int4": _check_pack_int4,
    "gemm_int8": _check_gemm_int8,
    "gemm_int8_quantized": _check_gemm_int8_quantized,
    "gemm_int4": _check_gemm_int4,
    "gemm_int4_int8": _check_gemm_int4_int8,
    **sparse24.CHECKS,
    **attention.CHECKS,
    **decoder_layers.CHECKS,
    **sample.CHECKS,
}
