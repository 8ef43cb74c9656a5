"""PackedLinear.shard: parts of packed layers along n and k, whole tiles and any other range."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import lamina
from lamina.nn import Int4Linear, Int8Linear, Sparse24Int4Linear, Sparse24Int8Linear, Sparse24Linear
from lamina.nn.packed_linear import PackedLinear
from lamina.ops.pack_sparse24 import CUDA_LAYOUT
from lamina.quant import QuantizedInt4, quantize_weight_int4
from tests.python.test_int8_linear import make_linear, seeded
from tests.support.cases import generator
from tests.support.compare import assert_equal

N, K = 70, 300


def act_order(group: int, *, symmetric: bool, n: int = N, k: int = K) -> Int4Linear:
    """Groups of 16 or more features in any order, the last one ragged, as GPTQ's desc_act leaves them."""
    plain = quantize_weight_int4(make_linear(k, n).weight.detach(), group, symmetric=symmetric)
    g_idx = (torch.arange(k) // group)[torch.randperm(k, generator=generator("g_idx"))].int()
    weight = QuantizedInt4(plain.q, plain.scale, plain.zero_point, k, g_idx)
    return Int4Linear.from_quantized(weight, seeded(n, seed=2), activations="float")


def static_int8() -> Int8Linear:
    q = torch.randint(-128, 128, (N, K), generator=generator("q"), dtype=torch.int8)
    scales = torch.rand(N, generator=generator("scales")) + 0.01
    given = {"input_scale": torch.tensor([0.03]), "input_zero_point": torch.tensor([-7], dtype=torch.int8)}
    return Int8Linear.from_quantized(q, scales, seeded(N, seed=2), symmetric=False, **given)


DENSE: dict[str, Callable[[], PackedLinear]] = {
    "int8": lambda: Int8Linear.from_linear(make_linear(K, N)),
    "int8 asymmetric, bf16": lambda: Int8Linear.from_linear(
        make_linear(K, N, dtype=torch.bfloat16), symmetric=False
    ),
    "int8 static": static_int8,
    "int4": lambda: Int4Linear.from_linear(make_linear(K, N), group=32),
    "int4 asymmetric, groups of 128": lambda: Int4Linear.from_linear(make_linear(K, N), symmetric=False),
    "int4, one group, f16": lambda: Int4Linear.from_linear(
        make_linear(K, N, bias=False, dtype=torch.float16), group=-1
    ),
    "int4 with int8, groups of 48": lambda: Int4Linear.from_linear(
        make_linear(K, N), group=48, activations="int8"
    ),
    "act-order": lambda: act_order(32, symmetric=True),
    "act-order asymmetric": lambda: act_order(64, symmetric=False),
}
SPARSE: dict[str, Callable[[], PackedLinear]] = {
    "2:4 float": lambda: Sparse24Linear.from_linear(make_linear(K, N)),
    "2:4 int8": lambda: Sparse24Int8Linear.from_linear(make_linear(K, N), symmetric=False),
    "2:4 int4": lambda: Sparse24Int4Linear.from_linear(make_linear(K, N), group=32),
    "2:4 int4, groups of 128": lambda: Sparse24Int4Linear.from_linear(
        make_linear(K, N), symmetric=False, activations="int8"
    ),
}
AT_TILES = (
    ((0, 16), None),
    ((16, 70), None),
    (None, (0, 128)),
    (None, (64, 300)),
    ((32, 48), (192, 256)),
    (None, None),
)
ANYWHERE = (
    ((5, 6), None),
    ((0, 35), (0, 150)),
    ((35, 70), (150, 300)),
    (None, (7, 9)),
    (None, (96, 299)),
    ((1, 70), (16, 300)),
)
CASES = [(name, make, cuts) for name, make in DENSE.items() for cuts in (AT_TILES, ANYWHERE)]
CASES += [(name, make, AT_TILES) for name, make in SPARSE.items()]
Range = tuple[int, int]


@pytest.mark.parametrize(
    ("make", "cuts"),
    [case[1:] for case in CASES],
    ids=[f"{name}, {'tiles' if cuts is AT_TILES else 'anywhere'}" for name, _, cuts in CASES],
)
def test_a_part_has_the_weight_of_its_features(
    make: Callable[[], PackedLinear], cuts: tuple[tuple[Range | None, Range | None], ...]
) -> None:
    whole = make()
    before = copy.deepcopy(whole.state_dict())
    weight = whole.dequantize_weight()
    for n, k in cuts:
        part = whole.shard(n, k)
        (n0, n1), (k0, k1) = n or (0, N), k or (0, K)
        assert type(part) is type(whole)
        assert (part.out_features, part.in_features) == (n1 - n0, k1 - k0)
        assert part.weight_dtype is whole.weight_dtype
        assert_equal(part.dequantize_weight(), weight[n0:n1, k0:k1])
        assert (part.bias is None) == (whole.bias is None or k0 > 0)
        if part.bias is not None:
            assert_equal(part.bias, whole.bias[n0:n1])
        shared = {t.untyped_storage().data_ptr() for t in part.buffers()}
        assert not shared & {t.untyped_storage().data_ptr() for t in whole.buffers()}
        assert (
            sum(t.untyped_storage().nbytes() for t in part.buffers()) == part.nbytes
        )  # no part keeps a whole
        fresh = type(part)(k1 - k0, n1 - n0, part.bias is not None)
        fresh.load_state_dict(part.state_dict())
        x = seeded(3, k1 - k0).to(whole.weight_dtype)
        with torch.no_grad():
            assert_equal(fresh(x), part(x))
    assert all(torch.equal(before[name], tensor) for name, tensor in whole.state_dict().items())


@pytest.mark.parametrize("make", [*DENSE.values(), *SPARSE.values()], ids=[*DENSE, *SPARSE])
def test_outputs_along_n_are_those_of_the_layer(make: Callable[[], PackedLinear]) -> None:
    whole, x = make(), seeded(5, K)
    cuts = ((0, 32), (32, 70)) if whole.FORMATS.keys() & {4, 5, 6} else ((0, 35), (35, 70))
    with torch.no_grad():
        parts = torch.cat([whole.shard(n=cut)(x) for cut in cuts], 1)
        assert_equal(parts, whole(x))


@pytest.mark.parametrize("make", [*DENSE.values(), *SPARSE.values()], ids=[*DENSE, *SPARSE])
def test_outputs_along_k_add_up_to_those_of_the_layer(make: Callable[[], PackedLinear]) -> None:
    """Activations -1, 0 and 1 are exact in int8, and each part has a 1: the parts quantise as the whole."""
    whole = make()
    x = torch.randint(-1, 2, (7, K), generator=generator("x")).float()
    x[:, ::10], x[:, 1::10] = 1, -1
    cuts = ((0, 128), (128, 300)) if whole.FORMATS.keys() & {4, 5, 6} else ((0, 50), (50, 178), (178, 300))
    with torch.no_grad():
        total = sum(whole.shard(k=cut)(x[:, slice(*cut)]).double() for cut in cuts)
        want = whole(x).double()
    size = x.double().abs() @ whole.dequantize_weight().double().abs().T + want.abs() + 10
    assert isinstance(total, Tensor)
    # At most 300 + 5 roundings of f32 in either sum; zero points and codes of 15 make terms 3 times as large.
    assert bool(((total - want).abs() <= 2 * 3 * 305 * 2.0**-24 * size).all())


def test_the_bias_is_added_once() -> None:
    whole = Int4Linear.from_linear(make_linear(K, N), group=32)
    assert whole.shard(k=(0, 150)).bias is not None
    assert whole.shard(k=(150, 300)).bias is None


def test_groups_that_a_cut_divides_become_smaller() -> None:
    whole = Int4Linear.from_linear(make_linear(K, N), group=128)
    facts = {
        k: (p.group, p.perm is None) for k in ((128, 300), (96, 300), (0, 96)) for p in [whole.shard(k=k)]
    }
    assert facts == {(128, 300): (128, True), (96, 300): (32, True), (0, 96): (-1, True)}
    part = whole.shard(k=(7, 300))  # no group of a multiple of 16 fits, so the features are padded
    assert part.perm is not None
    assert part.packed_features > part.in_features


def test_parts_of_parts() -> None:
    whole = act_order(32, symmetric=False)
    part = whole.shard(k=(40, 290)).shard(n=(3, 50)).shard(k=(13, 100))
    assert_equal(part.dequantize_weight(), whole.dequantize_weight()[3:50, 53:140])


def test_a_few_features_of_several_groups() -> None:
    whole = act_order(16, symmetric=True, k=64)
    for begin in range(0, 64, 5):
        part = whole.shard(k=(begin, min(begin + 5, 64)))
        assert_equal(part.dequantize_weight(), whole.dequantize_weight()[:, begin : begin + 5])
        fresh = Int4Linear(part.in_features, N, part.bias is not None)
        fresh.load_state_dict(part.state_dict())
        assert_equal(fresh.dequantize_weight(), part.dequantize_weight())


@pytest.mark.parametrize(
    ("n", "k", "message"),
    [
        ((3, 3), None, r"n = \(3, 3\); must be a range within \(0, 70\) that is not empty"),
        ((-16, 16), None, r"n = \(-16, 16\)"),
        (None, (256, 301), r"Linear.shard: k = \(256, 301\); must be a range within \(0, 300\)"),
    ],
)
@pytest.mark.parametrize("make", [DENSE["int8"], DENSE["act-order"], SPARSE["2:4 float"]])
def test_bad_ranges(make: Callable[[], PackedLinear], n: Range | None, k: Range | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make().shard(n, k)


@pytest.mark.parametrize("make", SPARSE.values(), ids=SPARSE)
def test_tiles_of_2_4_weights_are_not_cut(make: Callable[[], PackedLinear]) -> None:
    whole = make()
    for n, k, message in (
        (
            (0, 35),
            None,
            r"PackedSparse24.shard: n = \(0, 35\); .*begin at a multiple of 16, and end at one or",
        ),
        (
            None,
            (0, 96),
            r"PackedSparse24.shard: k = \(0, 96\); .*begin at a multiple of 64, and end at one or",
        ),
        (None, (4, 300), r"PackedSparse24.shard: k = \(4, 300\)"),
    ):
        with pytest.raises(ValueError, match=message):
            whole.shard(n, k)


@pytest.mark.parametrize("group", [None, 128])
def test_parts_of_packed_weights_are_what_packing_the_part_gives(group: int | None) -> None:
    w = torch.randint(-128, 128, (N, K), generator=generator("w"), dtype=torch.int8)
    w[:, ::2], w[:, 1::4] = 0, 3
    sparse = lamina.compress_sparse24(w)
    for n, k in (
        ((16, 48), (128, 256)),
        ((48, 70), (256, 300)),
        (None, (0, 128)),
        ((32, 32), None),
        (None, None),
    ):
        (n0, n1), (k0, k1) = n or (0, N), k or (0, K)
        part, want = lamina.pack_int8(w, group).shard(n, k), lamina.pack_int8(w[n0:n1, k0:k1], group)
        kept = lamina.compress_sparse24(w[n0:n1, k0:k1].contiguous())
        for layout in ("sparse24_rows", CUDA_LAYOUT):
            of_sparse = lamina.pack_sparse24(sparse, layout, group).shard(n, k)
            want_sparse = lamina.pack_sparse24(kept, layout, group)
            assert_equal(of_sparse.data, want_sparse.data)
            assert_equal(of_sparse.column_sums, want_sparse.column_sums)
        assert_equal(part.data, want.data)
        assert_equal(part.column_sums, want.column_sums)
        assert (part.n, part.k, part.group) == (n1 - n0, k1 - k0, group)
    with pytest.raises(ValueError, match=rf"PackedInt8.shard: k = \(32, 128\).* multiple of {group or 64}"):
        lamina.pack_int8(w, group).shard(k=(32, 128))
    with pytest.raises(ValueError, match=r"PackedInt8.shard: n = \(8, 16\)"):
        lamina.pack_int8(w, group).shard(n=(8, 16))
