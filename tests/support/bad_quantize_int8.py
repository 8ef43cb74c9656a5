"""The inputs that quantize_int8 refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

import lamina
from tests.support.bad_input import BadInput, K, M, bytes_


def quantize(x: Any, **options: Any) -> Callable[[], Any]:
    return lambda: lamina.quantize_int8(x, **options)


def bad_inputs() -> Iterator[BadInput]:
    def bad(what: str, call: Callable[[], Any], argument: str, got: str, allowed: str) -> BadInput:
        return BadInput("quantize_int8", what, call, argument, got, allowed)

    x, one, zero = torch.ones(M, K), torch.ones(1), bytes_(1)
    yield bad("x f64", quantize(x.double()), "x ", "float64", "bfloat16")
    yield bad("x int8", quantize(bytes_(M, K)), "x ", "int8", "bfloat16")
    yield bad("x None", quantize(None), "x ", "None", "torch.Tensor")
    yield bad("scale a number", quantize(x, scale=0.1), "scale", "float 0.1", "torch.Tensor or None")
    yield bad("symmetric a number", quantize(x, symmetric=1), "symmetric", "int 1", "bool")
    yield bad("x 1-D", quantize(x[0]), "x ", "1-D [70]", "2-D [m, k]")
    yield bad("x transposed", quantize(x.T), "x ", "70", "column stride 1")
    for value, text in ((0.0, "0"), (-1.0, "-1"), (torch.nan, "nan"), (torch.inf, "inf"), (1e-40, "e-41")):
        scale = torch.tensor([value])
        yield bad(f"scale {value}", quantize(x, scale=scale), "scale[0]", text, "finite")
    late = torch.tensor([[1.0], [2.0], [0.0]])
    yield bad("scale of the last row 0", quantize(x, scale=late), "scale[2]", "0", "finite")
    yield bad("scale f64", quantize(x, scale=one.double()), "scale", "float64", "float32")
    yield bad("scale of two", quantize(x, scale=torch.ones(2)), "scale", "1-D [2]", "[m, 1]")
    grid: dict[str, Any] = {"scale": one, "zero_point": zero}
    yield bad("zero point when symmetric", quantize(x, **grid), "zero_point", "given", "symmetric = False")
    yield bad(
        "zero point without scale",
        quantize(x, zero_point=zero, symmetric=False),
        "zero_point",
        "given",
        "only with scale",
    )
    yield bad("no zero point", quantize(x, scale=one, symmetric=False), "zero_point", "missing", "needs")
    grid = {"scale": one, "symmetric": False}
    yield bad("zero point int32", quantize(x, zero_point=zero.int(), **grid), "zero_point", "int32", "int8")
    yield bad("zero point of two", quantize(x, zero_point=bytes_(2), **grid), "zero_point", "[2]", "[m, 1]")
    yield bad("scale on another device", quantize(x, scale=one.to("meta")), "scale", "meta", "cpu")
