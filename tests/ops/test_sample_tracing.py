"""The ops that choose tokens under torch's checks: opcheck, fake kernels, torch.compile, dispatch keys."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import lamina
from lamina.doctor import sample
from tests.reference.sample import Settings
from tests.support.backends import emu_ops
from tests.support.compare import assert_equal
from tests.support.sample_cases import INT32, parameters, random_draft, random_logits, seeds

OPS = sorted(sample.CHECKS)
Call = tuple[tuple[Any, ...], dict[str, Any]]


def calls(op: str) -> list[Call]:
    """Calls that differ in strides, dtype and optional arguments."""
    settings = [Settings(0.8, 5, 0.9, 0.01)] * 3
    if op == "sample_tokens":
        seed, offset = seeds("trace", 3)
        given = {"seed": seed, "offset": offset}
        wide = random_logits("trace", 3, 40, torch.float32)
        return [
            ((wide,), given),
            ((wide.half()[:, 3:33], *parameters(settings).values()), given),
            ((wide.bfloat16()[:0],), {"seed": seed[:1], "offset": offset[:1]}),
        ]
    if op == "verify_draft":
        found = []
        for tree, dtype in ((False, torch.float32), (True, torch.bfloat16)):
            d = random_draft("trace", [2, 4, 1], 30, settings, tree=tree, q=tree, dtype=dtype)
            options = {**d.given, "parents": d.parents, "draft_probs": d.draft_probs}
            found.append(
                (
                    (d.logits, d.draft_tokens, d.cu_seqlens_q, 4),
                    {**options, "seed": d.seed, "offset": d.offset},
                )
            )
        return found
    return [
        ((torch.tensor([-1, 0, 0, -1], dtype=INT32), torch.tensor([0, 3, 4], dtype=INT32), most), {})
        for most in (3, 40)
    ]


CALLS = [pytest.param(op, *call, id=f"{op}-{i}") for op in OPS for i, call in enumerate(calls(op))]


@pytest.mark.parametrize(("op", "arguments", "options"), CALLS)
def test_opcheck(op: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    torch.library.opcheck(getattr(torch.ops.lamina, op).default, arguments, options)


@pytest.mark.parametrize("op", OPS)
def test_opcheck_of_the_emulated_library(op: str) -> None:
    ops = emu_ops()
    if ops is None:
        pytest.skip("the emulated library is not built")
    arguments, options = calls(op)[0]
    torch.library.opcheck(getattr(ops, op).default, arguments, options)


@pytest.mark.parametrize(("op", "arguments", "options"), CALLS)
def test_fake_kernels_promise_what_the_real_ones_give(
    op: str, arguments: tuple[Any, ...], options: dict[str, Any]
) -> None:
    call = getattr(torch.ops.lamina, op)

    def kind(result: Any) -> list[tuple[Any, ...]]:
        return [(tuple(t.shape), t.dtype, t.stride(), t.device.type) for t in result]

    with FakeTensorMode() as fake:

        def convert(value: Any) -> Any:
            return fake.from_tensor(value) if isinstance(value, Tensor) else value

        promised = kind(call(*map(convert, arguments), **{k: convert(v) for k, v in options.items()}))
    assert promised == kind(call(*arguments, **options))


@pytest.mark.parametrize("op", OPS)
def test_registered_for_cpu_cuda_and_meta(op: str) -> None:
    for key in ("CPU", "CUDA"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"lamina::{op}", key)
    schema = getattr(torch.ops.lamina, op).default._schema
    assert not schema.is_mutable
    assert "mode" not in [argument.name for argument in schema.arguments]


def step(logits: Tensor, seed: Tensor, offset: Tensor) -> Tensor:
    """Draws drafts, verifies them and counts what was accepted."""
    m = logits.shape[0]
    drafts = lamina.sample_tokens(logits, seed=seed, offset=offset)
    tree = lamina.pack_tree_mask(
        torch.arange(-1, m - 1, dtype=INT32), torch.arange(0, m + 1, m, dtype=INT32), 8
    )
    found = lamina.verify_draft(
        logits + 1, drafts.tokens, torch.arange(0, m + 1, m, dtype=INT32), 8, draft_probs=logits.softmax(1),
        seed=seed[:1], offset=offset[:1],
    )  # fmt: skip
    return found.tokens.sum() + tree.tree_depth.sum() + found.accepted.sum() + drafts.flags.sum()


def test_compiles_without_a_graph_break() -> None:
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for m in (3, 5, 8):
        logits, (seed, offset) = random_logits("compile", m, 20, torch.float32), seeds("compile", m)
        assert_equal(compiled(logits, seed, offset), step(logits, seed, offset), m)
