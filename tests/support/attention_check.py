"""How tests run paged_attention, and the whole check of one problem."""

from __future__ import annotations

import torch

from tests.reference.paged_attention import Attention
from tests.support.attention_cases import AttentionInputs
from tests.support.backends import Backend
from tests.support.compare import assert_equal, assert_within


def attend(
    backend: Backend, inputs: AttentionInputs, return_lse: bool = True, batch_invariant: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """out and lse of the op for inputs in the backend's memory."""
    given = {
        name: backend.place(value) if isinstance(value, torch.Tensor) else value
        for name, value in inputs.arguments().items()
    }
    with backend.active() as ops:
        out, lse = ops.paged_attention(**given, return_lse=return_lse, batch_invariant=batch_invariant)
    return out.cpu(), lse.cpu()


def check_attention(
    backend: Backend, inputs: AttentionInputs, expected: Attention, label: object = ""
) -> tuple[torch.Tensor, torch.Tensor]:
    """Checks the documented bounds of out and lse."""
    out, lse = attend(backend, inputs)
    assert_within(out, expected.out, inputs.out_dtype or inputs.q.dtype, f"{label} out")
    assert_within(lse, expected.lse, torch.float32, f"{label} lse")
    return out, lse


def assert_same(
    backend: Backend,
    inputs: AttentionInputs,
    want: tuple[torch.Tensor, torch.Tensor],
    tokens: slice | list[int],
    label: object = "",
) -> None:
    """Asserts that all results for `inputs` have the bits of `want` for these tokens."""
    out, lse = attend(backend, inputs)
    assert_equal(out, want[0][tokens], f"{label} out")
    assert_equal(lse, want[1][:, tokens], f"{label} lse")
