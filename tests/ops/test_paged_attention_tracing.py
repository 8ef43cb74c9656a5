"""paged_attention under torch's own checks: opcheck, fake tensors, torch.compile."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import lamina
from tests.support.attention_cases import AttentionCase, AttentionInputs
from tests.support.compare import assert_equal

CASES = (
    AttentionCase("mixed", heads=(1, 2), head_dim=8, v_head_dim=24),
    AttentionCase("verify", cache="int8_token", tree="bits", sinks=True, out_dtype=torch.half, layout="hnd"),
    AttentionCase("decode", cache="e4m3", q_dtype=torch.bfloat16, alibi="requests", layout="interleaved"),
    AttentionCase("prefill", cache="bf16", q_dtype=torch.half, layout="padded", window=(3, 0), softcap=2.0),
    AttentionCase(((0, 0), (0, 3)), heads=(1, 2), head_dim=8),
)
EVERY_CASE = pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
OP = torch.ops.lamina.paged_attention
CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def arguments(inputs: AttentionInputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    given = inputs.arguments()
    names = ("q", "k_cache", "v_cache", "block_table", "seq_lens", "cu_seqlens_q")
    return tuple(given.pop(name) for name in names), given


@EVERY_CASE
@pytest.mark.parametrize("return_lse", [False, True])
def test_opcheck(return_lse: bool, case: AttentionCase) -> None:
    positional, named = arguments(case.inputs())
    # torch's check of the schema multiplies copies of the arguments, and has no product of float8.
    first = int(case.cache == "e4m3")
    torch.library.opcheck(
        OP.default, positional, {**named, "return_lse": return_lse}, test_utils=CHECKS[first:]
    )


def kind(results: Any) -> list[tuple[Any, ...]]:
    return [(tuple(t.shape), t.dtype, t.stride(), t.device.type) for t in results]


@EVERY_CASE
@pytest.mark.parametrize("return_lse", [False, True])
def test_the_fake_kernel_promises_what_the_real_one_gives(return_lse: bool, case: AttentionCase) -> None:
    given = {**case.inputs().arguments(), "return_lse": return_lse}
    with FakeTensorMode() as mode:
        fakes = {n: mode.from_tensor(v) if isinstance(v, torch.Tensor) else v for n, v in given.items()}
        promised = kind(OP(**fakes))
    assert promised == kind(OP(**given))
    meta = {n: v.to("meta") if isinstance(v, torch.Tensor) else v for n, v in given.items()}
    assert [t[:2] for t in kind(OP(**meta))] == [t[:2] for t in promised]


def test_registered_for_cpu_and_cuda() -> None:
    for key in ("CPU", "CUDA"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key("lamina::paged_attention", key)
    assert not OP.default._schema.is_mutable


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_to_one_graph_for_every_batch(backend: str) -> None:
    """Numbers of tokens, requests and pages change, and max_seqlen_q with them. In the first batch no two
    sizes are equal: torch would expect equal sizes in all batches."""
    torch._dynamo.reset()
    graphs = 0

    def counted(graph: torch.fx.GraphModule, examples: list[Any]) -> Any:
        nonlocal graphs
        graphs += 1
        return torch._dynamo.lookup_backend(backend)(graph, examples)

    def layer(given: AttentionInputs, max_seqlen_q: int) -> tuple[torch.Tensor, torch.Tensor]:
        result = lamina.paged_attention(
            given.q * 2, given.k_cache, given.v_cache, given.block_table, given.seq_lens, given.cu_seqlens_q,
            max_seqlen_q=max_seqlen_q, sinks=given.sinks, window=(20, -1), return_lse=True,
        )  # fmt: skip
        assert isinstance(result, tuple)
        return result[0] + 1, result[1]

    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=counted)
    for batch in ("mixed", "prefill", ((2, 9), (3, 40), (1, 2))):
        inputs = AttentionCase(batch, heads=(2, 3), head_dim=16, page=8, sinks=True).inputs()
        got, want = compiled(inputs, inputs.max_seqlen_q), layer(inputs, inputs.max_seqlen_q)
        for one, other in zip(got, want, strict=True):
            assert_equal(one, other, batch)
    assert graphs == 1
    torch._dynamo.reset()
