"""The products of int4 weights with `perm`, on every kernel of kernels.inc; pack_int4 with `perm`;
act_order."""

from __future__ import annotations

import functools
import itertools
import random

import numpy as np
import pytest
import torch

import lamina
from lamina.ops.pack_int4 import INT4_LAYOUTS
from lamina.quant import ActOrder, act_order
from tests.reference import layout as layouts
from tests.reference.gemm import Expected
from tests.support.backends import Backend, backends, cpu_backends
from tests.support.cases import FLOAT_DTYPES, generator, with_row_stride
from tests.support.compare import assert_equal, assert_within
from tests.support.int4_cases import Int4Case, Int4Inputs, random_codes

OPS = ("gemm_int4", "gemm_int4_int8")
EVERY = [
    pytest.param(op, *parameter.values, id=f"{op}-{parameter.id}", marks=parameter.marks)
    for op in OPS
    for parameter in cpu_backends(op)
]
KERNELS = pytest.mark.parametrize(("op", "backend"), EVERY)

DEPTHS = (0, 1, 15, 64, 65, 255, 256, 257, 300, 513, 1024, 1100)
GROUPS = (16, 32, 48, 64, 128, 272, -1)
ROWS = (0, 1, 2, 4, 5, 7, 13, 33, 66)


def solve(op: str, inputs: Int4Inputs, dtype: torch.dtype, isa: str) -> tuple[Expected, torch.Tensor]:
    if op == "gemm_int4":
        return inputs.float_product(dtype, isa)
    sums = inputs.sums()
    return inputs.expected(sums, dtype), inputs.expected_bits(sums, dtype)


def run(op: str, backend: Backend, inputs: Int4Inputs, dtype: torch.dtype) -> torch.Tensor:
    product = backend.gemm_int4 if op == "gemm_int4" else backend.gemm_int4_int8
    return product(inputs, dtype)


@functools.cache
def varied(op: str, group: int, k: int) -> tuple[Int4Inputs, torch.dtype]:
    """A problem of this depth, whose m, n, features of a and kinds of arguments vary with it."""
    i = GROUPS.index(group) * len(DEPTHS) + DEPTHS.index(k)
    pick = random.Random(i).choice
    case = Int4Case("perm", ROWS[i % len(ROWS)], pick((1, 17, 64, 70)), k, group)
    inputs = case.inputs(
        zero=pick((None, torch.uint8, torch.float16)),
        a_zero=pick(("none", "tensor", "token")),
        per_token=pick((False, True)),
        bias=pick((None, torch.float32)),
    ).permuted(pick((0, 1, k // 2 + 1, k + 9)))
    if op == "gemm_int4":
        inputs = inputs.floats(pick(FLOAT_DTYPES))
    return inputs, pick(FLOAT_DTYPES)


@functools.cache
def solved(op: str, group: int, k: int, isa: str) -> tuple[Expected, torch.Tensor]:
    return solve(op, *varied(op, group, k), isa)


@KERNELS
@pytest.mark.parametrize("group", GROUPS)
def test_every_depth(group: int, op: str, backend: Backend) -> None:
    for k in DEPTHS:
        inputs, dtype = varied(op, group, k)
        expected, bits = solved(op, group, k, backend.isa if inputs.takes_bf16(backend.isa) else "generic")
        label = f"k = {k}, m, n = {tuple(bits.shape)}, a of {inputs.a.shape[1]}"
        got = run(op, backend, inputs, dtype)
        assert_within(got, expected, dtype, label)
        assert_equal(got, bits, label)


def problem(op: str, case: Int4Case, features: int, a_zero: str = "token") -> Int4Inputs:
    inputs = case.inputs(zero=torch.uint8, a_zero=a_zero, bias=torch.float32).permuted(features)
    return inputs.floats(torch.float32) if op == "gemm_int4" else inputs


@KERNELS
def test_a_row_is_the_same_in_every_batch_at_any_stride_on_any_thread(op: str, backend: Backend) -> None:
    inputs = problem(op, Int4Case("rows", 66, 70, 530, 48), 600)
    _, want = solve(op, inputs, torch.float32, backend.isa)
    threads = torch.get_num_threads()
    try:
        for count, (begin, end) in itertools.product((1, 2), ((0, 66), (0, 0), (3, 4), (5, 12), (30, 63))):
            torch.set_num_threads(count)
            part = inputs.rows(begin, end)
            assert_equal(run(op, backend, part, torch.float32), want[begin:end], (count, begin, end))
    finally:
        torch.set_num_threads(threads)
    strided = inputs.but(a=with_row_stride(inputs.a, 61, 3, 77))
    assert_equal(run(op, backend, strided, torch.float32), want)


@KERNELS
def test_features_that_perm_does_not_name_have_no_part(op: str, backend: Backend) -> None:
    """Such features are NaN and Inf, or the ends of int8; a packed place without a feature is 0 for every
    code."""
    for a_zero in ("none", "token"):
        inputs = problem(op, Int4Case("nan", 9, 40, 200, 32), 300, a_zero)
        assert inputs.perm is not None
        unnamed = torch.ones(300, dtype=torch.bool)
        unnamed[inputs.perm[inputs.perm >= 0].long()] = False
        assert bool(unnamed.any())
        assert bool((inputs.perm < 0).any())
        want = run(op, backend, inputs, torch.float32)
        a = inputs.a.clone()
        if op == "gemm_int4":
            a[::2, unnamed], a[1::2, unnamed] = torch.nan, torch.inf
        else:
            a[::2, unnamed], a[1::2, unnamed] = -128, 127
        assert_equal(run(op, backend, inputs.but(a=a), torch.float32), want)
        codes = inputs.q.clone()
        codes[:, inputs.perm < 0] = 15 - codes[:, inputs.perm < 0]
        assert torch.equal(run(op, backend, inputs.but(a=a, q=codes), torch.float32), want)


@pytest.mark.parametrize("backend", cpu_backends("gemm_int4"))
def test_nan_goes_where_perm_sends_it(backend: Backend) -> None:
    inputs = problem("gemm_int4", Int4Case("nan", 9, 40, 200, 32), 300)
    assert inputs.perm is not None
    inputs.a[4, int(inputs.perm.max())] = torch.nan
    got = backend.gemm_int4(inputs)
    assert got.isnan().all(1).tolist() == got.isnan().any(1).tolist() == [row == 4 for row in range(9)]


@pytest.mark.parametrize("backend", backends("gemm_int4_int8", stores=True))
def test_floats_are_quantised_as_they_are_and_then_gathered(backend: Backend) -> None:
    for features, dtype in itertools.product((90, 300), FLOAT_DTYPES):
        inputs = problem("gemm_int4_int8", Int4Case("quantised", 7, 40, 200, 32), features, "none")
        x = torch.randn(7, features, generator=generator("floats")).to(dtype)
        q = lamina.quantize_int8(x)
        want = backend.gemm_int4_int8(inputs.but(a=q.q, a_scale=q.scale))
        assert_equal(backend.gemm_int4_int8(inputs.but(a=x, a_scale=None)), want, (features, dtype))


@pytest.mark.parametrize("layout", INT4_LAYOUTS)
def test_packing_takes_the_columns_that_perm_names(layout: str) -> None:
    for n, features, k in (
        (1, 1, 1),
        (17, 65, 65),
        (33, 200, 131),
        (16, 10, 300),
        (5, 0, 70),
        (5, 7, 0),
        (0, 9, 5),
    ):
        inputs = Int4Case("pack", 1, n, k, 16).inputs().permuted(features)
        q, perm = random_codes(generator("pack"), n, features), inputs.perm
        assert perm is not None
        columns = [np.zeros(n, np.uint8) if p < 0 else q[:, p].numpy() for p in perm.tolist()]
        want = np.stack(columns, 1) if columns else np.zeros((n, 0), np.uint8)
        packed = lamina.pack_int4(q, layout, perm)
        assert_equal(packed.data, layouts.pack_int4(want, layout))
        assert (packed.n, packed.k) == (n, k)
        assert_equal(packed.unpack(), want)


@pytest.mark.parametrize("layout", INT4_LAYOUTS)
def test_the_first_wrong_code_that_perm_names_is_the_one_in_the_error(layout: str) -> None:
    q = torch.zeros(40, 100, dtype=torch.uint8)
    q[:, 7], q[20, 31], q[20, 30] = 200, 16, 17
    perm = torch.arange(100).flip(0).int()
    perm[100 - 1 - 7] = -1
    with pytest.raises(ValueError, match=r"pack_int4: q\[20, 31\] = 16; allowed: 0 to 15"):
        lamina.pack_int4(q, layout, perm)
    perm[perm.ge(30) & perm.le(31)] = -1
    assert lamina.pack_int4(q, layout, perm).unpack().count_nonzero() == 0


def layer(n: int, k: int, group: int, order: str) -> tuple[torch.Tensor, ...]:
    """Codes, scales, zero points, g_idx. Scales are powers of two, so that the products of integers are
    exact."""
    g = generator(f"layer {n} {k} {group} {order}")
    groups = -(-k // group)
    g_idx = (torch.arange(k) // group).int()
    if order == "shuffled":
        g_idx = g_idx[torch.randperm(k, generator=g)]
    elif order == "uneven":
        g_idx = torch.randint(0, groups, (k,), generator=g).int()
    scale = torch.exp2(torch.randint(-3, 1, (groups, n), generator=g).float())
    return random_codes(g, n, k), scale, torch.randint(0, 16, (groups, n), generator=g).to(torch.uint8), g_idx


@KERNELS
@pytest.mark.parametrize("order", ["plain", "shuffled", "uneven"])
def test_slices_of_a_layer_add_up_to_the_layer(order: str, op: str, backend: Backend) -> None:
    for n, k, group in ((17, 96, 16), (40, 300, 32), (33, 500, 128)):
        q, scale, zero, g_idx = layer(n, k, group, order)
        a = torch.randint(-9, 10, (7, k), generator=generator(f"activations {k}"))
        weight = (q.double() - zero.double()[g_idx.long()].T) * scale.double()[g_idx.long()].T
        want = (a.double() @ weight.T).float()
        for cuts in ((0, k), (0, k // 3, k), (0, k // 2 + 1, k // 2 + 8, k)):
            total = torch.zeros(7, n)
            for begin, end in itertools.pairwise(cuts):
                total += sliced(op, backend, a[:, begin:end], q[:, begin:end], scale, zero, g_idx[begin:end])
            assert_equal(total, want, (n, k, group, cuts))


def sliced(
    op: str,
    backend: Backend,
    a: torch.Tensor,
    q: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    g_idx: torch.Tensor,
) -> torch.Tensor:
    order = act_order(g_idx)
    data = torch.ops.lamina.pack_int4(q, "int4_rows", order.perm)
    rows = order.scale_rows
    inputs = Int4Inputs(a, q, scale[rows], order.group, w_zero_point=zero[rows], perm=order.perm)
    with backend.active() as ops:
        if op == "gemm_int4":
            out = ops.gemm_int4(
                a.float(), data, inputs.w_scale, order.group, inputs.w_zero_point, perm=order.perm
            )
        else:
            out = ops.gemm_int4_int8(
                a.to(torch.int8), data, inputs.w_scale, order.group, torch.ones(1), inputs.w_zero_point,
                perm=order.perm,
            )  # fmt: skip
    assert isinstance(out, torch.Tensor)
    return out


def check_order(g_idx: torch.Tensor) -> ActOrder:
    """Checks the promises of act_order for any g_idx."""
    order = act_order(g_idx)
    k = len(g_idx)
    perm = torch.arange(k).int() if order.perm is None else order.perm
    assert (perm.dtype, perm.dim(), perm.is_contiguous()) == (torch.int32, 1, True)
    claimed = perm[perm >= 0].long()
    assert_equal(claimed.sort()[0], torch.arange(k))
    assert order.group % 16 == 0
    assert len(order.scale_rows) == -(-len(perm) // order.group)
    groups = order.scale_rows.repeat_interleave(order.group)[: len(perm)]
    assert_equal(groups[perm >= 0], g_idx.long()[claimed])
    for group in order.scale_rows.unique():
        assert_equal(claimed[g_idx[claimed] == group].sort()[0], claimed[g_idx[claimed] == group])
    return order


def test_whole_groups_stay_whole_and_others_are_padded() -> None:
    g = generator("orders")
    for k, group in ((256, 128), (300, 128), (96, 16), (40, 64), (1, 16), (500, 48)):
        plain = torch.arange(k) // group
        order = check_order(plain)
        assert order.perm is None
        assert order.group == group or k <= group
        shuffled = check_order(plain[torch.randperm(k, generator=g)].int())
        assert shuffled.group == order.group
        assert shuffled.perm is None or len(shuffled.perm) == k
        assert_equal(shuffled.scale_rows, order.scale_rows)
    mixed = check_order(torch.arange(4096)[torch.randperm(4096, generator=g)][:2048] // 128)
    assert mixed.perm is not None
    assert mixed.group == 16
    assert len(mixed.perm) < 2048 + 32 * 16
    assert check_order(torch.arange(64).repeat_interleave(65)).group == 16  # 80 packed places each, not 96
    wide = check_order(torch.tensor([0] * 128 + [1] * 120 + [2] * 128 + [7] * 128))
    assert wide.group == 128
    assert_equal(wide.scale_rows, torch.tensor([0, 1, 2, 7]))
    missing = check_order(torch.tensor([5] * 32 + [2] * 32))
    assert_equal(missing.scale_rows, torch.tensor([2, 5]))
    none = check_order(torch.zeros(0).int())
    assert (none.perm, none.group, len(none.scale_rows)) == (None, 16, 0)
    for _ in range(40):
        counts = torch.randint(0, 70, (9,), generator=g)
        g_idx = torch.arange(9).repeat_interleave(counts)
        check_order(g_idx[torch.randperm(len(g_idx), generator=g)])


@pytest.mark.parametrize(
    ("g_idx", "message"),
    [
        (torch.zeros(3), r"g_idx must be int32 or int64 \[k\], got torch.float32 \[3\]"),
        (torch.zeros(3, 1).int(), r"g_idx must be int32 or int64 \[k\], got torch.int32 \[3, 1\]"),
        (torch.tensor([0, 3, -2]), r"g_idx\[2\] = -2; must be >= 0"),
    ],
)
def test_bad_g_idx(g_idx: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=f"act_order: {message}"):
        act_order(g_idx)


@pytest.mark.parametrize("zero", [None, torch.uint8], ids=["symmetric", "zeros"])
def test_gradients(zero: torch.dtype | None) -> None:
    """A feature that several places name gets the sum of their gradients; a feature without a place gets
    0."""
    inputs = Int4Case("gradient", 3, 40, 70, 32).inputs(zero=zero).permuted(50).floats(torch.float32)
    assert inputs.perm is not None
    packed = lamina.pack_int4(inputs.q, "int4_rows")
    rows = torch.arange(70) // 32
    shift = 8.0 if inputs.w_zero_point is None else inputs.w_zero_point.float()[rows].T
    packed_weight = (inputs.q.float() - shift) * inputs.w_scale[rows].T
    weight = torch.zeros(40, 50)
    for place, feature in enumerate(inputs.perm.tolist()):
        if feature >= 0:
            weight[:, feature] += packed_weight[:, place]
    leaf, pull = inputs.a.clone().requires_grad_(), torch.randn(3, 40, generator=generator("pull"))
    options = {"group": 32, "w_zero_point": inputs.w_zero_point, "perm": inputs.perm}
    lamina.gemm_int4(leaf, packed, inputs.w_scale, **options).backward(pull)  # type: ignore[arg-type]
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad, pull @ weight)
