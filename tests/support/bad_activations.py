"""Every input that rms_norm, silu_mul and their int8 forms refuse."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch

import lamina
from tests.support.bad_input import RAW, BadInput, M, N, bytes_


def bad_inputs() -> Iterator[BadInput]:
    yield from _bad_rms_norm()
    yield from _bad_silu_mul()


def _bad_rms_norm() -> Iterator[BadInput]:
    x = torch.ones(M, N)
    good: dict[str, Any] = {"x": x, "weight": torch.ones(N)}

    def bad(what: str, argument: str, got: str, allowed: str, **changed: Any) -> BadInput:
        call = functools.partial(lamina.rms_norm, **(good | changed))
        return BadInput("rms_norm", what, call, argument, got, allowed)

    yield bad("x None", "x ", "None", "torch.Tensor", x=None)
    yield bad("weight a number", "weight", "float 1.0", "torch.Tensor", weight=1.0)
    yield bad("eps a tensor", "eps", "tensor(1.)", "float", eps=torch.tensor(1.0))
    yield bad("residual a number", "residual", "int 0", "torch.Tensor or None", residual=0)
    yield bad("x 1-D", "x ", "1-D [5]", "2-D [m, n]", x=x[0])
    yield bad("x transposed", "x ", "3", "column stride 1", x=torch.ones(N, M).T)
    yield bad("x f64", "x ", "float64", "bfloat16", x=x.double())
    yield bad("weight of another dtype", "weight", "float16", "float32", weight=torch.ones(N).half())
    yield bad("weight of another n", "weight", "1-D [3]", "n = 5", weight=torch.ones(M))
    yield bad("weight strided", "weight", "contiguous", ".contiguous()", weight=torch.ones(2 * N)[::2])
    for eps, text in ((0.0, "0"), (-1.0, "-1"), (1e-40, "e-41"), (1e39, "inf"), (torch.nan, "nan")):
        yield bad(
            f"eps {eps}", "eps", f"= {text}" if text != "e-41" else text, "finite and at least", eps=eps
        )
    yield bad("residual of another dtype", "residual", "bfloat16", "float32", residual=x.bfloat16())
    yield bad("residual of one row", "residual", "2-D [1, 5]", "[m, n] = [3, 5]", residual=x[:1])
    yield bad("residual transposed", "residual", "3", "column stride 1", residual=torch.ones(N, M).T)
    yield bad("weight on another device", "weight", "meta", "cpu", weight=torch.ones(N, device="meta"))
    yield bad("residual on another device", "residual", "meta", "cpu", residual=x.to("meta"))
    deep = 2**24 + 1
    wide = {"x": torch.empty(0, deep).half(), "weight": torch.empty(deep).half()}
    yield bad("n beyond exact counts", "n = ", str(deep), "at most 16777216", **wide)

    def bad_int8(what: str, argument: str, got: str, allowed: str, **changed: Any) -> BadInput:
        """The arguments that rms_norm does not have; the code for the others is the same."""
        call = functools.partial(lamina.rms_norm_int8, **(good | changed))
        return BadInput("rms_norm_int8", what, call, argument, got, allowed)

    yield bad_int8("x of bytes", "x ", "int8", "bfloat16", x=bytes_(M, N))
    yield bad_int8("symmetric a number", "symmetric", "int 1", "bool", symmetric=1)
    call = functools.partial(RAW.explain_rms_norm, 1, -2)
    yield BadInput("explain_rms_norm", "negative n", call, "n = ", "-2", "negative")


def _bad_silu_mul() -> Iterator[BadInput]:
    x = torch.ones(M, N)
    good: dict[str, Any] = {"x": x, "up": torch.ones(M, N)}

    def bad(what: str, argument: str, got: str, allowed: str, **changed: Any) -> BadInput:
        call = functools.partial(lamina.silu_mul, **(good | changed))
        return BadInput("silu_mul", what, call, argument, got, allowed)

    yield bad("x None", "x ", "None", "torch.Tensor", x=None)
    yield bad("up a number", "up ", "int 1", "torch.Tensor or None", up=1)
    yield bad("x 1-D", "x ", "1-D [5]", "2-D [m, n]", x=x[0])
    yield bad("x transposed", "x ", "3", "column stride 1", x=torch.ones(N, M).T)
    yield bad("x f64", "x ", "float64", "bfloat16", x=x.double())
    yield bad("one tensor of odd columns", "x ", "2-D [3, 5]", "2-D [m, 2 n]", up=None)
    yield bad("one tensor, 1-D", "x ", "1-D [5]", "2-D [m, 2 n]", x=x[0], up=None)
    yield bad("up of another dtype", "up ", "bfloat16", "float32", up=x.bfloat16())
    yield bad("up of one row", "up ", "2-D [1, 5]", "[m, n] = [3, 5]", up=x[:1])
    yield bad("up transposed", "up ", "3", "column stride 1", up=torch.ones(N, M).T)
    yield bad("up on another device", "up ", "meta", "cpu", up=x.to("meta"))

    def bad_int8(what: str, argument: str, got: str, allowed: str, **changed: Any) -> BadInput:
        """The arguments that silu_mul does not have; the code for the others is the same."""
        call = functools.partial(lamina.silu_mul_int8, **(good | changed))
        return BadInput("silu_mul_int8", what, call, argument, got, allowed)

    yield bad_int8("x of bytes", "x ", "int8", "bfloat16", x=bytes_(M, N))
    yield bad_int8("symmetric a number", "symmetric", "int 1", "bool", symmetric=1)
    call = functools.partial(RAW.explain_silu_mul, -1, 2)
    yield BadInput("explain_silu_mul", "negative m", call, "m = ", "-1", "negative")
