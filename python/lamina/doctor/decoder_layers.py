"""The check of decoder_layers: the bits of its ops one by one."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from lamina import ops
from lamina.doctor.outcome import DeviceCheck, Outcome
from lamina.ops.decoder_layers import DecoderLayer, PackedProduct, ProductKind
from lamina.testing import same_values

HEADS, KV_HEADS, DIM, HIDDEN, WIDE = 4, 2, 64, 128, 192
LENGTH, TOKENS, PAGE = 21, 5, 16
EPS = (1e-5, 1e-6)


def _check(device: torch.device) -> Iterator[Outcome]:
    seed = torch.Generator().manual_seed(9)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=seed).half().to(device)

    sizes = ((HEADS + 2 * KV_HEADS) * DIM, HIDDEN), (HIDDEN, HEADS * DIM), (2 * WIDE, HIDDEN), (HIDDEN, WIDE)
    codes = [torch.randint(-127, 128, size, generator=seed, dtype=torch.int8) for size in sizes]
    packed = [ops.pack_int8(q).to(device) for q in codes]
    scales = [torch.full((n,), k**-0.5 / 100, device=device) for n, k in sizes]
    norms = random(HIDDEN), random(HIDDEN)
    x, k, v = random(TOKENS, HIDDEN), random(2, PAGE, KV_HEADS, DIM), random(2, PAGE, KV_HEADS, DIM)
    numbers = torch.arange(LENGTH - TOKENS, LENGTH, device=device)
    angle = torch.rand(LENGTH, DIM // 2, generator=seed).to(device) * 6
    cos, sin = angle.cos(), angle.sin()
    tables = {
        "block_table": torch.tensor([[0, 1]], device=device).int(),
        "seq_lens": torch.tensor([LENGTH], device=device).int(),
        "cu_seqlens_q": torch.tensor([0, TOKENS], device=device).int(),
    }

    def multiply(at: int, a: ops.QuantizedInt8, residual: Tensor | None = None) -> Tensor:
        return ops.gemm_int8(
            a.q, packed[at], a.scale, scales[at], out_dtype=torch.half, residual=residual
        )  # fmt: skip

    keys, values = k.clone(), v.clone()
    rows = multiply(0, ops.rms_norm_int8(x, norms[0], eps=EPS[0])).view(TOKENS, -1, DIM)
    q, new_k, new_v = torch.split(rows, [HEADS, KV_HEADS, KV_HEADS], dim=1)
    ops.append_paged_kv(new_k, new_v, keys, values, numbers, cos=cos, sin=sin, positions=numbers, q=q)
    attended = ops.paged_attention(q, keys, values, *tables.values(), max_seqlen_q=TOKENS)
    assert isinstance(attended, Tensor)
    middle = multiply(1, ops.quantize_int8(attended.flatten(1)), x)
    both = multiply(2, ops.rms_norm_int8(middle, norms[1], eps=EPS[1]))
    want = multiply(3, ops.silu_mul_int8(both), middle)

    def product(at: int) -> PackedProduct:
        weight = packed[at]
        assert weight.column_sums is not None
        return PackedProduct.of(ProductKind.W8A8, [weight.data, weight.column_sums, scales[at]])

    layer = DecoderLayer(norms, EPS, (product(0), product(1), product(2), product(3)))
    got = ops.decoder_layers(
        x, [layer], k_caches=[k], v_caches=[v], k_scales=[], v_scales=[], slot_mapping=numbers, cos=cos,
        sin=sin, positions=numbers, heads=HEADS, max_seqlen_q=TOKENS, **tables,
    )  # fmt: skip
    for name, a, b in (("result", got, want), ("keys", k, keys), ("values", v, values)):
        yield Outcome(name, 0.0 if same_values(a.cpu(), b.cpu()) else math.inf)


CHECKS: dict[str, DeviceCheck] = {"decoder_layers": _check}
