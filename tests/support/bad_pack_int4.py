"""The inputs that pack_int4 and unpack_int4 refuse."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

import lamina
from tests.support.bad_input import INT8, RAW, BadInput, K, N, bytes_


def bad_inputs() -> Iterator[BadInput]:
    def bad(op: str, what: str, call: Callable[[], Any], argument: str, got: str, allowed: str) -> BadInput:
        return BadInput(op, what, call, argument, got, allowed)

    def pack(value: Any, layout: Any = "int4_tile") -> Callable[[], Any]:
        return lambda: lamina.pack_int4(value, layout)

    q = torch.zeros(N, K, dtype=torch.uint8)
    packed = lamina.pack_int4(q).data
    yield bad("pack_int4", "q of signed bytes", pack(bytes_(N, K)), "q ", "int8", "uint8")
    yield bad("pack_int4", "q a list", pack([[1]]), "q ", "list [[1]]", "torch.Tensor")
    yield bad("pack_int4", "q 1-D", pack(q[0]), "q ", "1-D [70]", "2-D [n, k]")
    yield bad("pack_int4", "q transposed", pack(q.T), "q ", "70", "column stride 1")
    yield bad("pack_int4", "a code of five bits", pack(q + 16), "q[0, 0]", "16", "0 to 15")
    yield bad("pack_int4", "layout unknown", pack(q, "gptq"), "layout", "gptq", '"int4_tile", "int4_rows"')
    yield bad("pack_int4", "layout a number", pack(q, 4), "layout", "int 4", "str")

    perm = torch.arange(K).int()

    def reorder(perm: Any) -> Callable[[], Any]:
        return lambda: lamina.pack_int4(q, perm=perm)

    yield bad("pack_int4", "perm a list", reorder([1]), "perm", "list [1]", "torch.Tensor or None")
    yield bad("pack_int4", "perm int64", reorder(perm.long()), "perm", "int64", "int32")
    yield bad("pack_int4", "perm 2-D", reorder(perm[None]), "perm", "2-D [1, 70]", "1-D [k]")
    yield bad("pack_int4", "perm beyond q", reorder(perm + 1), "perm[69]", "= 70;", "-1 to 69")

    def unpack(data: Any, n: int = N, layout: str = "int4_tile") -> Callable[[], Any]:
        return lambda: RAW.unpack_int4(data, n, K, layout)

    yield bad("unpack_int4", "negative n", unpack(packed, -5), "n = ", "-5", "negative")
    yield bad(
        "unpack_int4", "n of another weight", unpack(packed, 17), "data", "3-D [1, 2, 512]", "[2, 2, 512]"
    )
    yield bad("unpack_int4", "data int8", unpack(packed.to(INT8)), "data", "int8", "uint8")
    strided = packed.transpose(1, 2).contiguous().transpose(1, 2)
    yield bad("unpack_int4", "data permuted", unpack(strided), "data", "contiguous", ".contiguous()")
    yield bad("unpack_int4", "layout unknown", unpack(packed, N, "x"), "layout", '"x"', '"int4_tile"')
