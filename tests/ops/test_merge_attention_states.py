"""merge_attention_states against float64 within its bound, and the parts that must change no bit."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

import lamina
from tests.reference import merge_attention_states as reference
from tests.support.backends import (
    Backend,
    EmulatedKernel,
    available,
    available_cpu,
    backends,
    cpu_backends,
    emulator_parameters,
    kernel_of,
)
from tests.support.cases import FLOAT_DTYPES, dtype_name, generator
from tests.support.compare import assert_equal, assert_within

BACKENDS = pytest.mark.parametrize("backend", backends("merge_attention_states"))
DTYPES = pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=dtype_name)
EMPTY = -torch.inf


def states(
    parts: int, tokens: int, heads: int, dim: int, dtype: torch.dtype, spread: float = 4.0
) -> tuple[list[Tensor], list[Tensor]]:
    """Parts with strides of their own and lses that differ by about `spread`."""
    g = generator(f"states {parts} {tokens} {heads} {dim}")
    outs, lses = [], []
    for _ in range(parts):
        wide = torch.full((heads, tokens + 1, dim + 5), torch.nan).to(dtype)
        out = wide[:, 1:, 5:].transpose(0, 1)
        out.copy_(torch.randn(tokens, heads, dim, generator=g) * 3)
        lse = torch.full((tokens + 1, heads), torch.nan)[1:].T
        lse.copy_(torch.randn(heads, tokens, generator=g) * spread + 20)
        outs.append(out)
        lses.append(lse)
    return outs, lses


def merge(
    backend: Backend, outs: list[Tensor], lses: list[Tensor], **options: object
) -> tuple[Tensor, Tensor]:
    placed = {
        name: backend.place(value) if isinstance(value, Tensor) else value for name, value in options.items()
    }
    with backend.active() as ops:
        out, lse = ops.merge_attention_states(
            [backend.place(o) for o in outs], [backend.place(s) for s in lses], **placed
        )
    return out.cpu(), lse.cpu()


def check(
    backend: Backend, outs: list[Tensor], lses: list[Tensor], sinks: Tensor | None, dtype: torch.dtype
) -> None:
    want = reference.merge_attention_states(
        [o.double().numpy() for o in outs],
        [s.double().numpy() for s in lses],
        None if sinks is None else sinks.double().numpy(),
        dtype_name(dtype),
    )
    out, lse = merge(backend, outs, lses, sinks=sinks, out_dtype=dtype)
    assert out.is_contiguous() and lse.is_contiguous()
    assert_within(out, want[0], dtype, "out")
    # -Inf is right where the reference has it, and assert_within knows infinities only as overflow.
    assert_equal(lse == EMPTY, torch.from_numpy(want[1].exact == -np.inf))
    is_full = want[1].exact != -np.inf
    exact, bound = (np.where(is_full, x, 0.0) for x in want[1])
    assert_within(torch.where(lse == EMPTY, 0.0, lse), type(want[1])(exact, bound), torch.float32, "lse")


@BACKENDS
@DTYPES
def test_within_the_bound(dtype: torch.dtype, backend: Backend) -> None:
    g = generator("sinks")
    for (parts, tokens, heads, dim), spread, out_dtype in itertools.product(
        [(1, 1, 1, 1), (2, 3, 2, 64), (7, 2, 5, 40), (3, 1, 2, 300)], [0.5, 30.0], FLOAT_DTYPES
    ):
        outs, lses = states(parts, tokens, heads, dim, dtype, spread)
        for sinks in (None, torch.randn(heads, generator=g) * 20 + 20, torch.full((heads,), EMPTY)):
            check(backend, outs, lses, sinks, out_dtype)


@BACKENDS
def test_with_empty_parts_within_the_bound(backend: Backend) -> None:
    outs, lses = states(4, 6, 3, 24, torch.float32)
    is_empty = torch.rand(4, 3, 6, generator=generator("empty")) < 0.5
    is_empty[:, 1, 2] = True
    for lse, empty in zip(lses, is_empty, strict=True):
        lse[empty] = EMPTY
    for sinks in (None, torch.tensor([0.0, 30.0, 200.0])):
        check(backend, outs, lses, sinks, torch.float32)


@BACKENDS
@DTYPES
def test_an_empty_part_changes_no_bit(dtype: torch.dtype, backend: Backend) -> None:
    """Whatever its rows hold, and wherever it stands."""
    outs, lses = states(3, 5, 4, 48, dtype)
    nothing = torch.full_like(outs[0], torch.nan), torch.full_like(lses[0], EMPTY)
    sinks = torch.tensor([21.0, 0.0, 50.0, -4.0])
    for given in (None, sinks):
        want = merge(backend, outs, lses, sinks=given)
        for place in range(4):
            more = [
                [*part[:place], empty, *part[place:]]
                for part, empty in zip((outs, lses), nothing, strict=True)
            ]
            got = merge(backend, more[0], more[1], sinks=given)
            assert_equal(got[0], want[0], place)
            assert_equal(got[1], want[1], place)


@BACKENDS
@DTYPES
def test_one_part_is_itself(dtype: torch.dtype, backend: Backend) -> None:
    outs, lses = states(1, 4, 2, 16, dtype)
    outs[0][0, 0, :2] = torch.tensor([0.0, -0.0])
    out, lse = merge(backend, outs, lses)
    assert_equal(out, outs[0].contiguous())
    assert_equal(lse, lses[0].contiguous())


@BACKENDS
def test_all_parts_empty(backend: Backend) -> None:
    outs = [torch.full((3, 2, 8), torch.nan)] * 2
    for sinks in (None, torch.zeros(2)):
        out, lse = merge(backend, outs, [torch.full((2, 3), EMPTY)] * 2, sinks=sinks)
        assert_equal(out, torch.zeros(3, 2, 8))
        assert_equal(lse, torch.full((2, 3), EMPTY))


@BACKENDS
def test_nan_and_infinity_stay_in_their_rows(backend: Backend) -> None:
    outs, lses = states(3, 4, 2, 8, torch.float32)
    want = merge(backend, outs, lses)
    outs[1][0, 1, 3] = torch.nan
    outs[2][1, 0, 2] = -torch.inf
    lses[0][0, 2], lses[1][1, 3], lses[2][1, 2] = torch.nan, torch.inf, torch.nan
    lses[0][1, 2] = lses[1][1, 2] = EMPTY
    out, lse = merge(backend, outs, lses)
    changed = want[0].clone()
    changed[0, 1, 3], changed[1, 0, 2] = torch.nan, -torch.inf
    for token, head in ((2, 0), (3, 1), (2, 1)):
        changed[token, head] = torch.nan
        want[1][head, token] = torch.nan
    assert_equal(out, changed)
    assert_equal(lse, want[1])


@BACKENDS
def test_the_sink_counts_once(backend: Backend) -> None:
    """Attention over all keys with a sink, in float64, from two halves without one."""
    g = generator("attention")
    scores, v = torch.randn(3, 10, generator=g).double(), torch.randn(10, 16, generator=g).double()
    sink = torch.tensor([0.7, -1.0, 3.0])
    outs, lses = [], []
    for keys in (slice(0, 3), slice(3, 10)):
        outs.append((scores[:, keys].softmax(-1) @ v[keys]).float()[None])
        lses.append(scores[:, keys].logsumexp(-1).float()[:, None])
    out, lse = merge(backend, outs, lses, sinks=sink)
    exact = torch.cat([scores, sink.double()[:, None]], 1).softmax(-1)[:, :10] @ v
    assert (out[0] - exact).abs().max() < 2e-6
    assert (lse[:, 0] - scores.logsumexp(-1)).abs().max() < 2e-6


def test_all_backends_and_thread_counts_give_the_same_bits(restore_threads: None) -> None:
    outs, lses = states(5, 300, 4, 128, torch.bfloat16)
    results = []
    for backend, threads in itertools.product(available("merge_attention_states"), (1, 3)):
        torch.set_num_threads(threads)
        results.append(merge(backend, outs, lses, out_dtype=torch.float32))
    for out, lse in results[1:]:
        assert_equal(out, results[0][0])
        assert_equal(lse, results[0][1])
    alone = merge(
        available_cpu("merge_attention_states")[0], [o[7:8] for o in outs], [s[:, 7:8] for s in lses]
    )
    assert_equal(alone[0], results[0][0][7:8].bfloat16())


@pytest.mark.parametrize("emulated", emulator_parameters("merge_attention_states"))
def test_many_parts_under_every_schedule(emulated: EmulatedKernel) -> None:
    """The bits are those of the CPU, for any number of parts and rows that fill a block partly."""
    cpu = available_cpu("merge_attention_states")[0]
    for seed, (parts, tokens, dim) in enumerate(
        [(64, 3, 8), (33, 2, 300), (5, 7, 24), (2, 40, 1), (9, 1, 256)]
    ):
        outs, lses = states(parts, tokens, 3, dim, torch.float32)
        sinks = torch.tensor([25.0, 60.0, EMPTY])
        want = merge(cpu, outs, lses, sinks=sinks)
        got = merge(dataclasses.replace(emulated, seed=seed), outs, lses, sinks=sinks)
        assert_equal(got[0], want[0], seed)
        assert_equal(got[1], want[1], seed)


@pytest.mark.parametrize("emulated", emulator_parameters("merge_attention_states"))
def test_more_parts_than_the_arguments_of_a_kernel_hold(emulated: EmulatedKernel) -> None:
    with pytest.raises(ValueError, match="outs has 65 tensors; on CUDA at most 64"):
        merge(emulated, [torch.ones(1, 1, 8)] * 65, [torch.ones(1, 1)] * 65)


@pytest.mark.parametrize(("tokens", "heads", "dim"), [(0, 2, 8), (3, 0, 8), (3, 2, 0)])
def test_nothing_to_merge(tokens: int, heads: int, dim: int) -> None:
    outs, lses = states(2, tokens, heads, dim, torch.float16)
    out, lse = lamina.merge_attention_states(outs, lses)
    assert out.shape == (tokens, heads, dim) and lse.shape == (heads, tokens)


@pytest.mark.parametrize("backend", cpu_backends("merge_attention_states"))
def test_the_forced_isa_is_the_one_that_runs(backend: Backend) -> None:
    with backend.active() as ops:
        plan = ops.explain_merge_attention_states()
    assert kernel_of(plan) == f"merge_attention_states_{backend.isa}"
