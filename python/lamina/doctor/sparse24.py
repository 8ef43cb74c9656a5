"""The checks that lamina doctor makes of the ops on 2:4 weights."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from lamina import ops
from lamina.doctor.outcome import DeviceCheck, Outcome
from lamina.ops.compress_sparse24 import compress_sparse24
from lamina.ops.pack_sparse24 import PackedSparse24, pack_sparse24, sparse24_layout_for
from lamina.testing import error_over_bound, reference, same_values

ZERO_CODE = 8
CASES = ((1, 1, 4), (1, 100, 300), (5, 33, 64), (17, 31, 1100), (70, 50, 132))


def _mask(n: int, k: int, seed: torch.Generator) -> Tensor:
    """Two entries of each group of four, at random."""
    order = torch.rand(n, k // 4, 4, generator=seed).argsort(-1)
    return (order < 2).view(n, k)


def _packed(w: Tensor, mask: Tensor, device: torch.device, fill: int = 0) -> PackedSparse24:
    return pack_sparse24(compress_sparse24(w, mask, fill), sparse24_layout_for(device)).to(device)


def _check_compress(device: torch.device) -> Iterator[Outcome]:
    seed = torch.Generator().manual_seed(20)
    for n, k in ((1, 4), (33, 68), (5, 256)):
        w = torch.randn(n, k, generator=seed) * _mask(n, k, seed)
        sparse = compress_sparse24(w.to(device))
        same = same_values(sparse.decompress().cpu(), w) and list(sparse.values.shape) == [n, k // 2]
        yield Outcome(f"[{n}, {k}]", 0.0 if same else math.inf)


def _check_pack(device: torch.device) -> Iterator[Outcome]:
    seed = torch.Generator().manual_seed(21)
    for n, k in ((1, 4), (33, 68), (5, 256)):
        w = torch.randint(-128, 128, (n, k), dtype=torch.int8, generator=seed) * _mask(n, k, seed)
        packed = _packed(w, w != 0, device)
        sums = packed.column_sums
        same = sums is not None and same_values(sums.cpu(), w.long().sum(1))
        same = same and same_values(packed.to("cpu").unpack().decompress(), w)
        yield Outcome(f"[{n}, {k}]", 0.0 if same else math.inf)


def _check_int8(device: torch.device) -> Iterator[Outcome]:
    seed = torch.Generator().manual_seed(22)
    for m, n, k in CASES:
        a = torch.randint(-128, 128, (m, k), dtype=torch.int8, generator=seed)
        w = torch.randint(-128, 128, (n, k), dtype=torch.int8, generator=seed) * _mask(n, k, seed)
        a_scale = torch.rand(m, 1, generator=seed) * 0.01 + 0.001
        w_scale = torch.rand(1, n, generator=seed) * 0.01 + 0.001
        point = torch.randint(-128, 128, (m, 1), dtype=torch.int8, generator=seed)
        out = ops.matmul_sparse24_int8(
            a.to(device), _packed(w, w != 0, device), a_scale.to(device), w_scale[0].to(device),
            a_zero_point=point.to(device),
        )  # fmt: skip
        expected = reference.gemm_int8(a, w, a_scale, w_scale, torch.float32, a_zero_point=point)
        yield Outcome(f"m = {m}, n = {n}, k = {k}", error_over_bound(out.cpu(), expected))


def _int4(n: int, k: int, group: int, seed: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Codes that are 8 where they are not kept, the mask, and scales."""
    mask = _mask(n, k, seed)
    q = torch.randint(0, 16, (n, k), dtype=torch.uint8, generator=seed)
    scale = torch.rand(-(-k // group), n, generator=seed) * 0.01 + 0.001
    return q.where(mask, ZERO_CODE), mask, scale


def _check_int4(device: torch.device) -> Iterator[Outcome]:
    seed = torch.Generator().manual_seed(23)
    is_cuda = device.type == "cuda"
    dtype = torch.float16 if is_cuda else torch.float32
    for m, n, k in CASES:
        q, mask, scale = _int4(n, k, 32, seed)
        a, scale = torch.randn(m, k, generator=seed).to(dtype), scale.to(dtype)
        packed = _packed(q, mask, device, ZERO_CODE)
        out = ops.matmul_sparse24_int4(a.to(device), packed, scale.to(device), group=32)
        expected = reference.gemm_int4(a, q, scale, 32, dtype, on_cuda=is_cuda)
        yield Outcome(f"m = {m}, n = {n}, k = {k}", error_over_bound(out.cpu(), expected))


def _check_int4_int8(device: torch.device) -> Iterator[Outcome]:
    seed = torch.Generator().manual_seed(24)
    for m, n, k in CASES:
        q, mask, scale = _int4(n, k, 32, seed)
        a = torch.randint(-128, 128, (m, k), dtype=torch.int8, generator=seed)
        a_scale = torch.rand(m, 1, generator=seed) * 0.01 + 0.001
        packed = _packed(q, mask, device, ZERO_CODE)
        out = ops.matmul_sparse24_int4_int8(
            a.to(device), packed, scale.to(device), group=32, a_scale=a_scale.to(device)
        )
        expected = reference.gemm_int4_int8(a, q, scale, 32, a_scale, torch.float32)
        yield Outcome(f"m = {m}, n = {n}, k = {k}", error_over_bound(out.cpu(), expected))


def _check_floats(device: torch.device) -> Iterator[Outcome]:
    """Values so small that every sum is exact in any order."""
    seed = torch.Generator().manual_seed(25)
    halves = (torch.float16, torch.bfloat16)
    for m, n, k in CASES:
        for dtype in halves if device.type == "cuda" else (torch.float32, *halves):
            a = torch.randint(-3, 4, (m, k), generator=seed).to(dtype)
            mask = _mask(n, k, seed)
            w = (torch.randint(-7, 8, (n, k), generator=seed) * mask).to(dtype)
            out = ops.matmul_sparse24(a.to(device), _packed(w, mask, device), out_dtype=torch.float32)
            same = same_values(out.cpu(), (a.double() @ w.double().T).float())
            name = str(dtype).removeprefix("torch.")
            yield Outcome(f"{name} m = {m}, n = {n}, k = {k}", 0.0 if same else math.inf)


# The checks of compress_sparse24 and pack_sparse24 also go the way back.
CHECKS: dict[str, DeviceCheck] = {
    "compress_sparse24": _check_compress,
    "pack_sparse24": _check_pack,
    "matmul_sparse24": _check_floats,
    "matmul_sparse24_int8": _check_int8,
    "matmul_sparse24_int4": _check_int4,
    "matmul_sparse24_int4_int8": _check_int4_int8,
}
