"""lamina.parallel: a Llama of transformers on two processes, its parts on disk, and errors."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import lamina
from lamina.nn import Int4Linear, Int8Linear
from lamina.nn.packed_linear import PackedLinear
from lamina.parallel import ColumnParallel, RowParallel, cuts, tensor_parallel
from lamina.parallel.layers import ParallelLinear
from lamina.quant import QuantizedInt4, quantize_weight_int4
from tests.python.test_int8_linear import make_linear, seeded
from tests.reference.quantize import quantize_int8
from tests.support.cases import generator
from tests.support.compare import assert_equal
from tests.support.on_ranks import run_on_ranks

U, U_OUT = 2.0**-24, {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8}
VOCABULARY = 99  # two ranks have 64 and 35


class Case(NamedTuple):
    scheme: str
    intermediate: int = 192  # 96 features a rank, which no tile and no group of 64 fits
    dtype: torch.dtype = torch.float32
    has_act_order: bool = False


CASES = {
    "W8A8": Case("w8a8"),
    "W8A8 asymmetric, bf16": Case("w8a8_asymmetric", dtype=torch.bfloat16),
    "W4A16": Case("w4a16"),
    "W4A16 with act-order": Case("w4a16", has_act_order=True),
    "W4A8, bf16": Case("w4a8", dtype=torch.bfloat16),
    "2:4 W8A8": Case("sparse24-w8a8", intermediate=256),
}


def make_llama(case: Case) -> nn.Module:
    """One layer of random weights and biases, packed."""
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=128, intermediate_size=case.intermediate, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=VOCABULARY, attention_bias=True, mlp_bias=True,
    )  # fmt: skip
    model: nn.Module = transformers.LlamaForCausalLM(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.normal_(generator=generator(name))
    group = None if case.scheme.startswith("w8") or "w8a8" in case.scheme else 64
    lamina.compress(model.to(case.dtype), case.scheme, group=group, skip=("lm_head",), skip_growing=False)
    if case.has_act_order:
        block: Any = model.get_submodule("model.layers.0")
        block.self_attn.o_proj = with_act_order(block.self_attn.o_proj)
        block.mlp.down_proj = with_act_order(block.mlp.down_proj)
    return model


def with_act_order(layer: Int4Linear) -> Int4Linear:
    k = layer.in_features
    g_idx = (torch.arange(k) // 64)[torch.randperm(k, generator=generator("g_idx"))].int()
    q = quantize_weight_int4(layer.dequantize_weight(), 64)
    return Int4Linear.from_quantized(QuantizedInt4(q.q, q.scale, None, k, g_idx), layer.bias)


def run_llama(rank: int, size: int, cases: dict[str, Case]) -> None:
    for label, case in cases.items():
        whole = make_llama(case)
        model = tensor_parallel(copy.deepcopy(whole))
        kinds = {type(m).__name__ for m in model.modules() if isinstance(m, ParallelLinear)}
        assert kinds == {"ColumnParallel", "RowParallel"}, label
        assert sum(isinstance(m, ParallelLinear) for m in model.modules()) == 8  # and lm_head
        seen: list[tuple[str, Tensor, Tensor]] = []
        for name, module in model.named_modules():
            if isinstance(module, ParallelLinear):
                module.register_forward_hook(partial(remember, seen, name))
        tokens = torch.randint(0, VOCABULARY, (2, 7), generator=generator("tokens"))
        with torch.no_grad():
            logits, want = model(tokens).logits, whole(tokens).logits
            assert len(seen) == 8
            for name, x, y in seen:
                check_layer(f"{label}: {name}", model.get_submodule(name), whole.get_submodule(name), x, y)
            assert logits.shape == want.shape
            if case.scheme == "w4a16":  # parts that are quantised by their own scales give other logits
                torch.testing.assert_close(logits, want, rtol=1e-4, atol=1e-4)
            ordered = tensor_parallel(copy.deepcopy(whole), ordered=True)
            assert_equal(ordered(tokens).logits, logits, label)  # with two ranks one sum is like the other


def remember(
    seen: list[tuple[str, Tensor, Tensor]], name: str, _: nn.Module, args: tuple[Tensor], y: Tensor
) -> None:
    seen.append((name, args[0].clone(), y.clone()))


def check_layer(label: str, part: Any, whole: Any, x: Tensor, y: Tensor) -> None:
    if isinstance(part, ColumnParallel):
        begin, end = (0, whole.out_features) if part.gather_output else part.ranges[part.rank]
        assert_same(y, whole(x)[..., begin:end], whole, label)
        return
    parts: list[Any] = [None] * part.size
    dist.all_gather_object(parts, x)
    outputs: list[Any] = [None] * part.size
    dist.all_gather_object(outputs, y)
    assert all(torch.equal(y, other) for other in outputs), label
    exact, bound = row_parallel(whole, [p.flatten(0, -2) for p in parts], part.ranges)
    error = (y.double().flatten(0, -2) - exact).abs()
    assert bool((error <= bound).all()), f"{label}: {float((error / bound).max())} of the bound"


def assert_same(got: Tensor, want: Tensor, layer: nn.Module, label: str) -> None:
    """The same bits of a packed layer; torch's own products depend on the shape in their last bits."""
    if isinstance(layer, PackedLinear):
        assert_equal(got, want, label)
    else:
        tolerance = 64 * U_OUT[got.dtype]
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance * float(want.abs().max()))


def row_parallel(
    whole: PackedLinear, parts: list[Tensor], ranges: list[tuple[int, int]]
) -> tuple[Tensor, Tensor]:
    """The sum of the products of the parts in float64, and the bound that RowParallel documents.

    The bound of a product is h u sum |x| |w|, where h counts a rounding for each term and each k chunk, those
    of the scales, and that of the dequantised weight: more than any of the products has.
    """
    weight, dtype = whole.dequantize_weight().double(), parts[0].dtype
    exact = torch.zeros(len(parts[0]), whole.out_features, dtype=torch.float64)
    bound, magnitude = exact.clone(), exact.clone()
    for r, (x, (begin, end)) in enumerate(zip(parts, ranges, strict=True)):
        w, k = weight[:, begin:end], end - begin
        values = seen_by_the_product(whole, x)
        y = values @ w.T + (whole.bias.double() if r == 0 and whole.bias is not None else 0)
        error = (k + -(-k // 1024) + 8) * U * (values.abs() @ w.abs().T + y.abs()) + U_OUT[dtype] * y.abs()
        exact, bound, magnitude = exact + y, bound + error, magnitude + y.abs() + error
    return exact, bound + len(parts) * U_OUT[dtype] * magnitude


def seen_by_the_product(whole: PackedLinear, x: Tensor) -> Tensor:
    """x in float64, rounded as a rank does that quantises its part of each token."""
    if isinstance(whole, Int4Linear) and whole.activations == "float":
        return x.double()
    symmetric = isinstance(whole, Int4Linear) or whole.symmetric
    q = quantize_int8(x.float().numpy(), symmetric=symmetric)
    return (torch.from_numpy(q.q).double() - torch.from_numpy(q.zero_point).double()) * torch.from_numpy(
        q.scale
    ).double()


def test_a_llama_on_two_processes(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    run_on_ranks(run_llama, 2, tmp_path, CASES)


def run_layers(rank: int, size: int) -> None:
    """Layers on three processes whose features do not divide evenly."""
    k, n = 300, 200
    x = seeded(50, k)
    for dtype in U_OUT:
        linear, rows = make_linear(k, n, dtype=dtype), x.to(dtype)
        for whole in (
            linear,
            Int8Linear.from_linear(linear),
            Int4Linear.from_linear(linear, group=32),
        ):
            label = f"{type(whole).__name__} {dtype}"
            column = ColumnParallel(whole, rank, size, gather_output=True)
            row = RowParallel(whole, rank, size, split_input=True, ordered=True)
            begin, end = cuts(k, size)[rank]
            assert row.layer.in_features == end - begin
            with torch.no_grad():
                y = row(rows)
                assert_same(column(rows), whole(rows), whole, label)
                assert_equal(RowParallel(whole, rank, size, ordered=True)(rows[:, begin:end]), y, label)
                for m in (1, 7):  # a token has the same bits in every batch
                    assert_same(row(rows[11 : 11 + m].view(1, m, k))[0], y[11 : 11 + m], whole, label)
                if whole is not linear:
                    parts = [rows[:, slice(*cut)] for cut in cuts(k, size)]
                    exact, bound = row_parallel(whole, parts, cuts(k, size))
                    for ordered in (True, False):
                        got = RowParallel(whole, rank, size, split_input=True, ordered=ordered)(rows)
                        assert bool(((got.double() - exact).abs() <= bound).all()), label
    with pytest.raises(RuntimeError, match=r"lamina.parallel.RowParallel has no backward pass"):
        RowParallel(linear, rank, size)(x)


def test_layers_on_three_processes(tmp_path: Path) -> None:
    run_on_ranks(run_layers, 3, tmp_path)


@pytest.mark.parametrize("symmetric", [True, False])
def test_parts_of_a_token_are_quantised_at_least_as_finely(symmetric: bool) -> None:
    """The bounds of RowParallel and of one process on the error that int8 activations cause."""
    whole = Int8Linear.from_linear(make_linear(300, 40), symmetric=symmetric)
    x, w = seeded(20, 300), whole.dequantize_weight().double()
    step = quantize_int8(x.numpy(), symmetric=symmetric).scale
    total, bound, of_one = (torch.zeros(20, 40, dtype=torch.float64) for _ in range(3))
    for part in cuts(300, 2):
        columns = slice(*part)
        scale = torch.from_numpy(quantize_int8(x[:, columns].numpy(), symmetric=symmetric).scale).double()
        size = w[:, columns].abs().sum(1)
        total += whole.shard(k=part)(x[:, columns]).double()
        bound += scale * (0.5 + 2.0**-14) * size
        of_one += torch.from_numpy(step).double() * (0.5 + 2.0**-14) * size
    assert whole.bias is not None
    error = (total - x.double() @ w.T - whole.bias.double()).abs()
    assert bool((bound <= of_one).all())
    assert bool((error <= bound + 10 * U * (x.double().abs() @ w.abs().T + 3)).all())


@pytest.mark.parametrize(
    ("extent", "size", "want"),
    [
        (12, 1, [(0, 12)]),
        (12, 3, [(0, 4), (4, 8), (8, 12)]),
        (11008, 8, [(1376 * r, 1376 * (r + 1)) for r in range(8)]),
        (300, 3, [(0, 100), (100, 200), (200, 300)]),
        (300, 4, [(0, 75), (75, 150), (150, 225), (225, 300)]),
        (200, 3, [(0, 128), (128, 192), (192, 200)]),
        (99, 2, [(0, 64), (64, 99)]),
    ],
)
def test_cuts(extent: int, size: int, want: list[tuple[int, int]]) -> None:
    assert cuts(extent, size) == want


@pytest.mark.parametrize(("extent", "size"), [(99, 4), (0, 1), (5, 0), (5, -1)])
def test_cuts_that_leave_a_part_empty(extent: int, size: int) -> None:
    with pytest.raises(ValueError, match=rf"{extent} features divide into 1 to .* got size = {size}"):
        cuts(extent, size)


def make_mlp() -> nn.Sequential:
    model = nn.Sequential()
    model.add_module("up", make_linear(128, 256))
    model.add_module("act", nn.GELU())
    model.add_module("down", make_linear(256, 128))
    return model


PLAN = {"up": "colwise", "down": "rowwise"}


def test_the_part_of_each_rank_can_be_saved_and_loaded(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    model, x = make_mlp(), seeded(5, 128)
    lamina.compress(model, "w4a16", group=32)
    total = torch.zeros(5, 128)
    for rank in range(2):
        part = tensor_parallel(copy.deepcopy(model), PLAN, rank=rank, size=2)
        lamina.save_compressed(part, tmp_path / f"rank{rank}")
        with torch.device("meta"):
            fresh = make_mlp_on_meta()
        tensor_parallel(fresh, PLAN, rank=rank, size=2)
        lamina.load_compressed(fresh, tmp_path / f"rank{rank}")
        for name, tensor in part.state_dict().items():
            assert_equal(fresh.state_dict()[name], tensor)
        with torch.no_grad():
            hidden = torch.nn.functional.gelu(fresh.get_submodule("up")(x))
            down: Any = fresh.get_submodule("down")
            total += down.layer(hidden)
        other = tensor_parallel(make_mlp(), PLAN, rank=1 - rank, size=2)
        for wrong in (other, make_mlp()):
            with pytest.raises(ValueError, match=rf"layer 'up.part_{rank}_of_2', which the model lacks"):
                lamina.load_compressed(wrong, tmp_path / f"rank{rank}")
    with torch.no_grad():
        torch.testing.assert_close(total, model(x), rtol=1e-5, atol=1e-3)


def make_mlp_on_meta() -> nn.Sequential:
    model = nn.Sequential()
    model.add_module("up", nn.Linear(128, 256))
    model.add_module("act", nn.GELU())
    model.add_module("down", nn.Linear(256, 128))
    return model


def test_a_layer_with_two_names_stays_one() -> None:
    model = make_mlp()
    model.add_module("again", model.get_submodule("up"))
    tensor_parallel(model, PLAN | {"again": "colwise"}, rank=0, size=2)
    assert model.get_submodule("again") is model.get_submodule("up")


def test_a_parallel_model_is_not_divided_again() -> None:
    model = tensor_parallel(make_mlp(), PLAN, rank=1, size=2)
    with pytest.raises(ValueError, match=r"layer 'up' is ColumnParallel; allowed: nn.Linear, packed layers"):
        tensor_parallel(model, PLAN, rank=1, size=2)
    assert isinstance(model.get_submodule("up"), ColumnParallel)
    assert model.get_submodule("up").weight.dtype is torch.float32


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "rank alone": ({"rank": 0, "size": None}, "rank = 0 and size = None; give both or neither"),
    "rank beyond": ({"rank": 2}, "rank = 2; must be at least 0 and below size = 2"),
    "style": (
        {"plan": {"up": "columns"}},
        "layer 'up': style 'columns' of the pattern 'up'; allowed: colwise, ",
    ),
    "nothing": ({"plan": {"u": "colwise", **PLAN}}, "pattern 'u' of plan matches no layer"),
    "no plan": ({"plan": None}, "plan is None, and the model has no tp_plan"),
    "another layer": ({"plan": {"a*": "rowwise"}}, "layer 'act' is GELU; allowed: nn.Linear, packed layers"),
    "a tensor": ({"plan": {"up.weight": "rowwise"}}, "layer 'up.weight' is Parameter; allowed: nn.Linear"),
    "too many": (
        {"size": 6},
        "layer 'up', size = 6: 256 features divide into 1 to 4 parts of whole tiles, or into as many as a "
        "divisor of 256; got size = 6",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case: str) -> None:
    given, message = BAD[case]
    model = make_mlp()
    layers = dict(model.named_modules())
    with pytest.raises(ValueError, match=f"tensor_parallel: {message}"):
        tensor_parallel(model, **({"plan": PLAN, "rank": 0, "size": 2} | given))
    assert dict(model.named_modules()) == layers


def test_hooks_are_not_lost() -> None:
    model = make_mlp()
    model.get_submodule("down").register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="layer 'down' has forward hooks, which would be lost"):
        tensor_parallel(model, PLAN, rank=0, size=2)


def test_heads_are_not_cut() -> None:
    pytest.importorskip("transformers")
    model = make_llama(CASES["W4A16"])
    message = "layer 'model.layers.0.self_attn.k_proj', size = 4: it has 2 heads of 32 features; "
    with pytest.raises(ValueError, match=message + "allowed sizes: 1, 2"):
        tensor_parallel(model, rank=0, size=4)


def test_tiles_of_2_4_weights_are_not_cut() -> None:
    model = make_mlp()
    lamina.compress(model, "sparse24-w8a8", skip_growing=False)
    with pytest.raises(ValueError, match=r"layer 'up', size = 32: .*n = \(0, 8\); .* at a multiple of 16"):
        tensor_parallel(model, PLAN, rank=0, size=32)
