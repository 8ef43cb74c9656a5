"""Int4Linear with act-order: of GPTQ's weights and of checkpoints, whole and in slices, saved and loaded."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lamina.nn import Int4Linear
from lamina.quant import QuantizedInt4, gptq, hessian, quantize_weight_int4
from tests.python.test_int8_linear import seeded
from tests.support.cases import generator
from tests.support.compare import assert_equal

ACTIVATIONS = ("float", "int8")


def checkpoint(
    n: int, k: int, group: int, *, order: str = "desc_act", symmetric: bool = False
) -> dict[str, Tensor]:
    """A layer as GPTQ's tools save it, with no zero point of 0; also its f64 `weight` [n, k], and the `size`
    from which tests compute the error bound."""
    g = generator(f"checkpoint {n} {k} {group} {order} {symmetric}")
    groups = -(-k // group)
    g_idx = torch.arange(k) // group
    if order == "desc_act":
        g_idx = g_idx[torch.randperm(k, generator=g)]
    q = torch.randint(0, 16, (k, n), generator=g)
    zero = torch.full((groups, n), 8) if symmetric else torch.randint(1, 16, (groups, n), generator=g)
    scales = (torch.rand(groups, n, generator=g) * 0.02 + 0.002).half()
    qweight, qzeros = (
        torch.zeros(k // 8, n, dtype=torch.int64),
        torch.zeros(groups, n // 8, dtype=torch.int64),
    )
    for i in range(8):
        qweight += q[i::8] << (4 * i)
        qzeros += (zero[:, i::8] - 1) << (4 * i)
    return {
        "qweight": wrapped(qweight),
        "qzeros": wrapped(qzeros),
        "scales": scales,
        "g_idx": g_idx.int(),
        "weight": ((q - zero[g_idx]) * scales.double()[g_idx]).T,
        "size": (((q - zero[g_idx]).abs() + zero[g_idx]) * scales.double()[g_idx]).T,
    }


def wrapped(x: Tensor) -> Tensor:
    """32 bits of int64 as int32."""
    return torch.where(x >= 2**31, x - 2**32, x).int()


def load(layer: dict[str, Tensor], **options: Any) -> Int4Linear:
    tensors = {name: tensor for name, tensor in layer.items() if name not in ("weight", "size")}
    return Int4Linear.from_gptq(**tensors, **options)


def check(module: Int4Linear, x: Tensor, layer: dict[str, Tensor]) -> None:
    """W4A16 within gemm_int4's bound; W4A8 within half a step of the activations and, coarsely, 2^-18."""
    rows, k = x.double(), module.packed_features
    bound = (3 + min(k, 1024) + -(-k // 1024)) * 2.0**-24 * (rows.abs() @ layer["size"].T)
    if module.activations == "int8":
        steps = rows.abs().amax(1, keepdim=True) / 127
        bound = 0.501 * steps * layer["weight"].abs().sum(1) + 2.0**-18 * (rows.abs() @ layer["size"].T)
    assert bool(((module(x).double() - rows @ layer["weight"].T).abs() <= bound).all())


@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize("order", ["plain", "desc_act"])
@pytest.mark.parametrize(
    ("n", "k", "group"), [(8, 16, 16), (24, 96, 32), (40, 200, 64), (16, 264, 128), (8, 40, 128)]
)
def test_a_checkpoint_is_the_weight_that_its_tensors_say(
    n: int, k: int, group: int, order: str, symmetric: bool
) -> None:
    layer = checkpoint(n, k, group, order=order, symmetric=symmetric)
    module = load(layer)
    assert (module.in_features, module.out_features, module.symmetric) == (k, n, symmetric)
    assert (module.perm is None) == (order == "plain" or k <= group)
    assert module.weight_scale.dtype is torch.float16
    assert_equal(module.dequantize_weight(), layer["weight"].float())
    x = seeded(5, k)
    for activations in ACTIVATIONS:
        check(load(layer, activations=activations), x, layer)
    stored = load(layer, checkpoint_format="gptq_v2").dequantize_weight()
    shift = layer["scales"].float()[layer["g_idx"].long()].T
    torch.testing.assert_close(stored, layer["weight"].float() + shift)


@pytest.mark.parametrize("activations", ACTIVATIONS)
def test_slices_along_k_and_n_make_up_the_layer(activations: str) -> None:
    """Shards of row-parallel and column-parallel layers; each has its rows of g_idx and all groups."""
    layer = checkpoint(32, 256, 32)
    x = torch.randint(-1, 2, (7, 256), generator=generator("x")).float()  # its own int8, times 127
    whole = load(layer, activations=activations)
    for cuts in ((0, 256), (0, 128, 256), (0, 72, 176, 256)):
        total = torch.zeros(7, 32, dtype=torch.float64)
        for begin, end in itertools.pairwise(cuts):
            part = layer | {
                "qweight": layer["qweight"][begin // 8 : end // 8],
                "g_idx": layer["g_idx"][begin:end],
            }
            total += load(part, activations=activations)(x[:, begin:end])
        bound = (3 + 256 + 1) * 2.0**-24 * (x.double().abs() @ layer["size"].T)
        assert bool(((total - x.double() @ layer["weight"].T).abs() <= bound).all())
    for columns in ((0, 8), (8, 32)):
        cut = slice(*columns)
        part = layer | {
            "qweight": layer["qweight"][:, cut],
            "qzeros": layer["qzeros"][:, columns[0] // 8 : columns[1] // 8],
            "scales": layer["scales"][:, cut],
        }
        assert_equal(load(part, activations=activations)(x), whole(x)[:, cut])


def test_state_dicts_carry_perm() -> None:
    layer, x = checkpoint(24, 96, 32), seeded(3, 96)
    for module in (
        load(layer),
        load(layer | {"qweight": layer["qweight"][:5], "g_idx": layer["g_idx"][:40]}),
    ):
        x = seeded(3, module.in_features)
        want = module(x)
        assert module.perm is not None
        for fresh in (
            Int4Linear(module.in_features, 24, bias=False),
            Int4Linear(module.in_features, 24, bias=False, device="meta"),
            load(checkpoint(24, module.in_features, 16)),
        ):
            is_meta = fresh.weight_packed.is_meta
            fresh.load_state_dict(copy.deepcopy(module.state_dict()), assign=is_meta)
            assert_equal(fresh(x), want)
            assert_equal(fresh.dequantize_weight(), module.dequantize_weight())
        assert "act_order=True" in repr(module)
        assert module.half().perm.dtype is torch.int32
        assert_equal(copy.deepcopy(module)(x), want)
        plain = Int4Linear(module.in_features, 24, bias=False)
        module.load_state_dict(plain.state_dict())
        assert module.perm is None
        assert not module(x).any()


STATES: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "2-D": (lambda perm: perm[None], r"perm must be 1-D, got \[1, 96\]"),
    "int64": (lambda perm: perm.long(), "perm must be int32, got torch.int64"),
    "beyond": (lambda perm: perm + 1, "perm must hold -1 to 95, got 1 to 96"),
    "below": (lambda perm: perm - 2, "perm must hold -1 to 95, got -2 to 93"),
    "short": (lambda perm: perm[:60], r"weight_packed must be \[2, 1, 512\], got \[2, 2, 512\]"),
}


@pytest.mark.parametrize("case", STATES)
def test_a_wrong_perm_in_a_state_dict_is_refused(case: str) -> None:
    change, message = STATES[case]
    module = load(checkpoint(24, 96, 32))
    state = module.state_dict()
    with pytest.raises(RuntimeError, match=message):
        module.load_state_dict({**state, "perm": change(state["perm"])})


def test_gradients_compiling_and_export() -> None:
    layer = checkpoint(24, 96, 32)
    part = layer | {"qweight": layer["qweight"][:5], "g_idx": layer["g_idx"][:40]}
    module, x = load(part), seeded(4, 40)
    leaf, pull = x.clone().requires_grad_(), seeded(4, 24, seed=5)
    module(leaf).backward(pull)
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad, pull @ module.dequantize_weight())
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    again = x.clone().requires_grad_()
    compiled(again).backward(pull)
    assert_equal(again.grad, leaf.grad)
    batch = torch.export.Dim("batch", min=2, max=4096)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: batch},))
    for rows in (x, x[:3]):
        assert_equal(program.module()(rows), module(rows))


@pytest.mark.parametrize("activations", ACTIVATIONS)
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
def test_gptq_with_groups_in_its_order_runs(symmetric: bool, activations: str) -> None:
    g = generator("gptq layer")
    w, x = torch.randn(33, 200, generator=g), torch.randn(400, 200, generator=g) * torch.logspace(0, -2, 200)
    quantized = gptq(w, hessian(x), 32, symmetric=symmetric, act_order=True, static_groups=False)
    assert quantized.g_idx is not None
    module = Int4Linear.from_quantized(quantized, torch.ones(33), activations=activations)
    assert_equal(module.dequantize_weight(), quantized.dequantize())
    out = module(x[:9]).double() - 1
    near = x[:9].double() @ quantized.dequantize().double().T
    size = x[:9].double().abs() @ quantized.dequantize().double().abs().T
    step = 0 if activations == "float" else x[:9].abs().amax(1, keepdim=True).double() / 127 * 0.51
    rounding = step * quantized.dequantize().double().abs().sum(1)
    assert bool(((out - near).abs() <= 60 * 2.0**-24 * (size + 1) + rounding).all())
    plain = Int4Linear.from_quantized(quantize_weight_int4(w, 32, symmetric=symmetric, search=True))
    exact = x.double() @ w.double().T
    assert (module(x).double() - 1 - exact).norm() < (plain(x).double() - exact).norm()


GOOD = checkpoint(16, 64, 32)
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "format": ({"checkpoint_format": "awq"}, 'checkpoint_format = \'awq\'; allowed: "gptq", "gptq_v2"'),
    "qweight int64": ({"qweight": GOOD["qweight"].long()}, "qweight must be 2-D int32, got torch.int64"),
    "qzeros 1-D": ({"qzeros": GOOD["qzeros"][0]}, r"qzeros must be 2-D int32, got torch.int32 \[2\]"),
    "scales f64": ({"scales": GOOD["scales"].double()}, "scales must be 2-D float32 or float16 or bfloat16"),
    "scales turned": ({"scales": GOOD["scales"].T}, r"qzeros must be \[16, 2\], got \[2, 2\]"),
    "scales of a slice": ({"scales": GOOD["scales"][:, :8]}, r"scales must be \[2, 16\], got \[2, 8\]"),
    "g_idx short": ({"g_idx": GOOD["g_idx"][1:]}, r"g_idx must be \[64\], got \[63\]; .* k = 64, n = 16"),
    "g_idx of floats": ({"g_idx": GOOD["g_idx"].float()}, "g_idx must be int32 or int64"),
    "g_idx below 0": ({"g_idx": GOOD["g_idx"] - 1}, r"g_idx\[\d+\] = -1; must be >= 0"),
    "g_idx of 3 groups": ({"g_idx": GOOD["g_idx"] + 1}, "below 2 groups of the scales, got .* at most 2"),
    "bias": ({"bias": torch.ones(3)}, r"bias must be \[n\] with n = 16, got \[3\]"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_checkpoints(case: str) -> None:
    changed, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        load({**GOOD, **changed})


def test_padding_between_groups_of_any_size_adds_nothing() -> None:
    q = torch.randint(0, 16, (5, 40), generator=generator("padding"), dtype=torch.uint8)
    g_idx = torch.tensor([0] * 7 + [1] * 20 + [0] * 3 + [2] * 10, dtype=torch.int32)
    zero = torch.randint(0, 16, (3, 5), generator=generator("zeros"), dtype=torch.uint8)
    module = Int4Linear.from_quantized(QuantizedInt4(q, torch.full((3, 5), 0.5), zero, 40, g_idx))
    assert module.perm is not None
    assert -1 in module.perm
    want = (q.float() - zero.float().T[:, g_idx]) * 0.5
    assert_equal(module.dequantize_weight(), want)
    x = torch.ones(1, 40, requires_grad=True)
    module(x).sum().backward()
    assert x.grad is not None
    assert_equal(x.grad, want.sum(0, keepdim=True))


def test_a_g_idx_beside_codes_of_another_k() -> None:
    codes = torch.zeros(3, 40, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"g_idx must be \[k\] with k = 40, below 2 groups"):
        Int4Linear.from_quantized(QuantizedInt4(codes, torch.ones(2, 3), None, 32, torch.zeros(39).int()))
