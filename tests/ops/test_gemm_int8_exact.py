"""The integer core of gemm_int8 where instructions saturate, wrap or switch paths: every sum is exact."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from tests.support.backends import Backend, EmulatedKernel, backends, cpu_backends, gpus
from tests.support.cases import FLOAT_DTYPES, GemmInputs, generator, random_int8
from tests.support.check import check_gemm, in_turn
from tests.support.compare import assert_equal

BACKENDS = pytest.mark.parametrize("backend", backends("gemm_int8"))
STORES = pytest.mark.parametrize("backend", backends("gemm_int8", stores=True))
# Instructions of a CPU may saturate pairs. Those of a GPU add 32-bit products, as tests/cpp/device shows.
CPU_AND_GPU = pytest.mark.parametrize("backend", [*cpu_backends("gemm_int8"), *gpus("gemm_int8")])
ONE = torch.ones(1)


@BACKENDS
@pytest.mark.parametrize("k", [1, 3, 63, 64, 65, 127, 512])
def test_integers_are_exact(k: int, backend: Backend) -> None:
    """Scales are powers of two, so f32 holds every sum up to 2^24 = 128 * 255 * 514 exactly."""
    g = generator(f"exact {k}")
    for m in (5, 33) if isinstance(backend, EmulatedKernel) else (1, 2, 5, 6, 7, 16, 17, 33):
        a, w, zero = random_int8(g, m, k), random_int8(g, 35, k), random_int8(g, m, 1)
        powers = torch.pow(2.0, torch.randint(-20, 20, (m, 1), generator=g))
        inputs = GemmInputs(a, w, powers, ONE, zero, None)
        want = inputs.accumulated() * powers.numpy().astype(np.float64)
        assert_equal(backend.gemm(inputs).to(torch.float64), want, f"m = {m}")


@STORES
@pytest.mark.parametrize("a", [-128, 127, -1, 0])
@pytest.mark.parametrize("w", [-128, 127, 1])
def test_extreme_values_everywhere(a: int, w: int, backend: Backend) -> None:
    """Each product and each pair of products has its largest magnitude; no instruction may saturate."""
    for m, n, k in ((1, 16, 4), (7, 33, 65), (17, 16, 512), (40, 65, 1030)):
        for zero in (-128, 127):
            inputs = GemmInputs(
                torch.full((m, k), a, dtype=torch.int8),
                torch.full((n, k), w, dtype=torch.int8),
                ONE,
                ONE,
                torch.tensor([zero], dtype=torch.int8),
                None,
            )
            want = np.full((m, n), float((a - zero) * w * k), np.float32)
            assert_equal(backend.gemm(inputs), want, f"{m} x {n} x {k}, zero point {zero}")


@BACKENDS
def test_saturating_pairs_next_to_small_ones(backend: Backend) -> None:
    """Signs differ inside a group of four: 2 * 255 * 128 does not fit int16, so vpmaddubsw would clip."""
    patterns = list(itertools.product((-128, 127), repeat=4))
    a = torch.tensor([p * 16 for p in patterns], dtype=torch.int8)
    inputs = GemmInputs(a, a.clone(), ONE, ONE, None, None)
    assert_equal(backend.gemm(inputs), inputs.accumulated().astype(np.float32))


# The emulator takes seconds for these depths, so it gets one of them, with two parts of k, the second ragged.
DEEP = [
    pytest.param(k, m, *backend.values, id=f"{k}-{m}-{backend.id}", marks=backend.marks)
    for backend in backends("gemm_int8", stores=True)
    for k, m in itertools.product([65536, 65537, 66000, 131073 + 60], [1, 5, 40])
    if not isinstance(backend.values[0], EmulatedKernel) or (k, m) == (66000, 5)
]


@pytest.mark.parametrize(("k", "m", "backend"), DEEP)
def test_sums_beyond_int32(k: int, m: int, backend: Backend) -> None:
    """255 * 128 * 65794 reaches 2^31: from 65536 on, partial sums are added in int64."""
    a = torch.full((m, k), -128, dtype=torch.int8)
    a[0, ::3] = 5
    w = torch.full((3, k), -128, dtype=torch.int8)
    w[1] = 127
    w[2, 7::5] = 99
    zero = torch.full((m, 1), 127, dtype=torch.int8)
    inputs = GemmInputs(a, w, ONE, ONE, zero, None)
    acc = inputs.rows(0, 2).accumulated()
    acc = np.concatenate([acc, np.repeat(acc[-1:], m - len(acc), axis=0)])
    check_gemm(backend, inputs, acc, f"{m} rows", in_turn(backend, 0, FLOAT_DTYPES))


def activations(m: int, k: int, loud: int, g: torch.Generator) -> torch.Tensor:
    """Activations as after a quantiser: mostly small values, and in every tile of 64 k `loud` groups of 4
    that hold extreme pairs. Kernels that treat loud groups separately change their path with the number of
    such groups."""
    a = torch.randint(-40, 41, (m, k), generator=g)
    pairs = torch.tensor([[64, 64], [64, 65], [-64, -64], [-64, -65], [127, 2], [-128, -1], [127, 127],
                          [-128, -128], [127, -128], [1, 127], [128 - 256, 0], [0, -128]])  # fmt: skip
    for begin in range(0, k, 64):
        groups = torch.randperm(16, generator=g)[:loud].tolist()
        for group in groups:
            row = int(torch.randint(0, m, (1,), generator=g))
            pair = pairs[int(torch.randint(0, len(pairs), (1,), generator=g))]
            at = begin + 4 * group + 2 * int(torch.randint(0, 2, (1,), generator=g))
            a[row, at : at + 2] = pair[: max(0, k - at)] if at < k else pair[:0]
    return a.to(torch.int8)


@pytest.mark.parametrize("backend", cpu_backends("gemm_int8"))
@pytest.mark.parametrize("loud", [0, 1, 2, 5, 6, 7, 8, 16])
@pytest.mark.parametrize(
    "shape", [(1, 33, 64), (2, 17, 300), (5, 40, 1090), (17, 33, 577), (64, 16, 130)], ids=str
)
def test_small_activations_with_loud_groups(shape: tuple[int, int, int], loud: int, backend: Backend) -> None:
    m, n, k = shape
    g = generator(f"loud {shape} {loud}")
    w = random_int8(g, n, k)
    w[0], w[-1] = -128, 127
    inputs = GemmInputs(activations(m, k, loud, g), w, ONE, ONE, random_int8(g, m, 1), None)
    check_gemm(backend, inputs, inputs.accumulated(), f"{loud} loud groups")


@pytest.mark.parametrize("backend", cpu_backends("gemm_int8"))
def test_quiet_and_loud_tiles_alternate(backend: Backend) -> None:
    """One product takes every path: it has tiles of 64 k without, with few and with many loud groups."""
    g = generator("alternate")
    for m in (1, 3, 5, 11, 40):
        tiles = [activations(m, 64, loud, g) for loud in (0, 3, 16, 0, 6, 7, 16, 1, 0, 0, 9, 4, 16)]
        a = torch.cat([*tiles, activations(m, 13, 2, g)], 1)
        inputs = GemmInputs(a, random_int8(g, 37, a.shape[1]), ONE, ONE, random_int8(g, m, 1), None)
        check_gemm(backend, inputs, inputs.accumulated(), f"m = {m}")


@CPU_AND_GPU
@pytest.mark.parametrize("place", range(4))
def test_every_pair_of_activations_against_extreme_weights(place: int, backend: Backend) -> None:
    """All 65536 values of two activations that one instruction adds, in a tile that is quiet elsewhere."""
    values = torch.arange(-128, 128, dtype=torch.int8)
    pairs = torch.cartesian_prod(values, values)
    a = torch.zeros(len(pairs), 64, dtype=torch.int8)
    a[:, [10 * place + 4, 10 * place + 5]] = pairs
    w = torch.zeros(4, 64, dtype=torch.int8)
    for row, pair in enumerate(itertools.product((-128, 127), repeat=2)):
        w[row, [10 * place + 4, 10 * place + 5]] = torch.tensor(pair, dtype=torch.int8)
    inputs = GemmInputs(a, w, ONE, ONE, None, None)
    assert_equal(backend.gemm(inputs), inputs.accumulated().astype(np.float32))
