"""The inputs that pack_sparse24 and the products with 2:4 weights refuse."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch

import lamina
from tests.support.bad_input import RAW, BadInput, bytes_

M, N, K, GROUP = 3, 5, 64, 32
SCALES = torch.ones(K // GROUP, N)


def packed(dtype: torch.dtype) -> lamina.PackedSparse24:
    return lamina.pack_sparse24(lamina.compress_sparse24(torch.zeros(N, K).to(dtype)))


INT8, CODES, FLOATS = packed(torch.int8), packed(torch.uint8), packed(torch.float32)
GOOD: dict[str, dict[str, Any]] = {
    "matmul_sparse24": {"a": torch.ones(M, K), "w": FLOATS},
    "matmul_sparse24_int8": {
        "a": bytes_(M, K),
        "w": INT8,
        "a_scale": torch.ones(1),
        "w_scale": torch.ones(N),
    },
    "matmul_sparse24_int4": {"a": torch.ones(M, K), "w": CODES, "w_scale": SCALES, "group": GROUP},
    "matmul_sparse24_int4_int8": {"a": torch.ones(M, K), "w": CODES, "w_scale": SCALES, "group": GROUP},
}


def bad_inputs() -> Iterator[BadInput]:
    yield from _bad_packed()
    for op in GOOD:
        yield from _bad_products(op)
    yield from _bad_int4_products("matmul_sparse24_int4")
    yield from _bad_int4_products("matmul_sparse24_int4_int8")
    for op in list(GOOD)[1:]:  # floats have no product of dense rows
        yield from _bad_dense_rows(op)
    yield from _bad_explained()


def _bad_packed() -> Iterator[BadInput]:
    values, metadata = RAW.compress_sparse24(torch.zeros(N, K))

    def bad(what: str, argument: str, got: str, allowed: str, **changed: Any) -> BadInput:
        given = {"values": values, "metadata": metadata, "k": K, "layout": "sparse24_rows", "group": None}
        return BadInput(
            "pack_sparse24", what, lambda: RAW.pack_sparse24(**(given | changed)), argument, got, allowed
        )

    yield bad(
        "layout unknown", "layout", '"int4_rows"', '"sparse24_rows", "sparse24_tile"', layout="int4_rows"
    )
    yield bad(
        "f32 in the layout for CUDA", "layout", '"sparse24_tile"', '"sparse24_rows"', layout="sparse24_tile"
    )
    yield bad("values int32", "values", "int32", "int8, uint8", values=values.int())
    yield bad("values of another k", "values", "[5, 32]", "[n, k / 2] = [5, 34]", k=K + 4)
    yield bad("k no multiple of 4", "k = ", "62", "multiples of 4", k=62)
    yield bad("metadata int8", "metadata", "int8", "uint8", metadata=metadata.char())
    yield bad("metadata of less", "metadata", "[5, 7]", "[5, 8]", metadata=metadata[:, :7])
    yield bad("group of floats", "group = ", "128", "int8 only", group=128)
    wrong = metadata.clone()
    wrong[2, 1] = 0x5E
    yield bad("metadata twice the same", "metadata of row 2, group 3", "1 and 1", "rising", metadata=wrong)
    yield BadInput(
        "pack_sparse24",
        "a dense weight",
        lambda: lamina.pack_sparse24(torch.zeros(N, K)),
        "sparse ",
        "Tensor",
        "Sparse24",
    )


def _bad_products(op: str) -> Iterator[BadInput]:
    good = GOOD[op]
    product = getattr(lamina, op)
    is_int8 = good["a"].dtype == torch.int8

    def bad(what: str, argument: str, got: str, allowed: str, **changed: Any) -> BadInput:
        return BadInput(op, what, lambda: product(**(good | changed)), argument, got, allowed)

    yield bad("a None", "a ", "None", "torch.Tensor", a=None)
    yield bad("a f64", "a ", "float64", "int8" if is_int8 else "bfloat16", a=torch.ones(M, K).double())
    yield bad("a 1-D", "a ", "1-D [64]", "2-D [m, k]", a=good["a"][0])
    yield bad("a transposed", "a ", "column stride", "1", a=torch.zeros(K, M, dtype=good["a"].dtype).T)
    yield bad("k another than the weight's", "a ", "63", "64", a=good["a"][:, 1:])
    yield bad("w a plain tensor", "w ", "Tensor", "PackedSparse24", w=good["w"].data)
    other = CODES if good["w"] is not CODES else INT8
    yield bad("w of another type", "w ", str(other.dtype).removeprefix("torch."), "allowed: ", w=other)
    tile = lamina.pack_sparse24(lamina.compress_sparse24(torch.zeros(N, K).half()), layout="sparse24_tile")
    if op == "matmul_sparse24":
        half = {"a": torch.ones(M, K).half(), "w": tile}
        yield bad(
            "w in the layout for CUDA", "w ", '"sparse24_tile"', 'allowed on cpu: "sparse24_rows"', **half
        )
        yield bad("w of another float type", "w ", "float32", "float16", a=torch.ones(M, K).half())
    yield bad("bias of one", "bias", "1-D [1]", "n = 5", bias=torch.ones(1))
    yield bad("out_dtype int32", "out_dtype", "int32", "bfloat16", out_dtype=torch.int32)
    yield bad("activation unknown", "activation", '"relu"', '"gelu_tanh"', activation="relu")
    yield bad("gate of one row", "gate", "2-D [1, 5]", "[m, n] = [3, 5]", gate=torch.ones(1, N))
    yield bad("residual a number", "residual", "float 2.0", "torch.Tensor or None", residual=2.0)
    yield bad("max_sms 0", "max_sms", "max_sms = 0", "at least 1", max_sms=0)
    if is_int8:
        yield bad("a_scale of two", "a_scale", "1-D [2]", "[m, 1] with m = 3", a_scale=torch.ones(2))
        yield bad("w_scale of more", "w_scale", "6", "5", w_scale=torch.ones(N + 1))


def _bad_int4_products(op: str) -> Iterator[BadInput]:
    good, product = GOOD[op], getattr(lamina, op)

    def bad(what: str, argument: str, got: str, allowed: str, **changed: Any) -> BadInput:
        return BadInput(op, what, lambda: product(**(good | changed)), argument, got, allowed)

    yield bad("group 8", "group", "group = 8;", "positive multiple of 16", group=8)
    yield bad("group another than the scales'", "w_scale", "2-D [2, 5]", "[1, 5]", group=64)
    yield bad("w_scale as [n, groups]", "w_scale", "[5, 2]", "n = 5 of w", w_scale=SCALES.T)
    more = torch.ones(3, N)
    yield bad("w_zero_point of more groups", "w_zero_point", "[3, 5]", "[2, 5]", w_zero_point=more)
    yield bad("w_zero_point int8", "w_zero_point", "int8", "uint8", w_zero_point=bytes_(2, N))
    perm = torch.arange(K).int()
    yield bad("perm of k another than the weight's", "perm", "63", "64", perm=perm[1:])
    yield bad("perm int64", "perm", "int64", "int32", perm=perm.long())
    wrong = perm.index_fill(0, torch.tensor([5]), K)
    yield bad("perm beyond k", "perm[5]", "= 64;", "-1 to 63", perm=wrong)


def _bad_dense_rows(op: str) -> Iterator[BadInput]:
    """Blocks of dense rows that only the op sees: the packed weight of lamina.pack_sparse24 is right."""
    good = GOOD[op]
    whole = torch.zeros(1, 1, 1024 if good["w"].dtype == torch.int8 else 512, dtype=torch.uint8)
    none = good["w"].data[:0]

    def bad(
        what: str, argument: str, got: str, allowed: str, dense: Any, dense_rows: list[int], w: Any = none
    ) -> BadInput:
        packed = replace(good["w"], data=w, dense=dense, dense_rows=dense_rows)
        call = partial(getattr(lamina, op), **(good | {"w": packed}))
        return BadInput(op, what, call, argument, got, allowed)

    yield bad("dense without rows", "dense", "given with 0 entries", "both or neither", whole, [])
    yield bad("rows without dense", "dense", "not given with 2 entries", "both or neither", None, [0, N])
    yield bad("dense rows from 3", "dense_rows[0]", "= 3;", "multiple of 64", whole, [3, N])
    yield bad("dense rows to 4", "dense_rows[1]", "= 4;", "or n where a block ends", whole, [0, 4])
    yield bad("dense rows beyond n", "dense_rows[1]", "= 64;", "from 1 to 5", whole, [0, 64])
    yield bad("dense rows without an end", "dense_rows", "1 entries", "an end of each block", whole, [0])
    yield bad("dense of less", "dense", "[0, 1, ", "so 3-D [1, 1, ", whole[:0], [0, N])
    yield bad("2:4 rows beside dense ones", "w ", "[1, 1, ", "so 3-D [0, 1, ", whole, [0, N], good["w"].data)


def _bad_explained() -> Iterator[BadInput]:
    def bad(op: str, what: str, got: str, allowed: str, *arguments: Any) -> BadInput:
        def call() -> Any:
            return getattr(RAW, op)(*arguments)

        return BadInput(op, what, call, got.split()[0], got, allowed)

    for op in GOOD:
        yield bad(f"explain_{op}", "k no multiple of 4", "k = 66", "4", 1, 8, 66)
        yield bad(f"explain_{op}", "n negative", "n = -1", "", 1, -1, 64)
