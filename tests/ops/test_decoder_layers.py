"""decoder_layers: the bits of its ops one by one, its refusals, and torch's own checks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import lamina
from lamina.nn import Int4Linear, Int8Linear, Sparse24Int4Linear, Sparse24Int8Linear
from lamina.nn.packed_linear import TOKENWISE, PackedLinear
from lamina.ops.decoder_layers import DecoderLayer, arguments
from lamina.testing import emulated_gpu
from tests.support.backends import emu_ops, emulator
from tests.support.cases import generator
from tests.support.compare import assert_equal

OP = "decoder_layers"
HEADS, KV_HEADS, DIM, V_DIM, HIDDEN, WIDE = 4, 2, 16, 24, 64, 96
PAGES, PAGE, LAYERS = 20, 4, 2
KINDS = ("w8a8", "w8a8_asymmetric", "w4a8", "w4a16", "perm")
SPARSE = tuple(f"sparse24-{kind}" for kind in KINDS[:4])
CACHES = (torch.float32, torch.float16, torch.bfloat16, torch.int8)
COUNTS, LENGTHS = (1, 4, 2), (9, 30, 2)  # new tokens of the requests, and all their tokens
EPS = (1e-5, 1e-6)


def linear(kind: str, n: int, k: int, seed: str, bias: bool) -> PackedLinear:
    g = generator(seed)
    made = nn.Linear(k, n, bias)
    made.weight.data = torch.randn(n, k, generator=g) * k**-0.5
    if bias:
        made.bias.data = torch.randn(n, generator=g)
    sparse, kind = kind.startswith("sparse24-"), kind.removeprefix("sparse24-")
    if kind.startswith("w8a8"):
        of = Sparse24Int8Linear if sparse else Int8Linear
        return of.from_linear(made, symmetric=kind == "w8a8")
    if kind == "perm":
        g_idx = torch.arange(k).flip(0).int() // 32
        given = lamina.quant.quantize_weight_int4(made.weight, 32, symmetric=False)
        return Int4Linear.from_quantized(given._replace(g_idx=g_idx, group=-1), made.bias)
    activations = "int8" if kind == "w4a8" else "float"
    int4 = Sparse24Int4Linear if sparse else Int4Linear
    return int4.from_linear(made, group=32, symmetric=bias, activations=activations)


@dataclass
class Case:
    """The arguments of a call."""

    x: Tensor
    norms: list[Tensor]  # two of each layer
    linears: list[list[PackedLinear]]
    k: list[Tensor]
    v: list[Tensor]
    k_scale: list[Tensor]
    v_scale: list[Tensor]
    tables: dict[str, Tensor]
    options: dict[str, Any]

    @classmethod
    def make(
        cls, kind: str, dtype: torch.dtype, cache: torch.dtype, bias: bool = True, tree: bool = False
    ) -> Case:
        g, tokens = generator(f"{kind}{dtype}"), sum(COUNTS)
        sizes = (
            ((HEADS + KV_HEADS) * DIM + KV_HEADS * V_DIM, HIDDEN),
            (HIDDEN, HEADS * V_DIM),
            (2 * WIDE, HIDDEN),
        )
        linears = [
            [linear(kind, n, k, f"{layer}{n}", bias) for n, k in (*sizes, (HIDDEN, WIDE))]
            for layer in range(LAYERS)
        ]
        blocks = torch.randperm(PAGES, generator=g).int()
        table = torch.full((len(COUNTS), 8), -1, dtype=torch.int32)
        slots = []
        for request, (count, length) in enumerate(zip(COUNTS, LENGTHS, strict=True)):
            used = -(-length // PAGE)
            table[request, :used], blocks = blocks[:used], blocks[used:]
            slots += [int(table[request, s // PAGE]) * PAGE + s % PAGE for s in range(length - count, length)]
        angle = torch.rand(max(LENGTHS), DIM // 2, generator=g) * 6
        positions = [s for c, n in zip(COUNTS, LENGTHS, strict=True) for s in range(n - c, n)]
        tables = {
            "slot_mapping": torch.tensor(slots), "block_table": table,
            "seq_lens": torch.tensor(LENGTHS).int(),
            "cu_seqlens_q": torch.tensor([0, *COUNTS]).cumsum(0).int(),
            "cos": angle.cos().to(dtype), "sin": angle.sin().to(dtype), "positions": torch.tensor(positions),
        }  # fmt: skip
        options: dict[str, Any] = {
            "heads": HEADS, "max_seqlen_q": max(COUNTS), "scale": 0.3, "window_left": 11, "softcap": 4.0,
        }  # fmt: skip
        if tree:
            parents = torch.tensor([-1, -1, 0, 0, 2, -1, 0]).int()
            options |= lamina.pack_tree_mask(parents, tables["cu_seqlens_q"], max(COUNTS))._asdict()
            options["tree_depth"] = options["tree_depth"] * 2  # not those that the mask implies

        def caches(dim: int) -> list[Tensor]:
            values = torch.randn(LAYERS, PAGES, PAGE, KV_HEADS, dim, generator=g)
            return list((values * (40 if cache == torch.int8 else 1)).to(cache))

        def scales() -> list[Tensor]:
            is_int8 = cache == torch.int8
            return [torch.rand(PAGES, PAGE, KV_HEADS, generator=g) for _ in range(LAYERS if is_int8 else 0)]

        norms = [torch.rand(HIDDEN, generator=g).to(dtype) + 0.5 for _ in range(2 * LAYERS)]
        x = torch.randn(tokens, HIDDEN, generator=g).to(dtype)
        return cls(x, norms, linears, caches(DIM), caches(V_DIM), scales(), scales(), tables, options)

    def layers(self) -> list[DecoderLayer]:
        found = []
        for i, held in enumerate(self.linears):
            products: Any = tuple(layer.operands for layer in held)
            found.append(DecoderLayer((self.norms[2 * i], self.norms[2 * i + 1]), EPS, products))
        return found

    def given(self) -> dict[str, Any]:
        """The arguments behind those of the layers."""
        lists = {"k_caches": self.k, "v_caches": self.v, "k_scales": self.k_scale, "v_scales": self.v_scale}
        return {**lists, **self.tables, **self.options}

    def call(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of torch.ops.lamina.decoder_layers."""
        given = self.given()
        by_name = {name: given.pop(name) for name in self.options}
        return (self.x, *arguments(self.layers()), *given.values()), by_name

    def one_by_one(self) -> Tensor:
        """The result of the ops, each called from Python."""
        t, options = self.tables, dict(self.options)
        del options["heads"]
        window = (options.pop("window_left"), -1)
        x = self.x
        for i, (qkv, o, gate_up, down) in enumerate(self.linears):
            scales = {} if not self.k_scale else {"k_scale": self.k_scale[i], "v_scale": self.v_scale[i]}
            rows = qkv.multiply(self._norm(x, 2 * i, qkv), x.dtype)
            q, k = (
                part.unflatten(1, (-1, DIM)) for part in rows.split([HEADS * DIM, KV_HEADS * DIM, 48], 1)[:2]
            )
            v = rows[:, -48:].unflatten(1, (-1, V_DIM))
            lamina.append_paged_kv(
                k, v, self.k[i], self.v[i], t["slot_mapping"], **scales, q=q,
                cos=t["cos"], sin=t["sin"], positions=t["positions"],
            )  # fmt: skip
            out = lamina.paged_attention(
                q, self.k[i], self.v[i], t["block_table"], t["seq_lens"], t["cu_seqlens_q"], window=window,
                **scales, **options,
            )  # fmt: skip
            assert isinstance(out, Tensor)
            x = o.multiply(out.flatten(1), x.dtype, x)
            both = gate_up.multiply(self._norm(x, 2 * i + 1, gate_up), x.dtype)
            if down.quantizes in TOKENWISE:
                hidden: Any = lamina.silu_mul_int8(both, symmetric=down.quantizes == "symmetric")
            else:
                hidden = lamina.silu_mul(both)
            x = down.multiply(hidden, x.dtype, x)
        return x

    def _norm(self, x: Tensor, at: int, layer: PackedLinear) -> Any:
        weight, eps = self.norms[at], EPS[at % 2]
        if layer.quantizes not in TOKENWISE:
            return lamina.rms_norm(x, weight, eps=eps)
        return lamina.rms_norm_int8(x, weight, eps=eps, symmetric=layer.quantizes == "symmetric")


def cases() -> Iterator[Any]:
    """Each kind of layer with each cache; dtypes, biases and trees in turn."""
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    for number, (kind, cache) in enumerate((*product(KINDS, CACHES), *product(SPARSE, CACHES[::3]))):
        dtype, bias, tree = dtypes[number % 3], kind == "perm" or number % 2 == 0, number % 4 > 1
        yield pytest.param(
            kind, dtype, cache, bias, tree, id=f"{kind}-{str(cache)[6:]}-{str(dtype)[6:]}-{tree}"
        )


@pytest.mark.parametrize(("kind", "dtype", "cache", "bias", "tree"), list(cases()))
def test_has_the_bits_of_its_ops_one_by_one(
    kind: str, dtype: torch.dtype, cache: torch.dtype, bias: bool, tree: bool
) -> None:
    whole, parts = (Case.make(kind, dtype, cache, bias, tree) for _ in range(2))
    out = lamina.decoder_layers(whole.x, whole.layers(), **whole.given())
    assert_equal(out, parts.one_by_one(), kind)
    for name in ("k", "v", "k_scale", "v_scale"):
        for a, b in zip(getattr(whole, name), getattr(parts, name), strict=True):
            assert_equal(a, b, name)
    assert whole.options["max_seqlen_q"] == max(COUNTS) and not bool(out.isnan().any())


def test_layers_one_at_a_time_are_the_same() -> None:
    together, apart = (Case.make("w4a8", torch.float32, torch.int8) for _ in range(2))
    want = lamina.decoder_layers(together.x, together.layers(), **together.given())
    x = apart.x
    for i, layer in enumerate(apart.layers()):
        lists = {
            name: value[i : i + 1] if isinstance(value, list) else value
            for name, value in apart.given().items()
        }
        x = lamina.decoder_layers(x, [layer], **lists)
    assert_equal(x, want, "layers")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k_caches": []}, "k_caches has 0 elements; must have one for each layer"),
        ({"v_caches": [torch.zeros(1)]}, "v_caches has 1 elements; must have 2"),
        ({"k_scales": [torch.ones(1)]}, "k_scales has 1 elements; must have 2"),
        ({"v_caches": [torch.zeros(1)] * 2}, "v_caches must be 4-D .* got 1-D"),
        ({"heads": 0}, "heads = 0; must be at least 1"),
        ({"heads": 5}, "the first product of a layer has 144 columns; must be 160"),
        ({"slot_mapping": torch.zeros(3).long()}, "lamina::append_paged_kv: slot_mapping"),
        ({"seq_lens": torch.tensor([9, 33, 2]).int()}, "lamina::paged_attention: .*seq_lens.1. = 33"),
    ],
)  # fmt: skip
def test_refuses(change: dict[str, Any], message: str) -> None:
    case = Case.make("w8a8", torch.float32, torch.float32)
    with pytest.raises(ValueError, match=message):
        lamina.decoder_layers(case.x, case.layers(), **{**case.given(), **change})


@pytest.mark.parametrize(
    ("at", "change", "message"),
    [
        (1, lambda norms: norms[1:], "norms has 3 elements; must have 4"),
        (1, lambda norms: [n[1:] for n in norms], "lamina::rms_norm_int8: weight"),
        (2, lambda eps: eps[1:], "eps has 3 elements; must have 4"),
        (3, lambda weights: weights[:-1], "weights has 31 tensors; products names more"),
        (3, lambda weights: [*weights, weights[0]], "weights has 33 tensors; products names 32"),
        (4, lambda numbers: numbers[1:], "products has 23 elements; must have 24"),
        (4, lambda numbers: [8, *numbers[1:]], r"products\[0\] = 8; must be 0 to 7"),
        (4, lambda numbers: [-1, *numbers[1:]], r"products\[0\] = -1; must be 0 to 7"),
        (4, lambda numbers: [*numbers[:2], 8, *numbers[3:]], r"products\[2\] = 8; must be 0 to 7"),
    ],
)  # fmt: skip
def test_refuses_lists_that_do_not_belong_together(at: int, change: Any, message: str) -> None:
    given, options = Case.make("w8a8", torch.float32, torch.float32).call()
    changed = [*given[:at], change(given[at]), *given[at + 1 :]]
    with pytest.raises((ValueError, RuntimeError), match=message):
        torch.ops.lamina.decoder_layers(*changed, **options)


@pytest.mark.parametrize("kind", (*KINDS, SPARSE[2]))
def test_opcheck(kind: str) -> None:
    given, options = Case.make(kind, torch.bfloat16, torch.int8, tree=True).call()
    torch.library.opcheck(torch.ops.lamina.decoder_layers.default, given, options)


def test_fake_kernel_promises_what_the_real_one_gives() -> None:
    given, options = Case.make("w8a8", torch.bfloat16, torch.bfloat16).call()
    real = torch.ops.lamina.decoder_layers(*given, **options)
    with FakeTensorMode() as fake:

        def convert(value: Any) -> Any:
            if isinstance(value, list):
                return [convert(item) for item in value]
            return fake.from_tensor(value) if isinstance(value, Tensor) else value

        promised = torch.ops.lamina.decoder_layers(*map(convert, given), **options)
    assert (promised.shape, promised.dtype, promised.stride()) == (real.shape, real.dtype, real.stride())


def test_registered_for_cpu_and_cuda() -> None:
    for key in ("CPU", "CUDA"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"lamina::{OP}", key)
    schema = torch.ops.lamina.decoder_layers.default._schema
    assert schema.is_mutable and "mode" not in [argument.name for argument in schema.arguments]


@pytest.mark.parametrize("kind", ["w8a8", "w8a8_asymmetric"])
def test_the_same_call_on_an_emulated_gpu(kind: str) -> None:
    """Weights in int8 have one layout for all devices."""
    emulator()
    case = Case.make(kind, torch.float16, torch.float16)
    given, options = case.call()
    with emulated_gpu(80, 4):
        out = emu_ops().decoder_layers(*given, **options)
    want = Case.make(kind, torch.float16, torch.float16).one_by_one()
    assert bool(((out - want).abs() <= 0.02 * want.abs().amax()).all())
