"""lamina.nn.RMSNorm: the norm of transformers, with a residual and in int8."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import lamina
from lamina.nn import RMSNorm
from tests.reference import rms_norm as reference
from tests.support.cases import FLOAT_DTYPES, dtype_name, generator
from tests.support.compare import assert_equal, assert_within

N = 48


def made_norm(dtype: torch.dtype = torch.float32, eps: float = 1e-5) -> RMSNorm:
    norm = RMSNorm(N, eps, dtype=dtype)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(N, generator=generator("norm weight")))
    return norm


def inputs(dtype: torch.dtype, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    x, residual = torch.randn(2, *shape, N, generator=generator("norm"))
    return x.to(dtype), residual.to(dtype)


@torch.no_grad()
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=dtype_name)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0, 4), (2, 1, 2)], ids=str)
def test_any_shape(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    norm, (x, residual) = made_norm(dtype), inputs(dtype, *shape)
    weight = norm.weight.detach()
    want = reference.rms_norm_steps(x.reshape(-1, N), weight, 1e-5)
    assert_equal(norm(x), want.view(x.shape))
    z = reference.add(x, residual)
    normed, added = norm(x, residual)
    assert_equal(normed, reference.rms_norm_steps(z.reshape(-1, N), weight, 1e-5).view(x.shape))
    assert_equal(added, z)
    for symmetric in (True, False):
        want_q = lamina.quantize_int8(normed.reshape(-1, N), symmetric=symmetric)
        a, added = norm.forward_quantized(x, residual, symmetric=symmetric)
        assert_equal(a.q, want_q.q)
        assert_equal(a.scale, want_q.scale)
        assert (a.zero_point is None) == symmetric
        assert_equal(added, z)
    assert_equal(norm.forward_quantized(x).q, lamina.quantize_int8(want).q)


@torch.no_grad()
def test_views_that_are_not_contiguous() -> None:
    norm, (x, residual) = made_norm(), inputs(torch.float32, 4, 3)
    normed, added = norm(x.transpose(0, 1), residual.transpose(0, 1))
    want, want_added = norm(x, residual)
    assert_equal(normed, want.transpose(0, 1).contiguous())
    assert_equal(added, want_added.transpose(0, 1).contiguous())
    assert_equal(norm(x.mT.contiguous().mT), norm(x))


@torch.no_grad()
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=dtype_name)
@pytest.mark.parametrize("family", ["llama.LlamaRMSNorm", "qwen3.Qwen3RMSNorm", "mistral.MistralRMSNorm"])
def test_takes_the_place_of_a_norm_of_transformers(family: str, dtype: torch.dtype) -> None:
    models = pytest.importorskip("transformers.models", reason="pip install transformers")
    module, kind = family.split(".")
    modeling = pytest.importorskip(f"{models.__name__}.{module}.modeling_{module}")
    theirs = getattr(modeling, kind)(N, eps=1e-5).to(dtype)
    theirs.weight.copy_(made_norm().weight)
    ours = RMSNorm.from_module(theirs.eval())
    assert ours.weight is theirs.weight
    assert (ours.variance_epsilon, ours.training) == (1e-5, False)
    x, _ = inputs(dtype, 2, 3)
    # The bound holds for both, so they differ by at most twice the bound.
    exact, bound = reference.rms_norm(x.view(-1, N), ours.weight, 1e-5)
    for norm in (ours, theirs):
        assert_within(norm(x).view(-1, N), reference.Expected(exact, bound), dtype, norm)


@torch.no_grad()
def test_takes_the_place_of_the_norm_of_torch() -> None:
    theirs = torch.nn.RMSNorm(N, eps=0.25)
    theirs.weight.copy_(made_norm().weight)
    ours, (x, _) = RMSNorm.from_module(theirs), inputs(torch.float32, 5)
    exact, bound = reference.rms_norm(x, ours.weight, 0.25)
    assert_within(ours(x), reference.Expected(exact, bound), torch.float32)
    torch.testing.assert_close(ours(x), theirs(x))


class GemmaNorm(torch.nn.Module):
    """Multiplies by 1 + weight."""

    def __init__(self, value: float, eps: Any = 1e-6) -> None:
        super().__init__()
        self.weight, self.eps = torch.nn.Parameter(torch.full((N,), value)), eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.rms_norm(x, (N,), 1 + self.weight, self.eps)


@torch.no_grad()
@pytest.mark.parametrize("value", [0.0, 9.0])
def test_takes_the_place_of_a_norm_with_one_plus_its_weight(value: float) -> None:
    theirs = GemmaNorm(value)
    theirs.weight.add_(made_norm().weight)
    ours, (x, _) = RMSNorm.from_module(theirs), inputs(torch.float32, 5)
    assert torch.equal(ours.weight, 1 + theirs.weight)
    exact, bound = reference.rms_norm(x, 1 + theirs.weight, 1e-6)
    assert_within(ours(x), reference.Expected(exact, bound), torch.float32)


BAD_NORMS = {
    "would round 1 + weight": (GemmaNorm(0.0).bfloat16(), "GemmaNorm computes neither"),
    "subtracts the mean": (torch.nn.LayerNorm(N), "LayerNorm computes neither"),
    "no eps": (torch.nn.RMSNorm(N), "RMSNorm must have a float variance_epsilon or eps, got None"),
    "no weight": (torch.nn.Identity(), "Identity.weight must be a parameter"),
    "a weight of two dimensions": (torch.nn.Linear(N, N), "Linear.weight must be a parameter"),
    "not loaded": (torch.nn.RMSNorm(N, eps=1e-5, device="meta"), "RMSNorm.weight must be a parameter"),
}


@pytest.mark.parametrize("what", BAD_NORMS)
def test_another_norm_is_refused(what: str) -> None:
    norm, message = BAD_NORMS[what]
    with pytest.raises(ValueError, match=f"RMSNorm.from_module: {message}"):
        RMSNorm.from_module(norm)


@torch.no_grad()
def test_bad_shapes_are_refused() -> None:
    norm, (x, residual) = made_norm(), inputs(torch.float32, 3)
    with pytest.raises(ValueError, match=rf"x must be \[..., n\] with n = {N}, got \[3, {N - 1}\]"):
        norm(x[:, 1:])
    with pytest.raises(ValueError, match=r"got \[\]"):
        norm(x[0, 0])
    with pytest.raises(ValueError, match=rf"residual must be \[3, {N}\] like x, got \[2, {N}\]"):
        norm.forward_quantized(x, residual[:2])


def test_gradients_are_refused() -> None:
    norm, (x, residual) = made_norm(), inputs(torch.float32, 3)
    for call in (lambda: norm(x), lambda: norm.forward_quantized(x)):
        with pytest.raises(RuntimeError, match="no backward pass"):
            call()
    norm.weight.requires_grad_(False)
    norm(x)
    with pytest.raises(RuntimeError, match="no backward pass"):
        norm(x, residual.requires_grad_())


def test_state_dict_and_repr() -> None:
    norm = made_norm(torch.bfloat16)
    assert list(norm.state_dict()) == ["weight"]
    assert repr(norm) == f"RMSNorm({N}, eps=1e-05)"
    other = RMSNorm(N, 1e-5, dtype=torch.bfloat16)
    other.load_state_dict(norm.state_dict())
    assert_equal(other.weight.detach(), norm.weight.detach())


@torch.no_grad()
def test_compiles_to_one_graph() -> None:
    norm, (x, residual) = made_norm(), inputs(torch.float32, 3)

    def block(x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        a, added = norm.forward_quantized(x, residual)
        return norm(added) + a.q * a.scale

    torch._dynamo.reset()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    assert_equal(compiled(x, residual), block(x, residual))
    torch._dynamo.reset()
