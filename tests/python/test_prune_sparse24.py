"""2:4 pruning of weights against slow float64 references, and its rules for ties, zeros and bad input."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lamina.quant import (
    feature_order_sparse24,
    gptq,
    hessian,
    prune_sparse24,
    prune_sparse24_int4,
    prune_sparse24_int8,
    quantize_weight_int4,
    quantize_weight_int8,
)
from lamina.quant.sparse24_masks import keep_two
from tests.python.test_gptq import correlated
from tests.reference import prune_sparse24 as reference
from tests.support.cases import generator
from tests.support.compare import assert_equal

METHODS = ("magnitude", "wanda", "sparsegpt")
SHAPES = [(1, 4, 3), (5, 40, 200), (9, 100, 30), (3, 48, 9)]


def inputs(n: int, k: int, rows: int) -> tuple[Tensor, Tensor]:
    w, x = correlated(n, k, rows)
    if k > 4:
        x[:, k // 2] = 0
    return w, hessian(x)


def kept(mask: Tensor) -> Tensor:
    return mask.unflatten(1, (-1, 4)).sum(2)


@pytest.mark.parametrize(("n", "k", "rows"), SHAPES)
@pytest.mark.parametrize("block", [1, 6, 64])
def test_sparsegpt_is_the_slow_one(n: int, k: int, rows: int, block: int) -> None:
    w, h = inputs(n, k, rows)
    got = prune_sparse24(w, h, block=block)
    want, mask = reference.sparsegpt(w.double().numpy(), h.double().numpy())
    assert_equal(got.mask, mask)
    assert torch.allclose(got.weight.double(), torch.from_numpy(want), rtol=1e-4, atol=1e-6)
    assert bool((got.weight[~got.mask] == 0).all())


@pytest.mark.parametrize(("n", "k", "rows"), SHAPES)
def test_sparsegpt_in_int8_is_the_slow_one(n: int, k: int, rows: int) -> None:
    w, h = inputs(n, k, rows)
    got = prune_sparse24_int8(w, h)
    scale = got.scale.double().numpy()
    want, mask = reference.sparsegpt(w.double().numpy(), h.double().numpy(), scale=scale, levels=127)
    assert_equal(got.mask, mask)
    assert_equal(got.q.double(), np.round(want / scale[:, None]))
    first, _ = reference.damped(h.double().numpy(), 0.01)
    costs = [np.linalg.inv(first[p:, p:])[0, 0] for p in range(k)]
    live = np.diag(h.numpy()) > 0
    before = reference.keep_two(w.double().numpy() ** 2 / costs * live)
    assert_equal(got.scale, quantize_weight_int8(w * torch.from_numpy(before))[1])


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
def test_int4_is_gptq_where_dropped_features_have_no_input(symmetric: bool) -> None:
    w, h = inputs(7, 64, 300)
    mask = (torch.arange(64) % 4 < 2).repeat(7, 1)
    w = w * mask
    h = h * mask[0] * mask[0][:, None]  # gptq lets dropped features take up errors; these cannot
    got = prune_sparse24_int4(w, h, 16, symmetric=symmetric, mask=mask)
    want = gptq(w, h, 16, symmetric=symmetric)
    assert_equal(got.quantized.q, want.q)
    assert_equal(got.quantized.scale, want.scale)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("n", "k", "rows"), SHAPES)
def test_exactly_two_of_four_are_kept(n: int, k: int, rows: int, method: str) -> None:
    w, h = inputs(n, k, rows)
    made = prune_sparse24(w, h, method=method)
    assert bool((kept(made.mask) == 2).all())
    assert bool((made.weight[~made.mask] == 0).all())
    assert not bool(torch.signbit(made.weight[~made.mask]).any())
    if method == "magnitude":
        assert_equal(made.mask, reference.keep_two(np.abs(w.numpy()).astype(np.float64)))
    if method == "wanda":
        assert_equal(made.mask, reference.wanda(w.double().numpy(), h.double().numpy()))
    if method != "sparsegpt":
        assert_equal(made.weight[made.mask], w[made.mask])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_dtype_and_rounding(method: str, dtype: torch.dtype) -> None:
    w, h = inputs(6, 64, 300)
    w = w.to(dtype)
    exact = prune_sparse24(w, h, method=method)
    assert exact.weight.dtype is dtype
    eight = prune_sparse24_int8(w, h, method=method)
    assert (eight.q.dtype, eight.scale.dtype) == (torch.int8, torch.float32)
    assert bool((eight.q[~eight.mask] == 0).all()) and int(eight.q.min()) >= -127
    for symmetric in (True, False):
        quantized, mask = prune_sparse24_int4(w, h, 32, method=method, symmetric=symmetric)
        assert bool((quantized.dequantize()[~mask] == 0).all())
        assert quantized.scale.dtype is dtype
        assert bool((kept(mask) == 2).all())
        if method != "sparsegpt":
            want = quantize_weight_int4(exact.weight, 32, symmetric=symmetric, search=True)
            assert_equal(quantized.q, want.q)
    if method != "sparsegpt":
        assert_equal(eight.q, quantize_weight_int8(exact.weight)[0])


def test_ties_zeros_and_the_sign_of_zero() -> None:
    rows = [[1, -1, 1, -1], [0, 0, 0, 0], [-0.0, -0.0, 0, 3], [2, 1, 1, 1], [0, 0, 5, -5], [-0.0, 1, 0, 0]]
    want = [[1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 1], [1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 0, 0]]
    w = torch.tensor(rows, dtype=torch.float32)
    for made in (
        prune_sparse24(w),
        prune_sparse24(w, torch.eye(4), method="wanda"),
        prune_sparse24(w, torch.eye(4)),
    ):
        assert_equal(made.mask, torch.tensor(want).bool())
        assert bool((made.weight == torch.where(made.mask, w, 0)).all())


def test_a_feature_without_input_is_dropped_first() -> None:
    w = torch.tensor([[9.0, 1, 2, 3], [9, 1, 8, 2]])
    h = torch.diag(torch.tensor([0.0, 1, 1, 1]))
    for method in ("wanda", "sparsegpt"):
        mask = prune_sparse24(w, h, method=method).mask
        assert_equal(mask, torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1]]).bool())
    h[2, 2] = h[3, 3] = 0
    assert_equal(prune_sparse24(w, h).mask, torch.tensor([[1, 1, 0, 0]]).bool().expand(2, 4).contiguous())


def test_a_given_mask_is_kept_and_compensated() -> None:
    w, x = correlated(8, 64, 400)
    h = hessian(x)
    mask = torch.rand(8, 64, generator=generator("mask")).unflatten(1, (-1, 4)).argsort(2).flatten(1) == 0
    made = prune_sparse24(w, h, mask=mask)
    assert_equal(made.mask, mask)
    want, _ = reference.sparsegpt(w.double().numpy(), h.double().numpy(), mask=mask.numpy())
    assert torch.allclose(made.weight.double(), torch.from_numpy(want), rtol=1e-4, atol=1e-6)
    plain = prune_sparse24(w, mask=mask)
    assert_equal(plain.weight, torch.where(mask, w, 0))
    error = [float((x @ (weight - w).T).norm()) for weight in (made.weight, plain.weight)]
    assert error[0] < 0.9 * error[1]


def test_each_method_beats_the_simpler_one_on_inputs_not_seen() -> None:
    w, x = correlated(65, 200, 3000)
    h, held_out = hessian(x[:2000]), x[2000:]
    errors = [
        float((held_out @ (prune_sparse24(w, h, method=method).weight - w).T).norm())
        for method in reversed(METHODS)
    ]
    assert errors[0] < 0.9 * errors[1] < 0.81 * errors[2]


@pytest.mark.parametrize("rows", [1, 5])
def test_a_hessian_of_low_rank_is_damped(rows: int) -> None:
    w, x = correlated(6, 64, rows)
    made = prune_sparse24(w, hessian(x))
    plain = prune_sparse24(w, hessian(x), method="wanda")
    assert bool(made.weight.isfinite().all())
    assert float((x @ (made.weight - w).T).norm()) < 0.5 * float((x @ (plain.weight - w).T).norm())


def test_a_row_does_not_depend_on_others(monkeypatch: pytest.MonkeyPatch) -> None:
    w, h = inputs(20, 64, 500)
    want = prune_sparse24_int4(w, h, 16, symmetric=False)
    monkeypatch.setattr("lamina.quant.sparse24_pass.rows_at_a_time", lambda *_: 3)
    got = prune_sparse24_int4(w, h, 16, symmetric=False)
    assert_equal(got.mask, want.mask)
    assert_equal(got.quantized.q, want.quantized.q)


@pytest.mark.parametrize("k", [4, 8, 36, 64])
@pytest.mark.parametrize("is_calibrated", [False, True])
def test_an_order_of_features_keeps_more(k: int, is_calibrated: bool) -> None:
    w, h = inputs(11, k, 300)
    order = feature_order_sparse24(w, h if is_calibrated else None, rounds=30)
    assert order.dtype is torch.int32
    assert_equal(order.sort().values, torch.arange(k, dtype=torch.int32))
    score = w.double().square() * (h.double().diagonal() if is_calibrated else 1)
    before = score[keep_two(score, 1)].sum()
    there = score[:, order.long()]
    after = there[keep_two(there, 1)].sum()
    assert after > 1.01 * before if k >= 36 else after >= before
    assert_equal(feature_order_sparse24(w, h if is_calibrated else None, rounds=30), order)
    assert_equal(feature_order_sparse24(w, rounds=0), torch.arange(k, dtype=torch.int32))


def test_the_best_order_of_eight_features_is_found() -> None:
    """Rows need features 0 to 3 or 4 to 7: each group of two of either keeps all of both."""
    w = torch.tensor([[1.0, 1, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1, 1, 1]])
    order = feature_order_sparse24(w, rounds=1).long()
    assert_equal(prune_sparse24(w[:, order]).weight, w[:, order])


@pytest.mark.parametrize("shape", [(0, 32), (3, 0)])
def test_nothing_to_prune(shape: tuple[int, int]) -> None:
    w, h = torch.zeros(shape), torch.zeros(shape[1], shape[1])
    assert prune_sparse24(w, h).weight.shape == shape
    assert prune_sparse24_int8(w, h).q.shape == shape
    assert prune_sparse24_int4(w, h, 16).quantized.q.shape == shape
    assert feature_order_sparse24(w).shape == shape[1:]


W, H = torch.ones(3, 32), torch.eye(32)
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "w 1-D": ({"w": W[0]}, r"w must be 2-D \[n, k\], got 1-D \[32\]"),
    "w int8": ({"w": W.char()}, "w must be float32, float16 or bfloat16, got torch.int8"),
    "w NaN": ({"w": W * torch.nan}, r"w holds 96 NaN or Inf, the first at \[0, 0\] \(nan\)"),
    "w Inf": ({"w": W.index_put((torch.tensor(1), torch.tensor(9)), torch.tensor(-torch.inf))}, r"\[1, 9\]"),
    "k": ({"w": W[:, :30]}, r"w must be \[n, k\] with k a multiple of 4, got k = 30"),
    "method": ({"method": "best"}, "method must be one of magnitude, wanda, sparsegpt, got 'best'"),
    "no hessian": ({"hessian": None, "method": "wanda"}, "method 'wanda' needs a hessian, got None"),
    "hessian of n": ({"hessian": torch.eye(3)}, r"hessian must be \[k, k\] with k = 32 of w, got \[3, 3\]"),
    "hessian indefinite": ({"hessian": H - 9 * torch.diag(H[3])}, "smallest eigenvalue is -8, its largest 1"),
    "hessian below damp": ({"hessian": H - 1.005 * torch.diag(H[3])}, "its smallest eigenvalue is -0"),
    "damp": ({"damp": 0.0}, r"damp = 0\.0; must be above 0"),
    "block": ({"block": 0}, "block = 0; must be at least 1"),
    "mask dtype": ({"mask": W}, r"mask must be bool \[3, 32\] on cpu like w, got torch.float32 \[3, 32\]"),
    "mask shape": ({"mask": W[:, :16].bool()}, r"got torch.bool \[3, 16\] on cpu"),
    "mask of three": (
        {"mask": torch.arange(96).view(3, 32) > 92},
        "mask keeps 3 of the four places of row 2, group 7; at most 2 are allowed",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str) -> None:
    changed, message = BAD[case]
    for function in (prune_sparse24, prune_sparse24_int8, prune_sparse24_int4):
        with pytest.raises(ValueError, match=f"^{re.escape(function.__name__)}: .*{message}"):
            function(**{"w": W, "hessian": H, **changed})


@pytest.mark.parametrize("name", ["w", "hessian"])
def test_a_list_is_refused_by_the_name_of_its_argument(name: str) -> None:
    for function in (prune_sparse24, prune_sparse24_int8, prune_sparse24_int4):
        with pytest.raises(TypeError, match=rf"{function.__name__}: {name} must be a torch.Tensor, got list"):
            function(**{"w": W, "hessian": H, name: [[1.0]]})


def test_bad_input_of_the_order() -> None:
    with pytest.raises(ValueError, match="rounds = -1; must be at least 0"):
        feature_order_sparse24(W, rounds=-1)
    with pytest.raises(ValueError, match="k a multiple of 4, got k = 30"):
        feature_order_sparse24(W[:, :30])
