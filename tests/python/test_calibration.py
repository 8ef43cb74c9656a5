"""Calibration of compiled models, and calibration batches that are not tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lamina
from lamina.nn import Int4Linear
from tests.python.test_int8_linear import seeded
from tests.support.compare import assert_equal


class Block(nn.Module):
    """A model with two inputs, each passed by position or by name."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(48, 64)
        self.down = nn.Linear(64, 48)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        hidden = self.down(torch.nn.functional.gelu(self.up(x)))
        return hidden if scale is None else hidden * scale


def block(dtype: torch.dtype = torch.float32) -> Block:
    torch.manual_seed(7)
    return Block().to(dtype).eval()


BATCHES = [seeded(40, 48, seed=seed) * torch.logspace(0, -2, 48) for seed in (1, 2)]


def weights(model: nn.Module) -> list[Tensor]:
    """The weights of the packed layers, in order."""
    return [module.dequantize_weight() for module in model.modules() if isinstance(module, Int4Linear)]


def calibrated(model: Any, calibration: Any = BATCHES) -> list[Tensor]:
    lamina.compress(model, scheme="w4a16", group=16, calibration=calibration)
    return weights(model)


@pytest.fixture(scope="module")
def expected() -> list[Tensor]:
    found = calibrated(block())
    plain = block()
    lamina.compress(plain, scheme="w4a16", group=16)
    assert not any(torch.equal(left, right) for left, right in zip(found, weights(plain), strict=True))
    return found


def assert_all_equal(got: list[Tensor], want: list[Tensor]) -> None:
    assert len(got) == len(want) == 2
    for left, right in zip(got, want, strict=True):
        assert_equal(left, right)


def compiled_whole(model: nn.Module) -> nn.Module:
    compiled: nn.Module = torch.compile(model, backend="eager")  # type: ignore[assignment]
    return compiled


def compiled_in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


def compiled_inside(model: nn.Module) -> nn.Module:
    return nn.Sequential(compiled_whole(model))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("wrap", [compiled_whole, compiled_in_place, compiled_inside])
def test_a_compiled_model_is_calibrated_and_compiles_anew(
    wrap: Callable[[nn.Module], nn.Module], expected: list[Tensor]
) -> None:
    torch._dynamo.reset()
    model, want = block(), block()
    calibrated(want)
    compiled = wrap(model)
    x = seeded(40, 48)
    with torch.no_grad():
        torch.testing.assert_close(
            compiled(x), block()(x)
        )  # compiles code for the shape of a batch, which calibration must not use
        assert_all_equal(calibrated(compiled), expected)
        assert_equal(compiled(x), want(x))


def test_a_function_that_calls_a_compiled_model(expected: list[Tensor]) -> None:
    torch._dynamo.reset()
    model = block()
    step = torch.compile(lambda x: model(x), backend="eager")
    with torch.no_grad():
        step(BATCHES[0])
    assert_all_equal(calibrated(model, lambda _: [step(batch) for batch in BATCHES]), expected)


KINDS: dict[str, Callable[[Tensor], Any]] = {
    "array": lambda x: x.numpy(),
    "array of f64": lambda x: x.double().numpy(),
    "array by name": lambda x: {"x": x.numpy(), "scale": np.float32(2)},
    "arrays by position": lambda x: (x.numpy(), np.full(48, 2.0)),
    "array and tensor": lambda x: [x, np.full(48, 2.0)],
}


@pytest.mark.parametrize("kind", KINDS)
def test_numpy_batches_are_those_of_tensors(kind: str, expected: list[Tensor]) -> None:
    batches = [KINDS[kind](batch) for batch in BATCHES]
    assert_all_equal(calibrated(block(), batches), expected)


def test_arrays_with_negative_strides(expected: list[Tensor]) -> None:
    backwards = [batch.numpy()[::-1].copy()[::-1] for batch in BATCHES]
    assert backwards[0].strides[0] < 0
    assert_all_equal(calibrated(block(), backwards), expected)


def test_a_model_of_16_bit_keeps_the_dtype_of_its_weights() -> None:
    model = block(torch.bfloat16)
    calibrated(model, [batch.bfloat16() for batch in BATCHES])
    assert (model.up.weight.dtype, model.down.weight.dtype) == (torch.bfloat16, torch.bfloat16)


def test_arrays_get_the_dtype_of_the_model_and_integers_keep_theirs() -> None:
    seen: list[torch.dtype] = []

    class Embedded(Block):
        def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
            seen.append(x.dtype)
            return super().forward(self.table.weight[x] if x.dtype == torch.int64 else x, scale)

        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(30, 48)

    torch.manual_seed(7)
    model = Embedded().bfloat16()
    calibrated(model, [np.arange(30), BATCHES[0].numpy()])
    assert seen == [torch.int64, torch.bfloat16]


BAD: dict[str, tuple[Any, str]] = {
    "one array": (BATCHES[0].numpy(), "calibration must hold batches, got ndarray; put one into a list"),
    "one tensor": (BATCHES[0], "calibration must hold batches, got Tensor; put one into a list"),
    "text": ("typical", "calibration must hold batches, got str; put one into a list"),
    "one number": (5, "calibration must hold batches, got int; put one into a list"),
    "texts": ([BATCHES[0], "typical"], r"calibration\[1\] must be a tensor, a NumPy array, .*, got str"),
    "an array of texts": ([BATCHES[0], np.array(["a"])], r"calibration\[1\]: can't convert np.ndarray"),
    "a number": ([3.0], r"calibration\[0\] must be a tensor, a NumPy array, .*, got float"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_batch_is_refused_by_name(case: str) -> None:
    calibration, message = BAD[case]
    model = block()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(TypeError, match=f"compress: {message}"):
        calibrated(model, calibration)
    assert before.keys() == model.state_dict().keys()
