"""The ops on paged caches under torch's checks: opcheck, fake kernels, torch.compile, dispatch keys."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import lamina
from lamina.testing import emulated_gpu
from tests.support.backends import emu_ops, emulator
from tests.support.bad_paged_kv import arguments_of
from tests.support.cases import generator
from tests.support.compare import assert_equal
from tests.support.kv_cases import angles, caches, filled, rows

MUTABLE = ("append_paged_kv", "copy_kv_blocks", "compact_kv")
OPS = (*MUTABLE, "gather_paged_kv", "merge_attention_states")
Call = tuple[tuple[Any, ...], dict[str, Any]]


def sample_calls(op: str) -> Iterator[Call]:
    """Calls that differ in strides, dtype, scales and optional arguments."""
    if op == "merge_attention_states":
        outs, lses = [rows(5, 2, 16, torch.float16, str(i)) for i in range(3)], [torch.randn(2, 5)] * 3
        yield (outs, lses), {}
        yield (outs[:1], lses[:1]), {"sinks": torch.ones(2), "out_dtype": torch.float32}
        return
    samples = [("nhd", torch.float32, "none"), ("hnd", torch.int8, "token"), ("padded", torch.int8, "tensor")]
    for layout, dtype, scales in (*samples, ("nhd", torch.bfloat16, "none")):
        case = filled(caches(layout, 3, 4, 2, (16, 8), dtype, scales), "trace")
        given = arguments_of(op)
        given |= {"k_cache": case.k, "v_cache": case.v}
        options = {name: tensor for name, tensor in case.scales.items() if tensor is not None}
        if op == "gather_paged_kv" and layout == "hnd":
            options["out_dtype"] = torch.float16
        if op == "append_paged_kv" and layout != "nhd":
            cos, sin = angles(9, 4, torch.float32)
            options |= {"cos": cos, "sin": sin, "positions": torch.tensor([8, 0])}
            options |= {"q": rows(2, 4, 16, torch.bfloat16), "interleaved": layout == "hnd", "rotary_dim": 8}
        yield tuple(given.values()), options


CALLS = [
    pytest.param(op, *call, id=f"{op}-{number}") for op in OPS for number, call in enumerate(sample_calls(op))
]


@pytest.mark.parametrize(("op", "arguments", "options"), CALLS)
def test_opcheck(op: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    torch.library.opcheck(getattr(torch.ops.lamina, op).default, arguments, options)


@pytest.mark.parametrize("op", OPS)
def test_opcheck_of_the_emulated_library(op: str) -> None:
    ops = emu_ops()
    if ops is None:
        pytest.skip("the emulated library is not built")
    arguments, options = next(sample_calls(op))
    torch.library.opcheck(getattr(ops, op).default, arguments, options)


@pytest.mark.parametrize(("op", "arguments", "options"), CALLS)
def test_fake_kernels_promise_what_the_real_ones_give(
    op: str, arguments: tuple[Any, ...], options: dict[str, Any]
) -> None:
    call = getattr(torch.ops.lamina, op)

    def kind(result: Any) -> list[tuple[Any, ...]]:
        return [(tuple(t.shape), t.dtype, t.stride(), t.device.type) for t in result or ()]

    with FakeTensorMode() as fake:

        def convert(value: Any) -> Any:
            if isinstance(value, list):
                return [convert(item) for item in value]
            return fake.from_tensor(value) if isinstance(value, Tensor) else value

        promised = kind(call(*map(convert, arguments), **{k: convert(v) for k, v in options.items()}))
    assert promised == kind(call(*arguments, **options))


@pytest.mark.parametrize("op", OPS)
def test_registered_for_cpu_cuda_and_meta(op: str) -> None:
    for key in ("CPU", "CUDA"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"lamina::{op}", key)
    schema = getattr(torch.ops.lamina, op).default._schema
    assert schema.is_mutable == (op in MUTABLE)
    assert "mode" not in [argument.name for argument in schema.arguments]


def step(
    case: Any, k: Tensor, q: Tensor, slots: Tensor, positions: Tensor, table: Tensor, cos: Tensor, sin: Tensor
) -> Tensor:
    """A layer that writes to its cache between other ops."""
    q, k = q * 2, k + 1
    lamina.append_paged_kv(
        k, k.flip(-1), case.k, case.v, slots, **case.scales, cos=cos, sin=sin, positions=positions, q=q
    )
    back, _ = lamina.gather_paged_kv(
        case.k, case.v, table, torch.tensor([0, 12], dtype=torch.int32), 12, **case.scales
    )
    merged, lse = lamina.merge_attention_states([q, q + 1], [q[..., 0].T, q[..., 1].T.contiguous()])
    return back.sum(0) * 2 + merged.sum((0, 1)) + lse.sum()


@pytest.mark.parametrize("backend", ["eager", "inductor"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_compiles_to_one_graph_that_writes_to_the_cache(dtype: torch.dtype, backend: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=backend)
    g, table = generator("compiled"), torch.tensor([[2, 0, 1]], dtype=torch.int32)
    scales = "token" if dtype == torch.int8 else "none"
    eager, graph = (filled(caches("hnd", 3, 4, 2, (16, 16), dtype, scales), "compiled") for _ in range(2))
    for tokens in (5, 3, 8):
        k, q = torch.randn(tokens, 2, 16, generator=g), torch.randn(tokens, 4, 16, generator=g)
        slots, positions = torch.randperm(12, generator=g)[:tokens], torch.arange(tokens)
        want = step(eager, k, q, slots, positions, table, *angles(40, 8, torch.float32))
        got = compiled(graph, k, q, slots, positions, table, *angles(40, 8, torch.float32))
        assert torch.allclose(got, want, rtol=1e-5, atol=1e-4)  # inductor sums in another order
        for a, b in zip(graph.tensors, eager.tensors, strict=True):
            assert_equal(a.contiguous(), b.contiguous(), tokens)
    torch._dynamo.reset()


@pytest.mark.parametrize(("op", "arguments", "options"), CALLS)
def test_the_same_call_on_an_emulated_gpu(
    op: str, arguments: tuple[Any, ...], options: dict[str, Any]
) -> None:
    emulator()
    copies = [copy.deepcopy((arguments, options)) for _ in range(2)]
    want = getattr(torch.ops.lamina, op)(*copies[0][0], **copies[0][1])
    with emulated_gpu(80, 4):
        got = getattr(emu_ops(), op)(*copies[1][0], **copies[1][1])
    for left, right in ((copies[1], copies[0]), (got, want)):
        for a, b in zip(pytree.tree_leaves(left), pytree.tree_leaves(right), strict=True):
            if isinstance(a, Tensor):
                assert_equal(a.float(), b.float())
