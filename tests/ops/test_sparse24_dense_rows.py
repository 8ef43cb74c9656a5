"""Weights with blocks of dense rows among 2:4 rows, in one call of each product."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import lamina
from lamina.ops.pack_sparse24 import mask_of_dense
from lamina.testing import emulated_gpu
from tests.support.backends import EMULATOR_SMS, cpu_backends, emu_ops
from tests.support.cases import generator
from tests.support.compare import assert_equal
from tests.support.sparse24_cases import random_mask

KINDS = ("int8", "int4", "int4_zeros", "int4_int8", "int4_int8_floats")
# Rows and blocks of dense rows: none at the start, at the end, in the middle, two, all rows.
BLOCKS = [
    (150, ()), (150, (0, 64)), (150, (128, 150)), (200, (64, 128)), (330, (64, 128, 192, 330)), (70, (0, 70)),
]  # fmt: skip
LAYOUTS = {"cpu": "sparse24_rows", "emulator": "sparse24_tile"}


@dataclass(frozen=True)
class Exact:
    """Operands whose sums are exact in any order, and the weight as it multiplies, in f64."""

    a: Tensor
    q: Tensor
    kept: Tensor
    w: Tensor
    scale: Tensor
    zero: Tensor | None
    bias: Tensor
    gate: Tensor
    residual: Tensor
    rows: tuple[int, ...]

    def want(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        product = self.a.double() @ self.w.T + self.bias.double()
        return (product * self.gate.double() + self.residual.double()).float().numpy()

    def packed(self, layout: str) -> lamina.PackedSparse24:
        dense = mask_of_dense(self.rows, len(self.q))
        sparse = lamina.compress_sparse24(self.q[~dense], self.kept[~dense])
        return lamina.pack_sparse24(
            sparse, layout, dense=self.q[dense] if self.rows else None, dense_rows=self.rows
        )


def exact(kind: str, m: int, n: int, k: int, rows: tuple[int, ...]) -> Exact:
    g = generator(f"{kind} {m} {n} {k} {rows}")

    def integers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=g)

    a, kept = integers(-3, 4, m, k).char(), random_mask(n, k)
    kept[mask_of_dense(rows, n)] = True
    groups = 1 if kind == "int8" else -(-k // 32)
    scale, of = 0.5 ** integers(1, 4, groups, n), torch.arange(k) // (k if kind == "int8" else 32)
    if kind == "int8":
        q, zero = integers(-9, 10, n, k).char(), None
        w = q.double() * scale.T
    else:
        q, zero = integers(0, 16, n, k).byte(), integers(0, 16, groups, n).byte()
        w = (q.double() - (zero[of].T.double() if kind == "int4_zeros" else 8)) * scale[of].T
    steps = (integers(-9, 9, n).float(), integers(-3, 4, m, n).half(), integers(-9, 9, m, n).float())
    return Exact(a, q, kept, w * kept, scale, zero if kind == "int4_zeros" else None, *steps, rows)


def run(ops: Any, kind: str, e: Exact, w: lamina.PackedSparse24) -> Tensor:
    then = (torch.float32, None, e.gate, e.residual)
    rows = {"dense": w.dense, "dense_rows": list(w.dense_rows)}
    ones = torch.ones(len(e.a), 1)
    if kind == "int8":
        operands = (e.a, w.data, w.column_sums, ones, e.scale[0], None, e.bias)
        out: Tensor = ops.matmul_sparse24_int8(*operands, *then, **rows)
    elif kind.startswith("int4_int8"):
        # Rows whose largest value is 127 are quantised to themselves.
        a, a_scale = (e.a.float(), None) if kind.endswith("floats") else (e.a, ones)
        operands = (a, w.data, e.scale, 32, a_scale, None, None, e.bias)
        out = ops.matmul_sparse24_int4_int8(*operands, *then, **rows)
    else:
        operands = (e.a.half(), w.data, e.scale.half(), 32, e.zero, e.bias)
        out = ops.matmul_sparse24_int4(*operands, *then, **rows)
    return out


def check(ops: Any, kind: str, place: str, m: int, n: int, k: int, rows: tuple[int, ...]) -> None:
    e = exact(kind, m, n, k, rows)
    if kind.endswith("floats") and m:
        e.a[:, 0] = 127
    assert_equal(run(ops, kind, e, e.packed(LAYOUTS[place])), e.want(), f"{kind} {m} x {n} x {k} {rows}")


@pytest.mark.parametrize("backend", cpu_backends("matmul_sparse24_int8"))
@pytest.mark.parametrize("kind", KINDS)
def test_all_rows_are_computed_on_a_cpu(kind: str, backend: Any) -> None:
    with backend.active() as ops:
        for m, (n, rows) in zip((1, 0, 40, 7, 1, 2), BLOCKS, strict=True):
            check(ops, kind, "cpu", m, n, 100, rows)


@contextmanager
def emulated(capability: int) -> Iterator[Any]:
    if emu_ops() is None:
        pytest.skip("this build has no emulator")
    with emulated_gpu(capability, EMULATOR_SMS):
        yield emu_ops()


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("kind", KINDS)
def test_all_rows_are_computed_on_the_emulator(kind: str, capability: int) -> None:
    with emulated(capability) as ops:
        check(ops, kind, "emulator", 5, 200, 144, (64, 128))
        if kind in ("int8", "int4"):
            check(ops, kind, "emulator", 3, 150, 144, (128, 150))


@pytest.mark.parametrize("layout", LAYOUTS.values())
@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize(("n", "rows"), BLOCKS[1:])
def test_packing_loses_nothing(n: int, rows: tuple[int, ...], kind: str, layout: str) -> None:
    e = exact(kind, 1, n, 132, rows)
    packed = e.packed(layout)
    whole = torch.where(e.kept, e.q, 0)
    assert torch.equal(packed.decompress(), whole)
    other = packed.repacked(next(name for name in LAYOUTS.values() if name != layout))
    assert torch.equal(other.decompress(), whole)
    assert torch.equal(other.repacked(layout).data, packed.data)
    if packed.column_sums is not None:
        assert torch.equal(packed.column_sums, whole.sum(1, dtype=torch.int32))
    tiles = packed.data.nbytes + (0 if packed.dense is None else packed.dense.nbytes)
    assert packed.nbytes == tiles + (4 * n if kind == "int8" else 0)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_shards_have_the_rows_and_features_of_a_range(kind: str) -> None:
    n, rows = BLOCKS[4]
    e = exact(kind, 1, n, 192, rows)
    packed, whole = e.packed("sparse24_rows"), torch.where(e.kept, e.q, 0)
    for of_n in ((0, 64), (64, 128), (64, 256), (192, 330), (128, 192), (0, 330)):
        for of_k in ((0, 192), (64, 192), (64, 128)):
            part = packed.shard(of_n, of_k)
            want = whole[of_n[0] : of_n[1], of_k[0] : of_k[1]]
            assert torch.equal(part.decompress(), want), (of_n, of_k)
            if part.column_sums is not None:
                assert torch.equal(part.column_sums, want.sum(1, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"shard: n = \(16, 64\).* begin at a multiple of 64"):
        packed.shard((16, 64))


def test_a_wrong_block_of_rows_is_named() -> None:
    e = exact("int8", 1, 150, 132, (0, 64))
    sparse, dense = lamina.compress_sparse24(e.q[64:], e.kept[64:]), e.q[:64]
    for rows in ((0, 63), (16, 80), (64, 0), (0, 128), (0,), (0, 64, 64, 64), (128, 192)):
        with pytest.raises(ValueError, match=r"dense_rows = \[.*\]; must be the begin and the end of blocks"):
            lamina.pack_sparse24(sparse, dense=dense, dense_rows=rows)
    for message, changed in {
        "dense is uint8 beside int8 values; allowed: int8 or uint8 for both": {"dense": dense.byte()},
        r"dense must be \[rows, k\] with k = 132, got \[64, 128\]": {"dense": dense[:, :128]},
        "group = 128 with dense rows; allowed: None": {"dense": dense, "group": 128},
    }.items():
        with pytest.raises(ValueError, match=message):
            lamina.pack_sparse24(sparse, dense_rows=(0, 64), **changed)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"dense must be a torch\.Tensor or None, got list"):
        lamina.pack_sparse24(sparse, dense=[1], dense_rows=(0, 64))  # type: ignore[arg-type]
    for rows, message in ((3, "must be a sequence of ints, got int"), ("ab", "got str"), ((0, 1.5), "float")):
        with pytest.raises(TypeError, match=rf"pack_sparse24: dense_rows.*{message}"):
            lamina.pack_sparse24(sparse, dense=dense, dense_rows=rows)  # type: ignore[arg-type]
    for message, wrong in {
        r"dense_rows = \[0, 64\] without dense": None,
        r"dense must be \[rows, k\] with k = 132, got \[\]": torch.tensor(1, dtype=torch.int8),
        r"dense must be .* got \[64, 132\] on meta": dense.to("meta"),
    }.items():
        with pytest.raises(ValueError, match=message):
            lamina.pack_sparse24(sparse, dense=wrong, dense_rows=(0, 64))
    none = lamina.pack_sparse24(sparse, dense=e.q[:0], dense_rows=())
    assert none.dense is None and none.dense_rows == ()
    with pytest.raises(TypeError, match=r"sparse\.values must be a torch\.Tensor"):
        lamina.pack_sparse24(replace(sparse, values=None))  # type: ignore[arg-type]


def test_python_functions_take_all_rows() -> None:
    n, rows = BLOCKS[4]
    for kind in ("int8", "int4", "int4_int8"):
        e = exact(kind, 5, n, 132, rows)
        w, then = e.packed("sparse24_rows"), {"bias": e.bias, "gate": e.gate, "residual": e.residual}
        if kind == "int8":
            got = lamina.matmul_sparse24_int8(e.a, w, torch.ones(1), e.scale[0], **then)
        elif kind == "int4":
            got = lamina.matmul_sparse24_int4(e.a.float(), w, e.scale, group=32, **then)
        else:
            ones = torch.ones(5, 1)
            got = lamina.matmul_sparse24_int4_int8(e.a, w, e.scale, group=32, a_scale=ones, **then)
        assert_equal(got, e.want(), kind)
