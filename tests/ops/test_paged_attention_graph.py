"""A call of paged_attention that is recorded once and repeated with other lengths, tables and trees."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from tests.support.attention_cases import AttentionCase, AttentionInputs
from tests.support.attention_check import OP, arithmetic, attend, emulated, tiles
from tests.support.backends import NO_GPU, NO_PROBE, ROOT, CudaKernel, Gpu, gpu_parameter, probe
from tests.support.compare import assert_equal, assert_within

CASE = AttentionCase(((5, 200), (1, 130), (0, 9), (9, 150)), heads=(2, 3), page=16, tree="random")
LENGTHS = ([9, 130, 3, 40], [180, 0, 9, 15], [200, 130, 9, 150])
GPUS = pytest.mark.parametrize("backend", [gpu_parameter(Gpu(tile, False, OP)) for tile in tiles()])
Changed = tuple[list[int], AttentionInputs]


def changed(inputs: AttentionInputs) -> Iterator[Changed]:
    """The inputs, in place: shorter, with pages that change places, and with smaller trees."""
    tree_len = inputs.tree_len
    assert tree_len is not None
    nodes = tree_len.clone()
    for lens in LENGTHS:
        inputs.seq_lens.copy_(torch.tensor(lens))
        tree_len.copy_(torch.minimum(nodes, inputs.seq_lens))
        inputs.block_table[0, :2] = inputs.block_table[0, :2].flip(0)
        yield lens, inputs


def check(
    backend: CudaKernel, got: tuple[torch.Tensor, torch.Tensor], inputs: AttentionInputs, label: object
) -> None:
    expected = inputs.expected().expected(arithmetic(backend, inputs))
    for out, want, name in zip(got, expected, ("out", "lse"), strict=True):
        assert_within(out.cpu(), want, out.dtype, f"{label} {name}")


@pytest.mark.skipif(probe() is None, reason=NO_PROBE)
@pytest.mark.parametrize("batch_invariant", [False, True])
def test_calls_leave_nothing_to_the_next(batch_invariant: bool) -> None:
    """On the emulator a graph is repeated launches with the same arguments."""
    backend = emulated("sm80_r16")
    inputs = CASE.on(backend).inputs()
    first = attend(backend, inputs, batch_invariant=batch_invariant)
    for lens, now in changed(inputs):
        check(backend, attend(backend, now, batch_invariant=batch_invariant), now, lens)
    inputs.block_table[0, :2] = inputs.block_table[0, :2].flip(0)
    for got, want in zip(attend(backend, inputs, batch_invariant=batch_invariant), first, strict=True):
        assert_equal(got, want, "the first again")


@GPUS
@pytest.mark.parametrize("batch_invariant", [False, True])
def test_a_graph_is_right_with_other_contents(batch_invariant: bool, backend: Gpu) -> None:
    if batch_invariant and backend.arch == 90:
        pytest.skip("no kernel of sm90a has this mode")
    inputs = CASE.on(backend).inputs()
    given: dict[str, Any] = {
        name: backend.place(value) if isinstance(value, torch.Tensor) else value
        for name, value in inputs.arguments().items()
    }
    with backend.active() as ops:

        def call() -> tuple[torch.Tensor, torch.Tensor]:
            found: tuple[torch.Tensor, torch.Tensor] = ops.paged_attention(
                **given, return_lse=True, batch_invariant=batch_invariant
            )
            return found

        replay, got = captured(call)
        for lens, now in changed(inputs):
            for name in ("seq_lens", "tree_len", "block_table"):
                given[name].copy_(now.arguments()[name])
            replay()
            check(backend, got, now, lens)


def captured(
    call: Callable[[], tuple[torch.Tensor, torch.Tensor]],
) -> tuple[Callable[[], None], tuple[torch.Tensor, torch.Tensor]]:
    side: Any = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call()
    return graph.replay, out


FIRST = """
import torch, lamina
from tests.support.attention_cases import AttentionCase
inputs = AttentionCase("decode", torch.bfloat16, "bf16").inputs()
given = {n: v.cuda() if isinstance(v, torch.Tensor) else v for n, v in inputs.arguments().items()}
torch.cuda.synchronize()
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    out, _ = torch.ops.lamina.paged_attention(**given)
graph.replay()
again, _ = torch.ops.lamina.paged_attention(**given)
assert torch.equal(out, again)
"""


@pytest.mark.gpu
@NO_GPU
def test_the_first_call_of_a_process_may_be_captured() -> None:
    """It loads the module with the kernels, and finds the address of the error word."""
    done = subprocess.run(
        [sys.executable, "-c", FIRST], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_the_cases_have_what_they_change() -> None:
    inputs = dataclasses.replace(CASE, cache="bf16", q_dtype=torch.bfloat16).inputs()
    assert inputs.tree_len is not None and int(inputs.tree_len.max()) > 1
    assert [bool((torch.tensor(lens) <= inputs.seq_lens).all()) for lens in LENGTHS] == [True] * 3
    assert inputs.block_table[0, 0] != inputs.block_table[0, 1]
