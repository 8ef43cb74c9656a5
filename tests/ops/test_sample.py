"""sample_tokens against its documented steps, against float64 within its bound, and by chi-squared."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

import lamina
from tests.reference import sample as reference
from tests.reference.sample import Settings
from tests.support.backends import (
    Backend,
    EmulatedKernel,
    backends,
    cpu_backends,
    emulator_parameters,
    kernel_of,
)
from tests.support.cases import FLOAT_DTYPES, dtype_name, generator
from tests.support.compare import assert_equal
from tests.support.sample_cases import (
    INT32,
    MIN_PS,
    TEMPERATURES,
    TOP_KS,
    TOP_PS,
    parameters,
    random_logits,
    random_settings,
    sample,
    sampled,
    seeds,
)

BACKENDS = pytest.mark.parametrize("backend", backends("sample"))
CPU = pytest.mark.parametrize("backend", cpu_backends("sample"))
DTYPES = pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=dtype_name)
# Around the blocks of 256 tokens, and around the threads of a block of a GPU.
VOCABS = (1, 2, 7, 64, 255, 256, 257, 1000, 1025)
# The smallest numbers of chi-squared that a right sampler exceeds once in 10^6 runs, by degrees of freedom.
CHI_SQUARED = {7: 42.0, 4: 35.0, 2: 27.7}


def check(
    backend: Backend, logits: torch.Tensor, settings: list[Settings], name: str, label: object = ""
) -> torch.Tensor:
    given, (seed, offset) = parameters(settings), seeds(name, len(settings))
    got = sample(backend, logits, given, seed, offset)
    for tensor, want, what in zip(got, sampled(logits, given, seed, offset), ("token", "flag"), strict=True):
        assert_equal(tensor, torch.tensor(want, dtype=INT32), f"{what} {label}")
    return got[0]


@BACKENDS
@DTYPES
def test_matches_the_steps(dtype: torch.dtype, backend: Backend) -> None:
    for vocab in VOCABS:
        logits = random_logits("steps", 12, vocab, dtype)
        check(backend, logits, random_settings(f"steps {vocab}", 12), f"{vocab}", vocab)


@BACKENDS
def test_every_parameter_with_every_other(backend: Backend) -> None:
    """Each value of a parameter meets each value of each other one."""
    settings = [
        Settings(*(column[a * i % len(column)] for a, column in zip((1, 3, 5, 7), COLUMNS, strict=True)))
        for i in range(48)
    ]
    for spread in (0.3, 3.0):
        logits = torch.randn(48, 300, generator=generator("every")) * spread
        check(backend, logits, settings, "every", spread)


COLUMNS = (TEMPERATURES[1:], TOP_KS, TOP_PS, MIN_PS)


@CPU
def test_long_rows(backend: Backend) -> None:
    """Few candidates and many, more than 512 of them, and rows where nearly all tokens are needed."""
    vocab = 40_003
    logits = torch.randn(6, vocab, generator=generator("long")) * torch.tensor(
        [[0.0], [0.05], [1], [2], [4], [30]]
    )
    for settings in (
        Settings(), Settings(top_k=50), Settings(top_k=3000), Settings(top_p=0.9), Settings(top_p=0.999999),
        Settings(min_p=1e-3), Settings(0.8, 1000, 0.7, 0.01), Settings(1.3, 0, 0.5, 1e-7),
    ):  # fmt: skip
        check(backend, logits, [settings] * 6, "long", settings)


@CPU
def test_set_that_is_kept(backend: Backend) -> None:
    """Small rows whose kept tokens are known without a reference; many seeds find all of them."""
    half = math.log(2)
    row = torch.tensor([0.0, 3 * half, half, 3 * half, 2 * half, -torch.inf])  # weights 1 8 2 8 4 0
    for s, kept in (
        (Settings(), {0, 1, 2, 3, 4}),
        (Settings(top_k=1), {1, 3}),
        (Settings(top_k=2), {1, 3}),
        (Settings(top_k=3), {1, 3, 4}),
        (Settings(top_k=6), {0, 1, 2, 3, 4}),
        (Settings(top_p=0.3), {1, 3}),
        (Settings(top_p=0.7), {1, 3, 4}),
        (Settings(top_p=0.9), {1, 2, 3, 4}),
        (Settings(top_k=3, top_p=0.79), {1, 3}),
        (Settings(top_k=3, top_p=0.81), {1, 3, 4}),
        (Settings(min_p=0.3), {1, 3, 4}),
        (Settings(min_p=1.0), {1, 3}),
        (Settings(top_p=0.9, min_p=0.45), {1, 3, 4}),
        (Settings(temperature=0.0), {1}),
        (Settings(temperature=1e-3), {1, 3}),
    ):
        many = row.expand(300, 6)
        got = sample(
            backend, many, parameters([s] * 300), torch.arange(300), torch.zeros(1, dtype=torch.int64)
        )
        assert set(got[0].tolist()) == kept, s


@CPU
@DTYPES
def test_a_draw_is_one_that_float64_allows(dtype: torch.dtype, backend: Backend) -> None:
    """The cumulative probabilities around each token, widened by the bound, hold its random number."""
    for settings in (
        Settings(),
        Settings(0.6),
        Settings(2.5, 40),
        Settings(1, 0, 0.8),
        Settings(1, 0, 1, 0.02),
    ):
        m = 60
        logits = (torch.randn(m, 500, generator=generator("allowed")) * 3).to(dtype)
        seed, offset = seeds("allowed", m)
        tokens, _ = sample(backend, logits, parameters([settings] * m), seed, offset)
        for i, token in enumerate(tokens.tolist()):
            row = logits[i].float().numpy()
            kept = np.array(reference.kept_weights(row, settings)) > 0
            p, bound = reference.probabilities(row.astype(np.float64), settings, kept)
            assert kept[token]
            x, error = reference.uniform(int(seed[i]), int(offset[i]), 0) / 2**64, bound.sum()
            assert p[:token].sum() - error <= x <= p[: token + 1].sum() + error


@CPU
def test_chi_squared_of_a_million_draws(backend: Backend) -> None:
    row, count = torch.tensor([0.3, -1.0, 0.0, 2.0, 1.9, -3.0, 0.7, 1.2]), 1_000_000
    offset = torch.arange(count)
    for settings, freedom in ((Settings(), 7), (Settings(top_k=5), 4), (Settings(0.7, 0, 0.8), 2)):
        seed = torch.full((1,), 12345)
        given = {name: value[:1] for name, value in parameters([settings]).items()}
        tokens, flags = sample(backend, row.expand(count, 8), given, seed, offset)
        assert not flags.any()
        p = np.exp((row.double().numpy() - 2.0) / settings.temperature)
        p = np.where(np.array(reference.kept_weights(row.numpy(), settings)) > 0, p, 0)
        expected = count * p / p.sum()
        counts = np.bincount(tokens.numpy(), minlength=8)
        assert (counts[expected == 0] == 0).all() and (expected > 0).sum() == freedom + 1
        there = expected > 0
        assert ((counts - expected)[there] ** 2 / expected[there]).sum() < CHI_SQUARED[freedom]


@BACKENDS
@DTYPES
def test_rows_that_cannot_be_sampled_harm_no_other(dtype: torch.dtype, backend: Backend) -> None:
    good = random_logits("good", 1, 70, dtype)[0]
    rows, settings = [], []
    for value, place in itertools.product((torch.nan, -torch.nan, torch.inf), (0, 31, 69)):
        rows.append(good.clone())
        rows[-1][place] = value
    rows += [torch.full_like(good, torch.nan), torch.full_like(good, -torch.inf), torch.zeros_like(good)]
    rows += [torch.full_like(good, x) for x in (-0.0, torch.finfo(dtype).max, torch.finfo(dtype).min)]
    for s in (Settings(), Settings(0.0), Settings(1, 5, 0.5, 0.1)):
        settings = [s] * len(rows)
        check(backend, torch.stack(rows), settings, "bad rows", s)
    bad = [Settings(temperature=t) for t in (-1.0, -1e-45, math.nan, math.inf, -math.inf)] + [
        Settings(top_p=p) for p in (0.0, -0.1, 1.0000002, math.nan, math.inf)
    ]
    bad += [Settings(min_p=p) for p in (-1e-6, 1.01, math.nan)]
    mixed = [s for one in bad for s in (one, Settings(0.9, 3, 0.9, 0.01))]
    got = check(backend, good.expand(len(mixed), 70), mixed, "bad settings")
    assert (got[::2] == 0).all()


@BACKENDS
def test_greedy_takes_the_lowest_id(backend: Backend) -> None:
    logits = torch.full((4, 600), -1.0)
    logits[0, [599, 300, 301]] = 5.0
    logits[1, [7, 8]] = torch.tensor([0.0, -0.0])
    logits[2, [8, 9]] = torch.tensor([-0.0, 0.0])
    logits[3, 599] = -0.5
    zero = torch.zeros(1)
    got = sample(backend, logits, {"temperature": zero}, *seeds("greedy", 4))
    assert got[0].tolist() == [300, 7, 8, 599]


@BACKENDS
def test_a_row_is_the_same_in_every_batch(backend: Backend) -> None:
    m = 40
    logits, settings = random_logits("batch", m, 333, torch.float16), random_settings("batch", m)
    given, (seed, offset) = parameters(settings), seeds("batch", m)
    whole = sample(backend, logits, given, seed, offset)
    for begin, end in ((0, 1), (17, 18), (5, 23), (39, 40)):
        rows = slice(begin, end)
        part = sample(backend, logits[rows], {n: v[rows] for n, v in given.items()}, seed[rows], offset[rows])
        for got, want in zip(part, whole, strict=True):
            assert_equal(got, want[rows], rows)


@CPU
@pytest.mark.usefixtures("restore_threads")
def test_independent_of_the_thread_count(backend: Backend) -> None:
    logits, settings = random_logits("threads", 64, 2000, torch.float32), random_settings("threads", 64)
    given, (seed, offset) = parameters(settings), seeds("threads", 64)
    want = sample(backend, logits, given, seed, offset)
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        for got, right in zip(sample(backend, logits, given, seed, offset), want, strict=True):
            assert_equal(got, right, threads)


@BACKENDS
def test_any_stride_and_one_value_for_all(backend: Backend) -> None:
    wide = torch.full((6, 90), torch.nan)
    logits = random_logits("strides", 6, 77, torch.float32)
    wide[:, 4:81] = logits
    seed, offset = seeds("strides", 6)
    s = Settings(0.8, 20, 0.9, 0.01)
    want = sample(backend, logits, parameters([s] * 6), seed, offset)
    one = sample(backend, wide[:, 4:81], parameters([s]), seed, offset)
    column = {name: value.expand(6, 1) for name, value in parameters([s]).items()}
    twice = sample(backend, wide[:, 4:81], column, seed.repeat_interleave(2)[::2], offset)
    for got in (one, twice):
        assert_equal(got[0], want[0])


@pytest.mark.parametrize("emulated", emulator_parameters("sample"))
def test_every_schedule_gives_the_same(emulated: EmulatedKernel) -> None:
    for seed in range(4):
        backend = dataclasses.replace(emulated, seed=seed)
        check(
            backend,
            random_logits("schedules", 5, 700, torch.bfloat16),
            random_settings("schedules", 5),
            f"{seed}",
        )


def test_nothing_to_sample() -> None:
    for m, vocab in ((0, 5), (3, 0), (0, 0)):
        one = torch.ones(1, dtype=torch.int64)
        tokens, flags = lamina.sample_tokens(torch.zeros(m, vocab), seed=one, offset=one)
        assert tokens.tolist() == [0] * m
        assert flags.tolist() == [lamina.SampleFlag.NO_TOKEN] * m


def test_random_numbers_of_the_reference() -> None:
    """The known answers of Random123; those of the kernels are asserted in csrc/base/philox.h."""
    full, pi = [2**32 - 1] * 4, [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]
    assert reference.philox([0] * 4, [0] * 2) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert reference.philox(full, full) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    key = [0xA4093822, 0x299F31D0]
    assert reference.philox(pi, key) == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


@CPU
def test_the_forced_isa_is_the_one_that_runs(backend: Backend) -> None:
    with backend.active() as ops:
        assert kernel_of(ops.explain_sample(64, 64)) == f"sample_{backend.isa}"


def test_python_function_calls_the_op() -> None:
    logits = random_logits("python", 5, 50, torch.bfloat16)
    before, given, (seed, offset) = (
        logits.clone(),
        parameters([Settings(0.7, 9, 0.8, 0.1)] * 5),
        seeds("python", 5),
    )
    got = lamina.sample_tokens(logits, **given, seed=seed, offset=offset)
    assert [got.tokens.tolist(), got.flags.tolist()] == sampled(logits, given, seed, offset)
    assert_equal(logits, before)
