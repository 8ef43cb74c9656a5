"""distill_loss against a slow float64 one, its gradients, and the memory that it holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import lamina
from tests.reference import distill_loss as reference
from tests.support.cases import generator

KINDS = ("forward", "reverse", "jsd")
TOKENS, D, E, V = 7, 5, 6, 11


def inputs(dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    g = generator("distill")
    shapes = {
        "student_hidden": (TOKENS, D), "teacher_hidden": (TOKENS, E), "lm_head": (V, D),
        "teacher_lm_head": (V, E), "bias": (V,), "teacher_bias": (V,),
    }  # fmt: skip
    return {
        name: torch.randn(shape, generator=g, dtype=torch.float64).to(dtype) for name, shape in shapes.items()
    }


def expected(given: dict[str, Tensor], kind: str, beta: float, temperature: float, weight: Tensor) -> float:
    student, teacher = (
        tuple(given[prefix + name].double().numpy() for name in names)
        for prefix, names in (
            ("", ("student_hidden", "lm_head", "bias")),
            ("teacher_", ("hidden", "lm_head", "bias")),
        )
    )
    return reference.distill_loss(student, teacher, kind, beta, temperature, weight.double().numpy())  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("chunk", [None, 1, 3])
def test_it_is_the_slow_one(kind: str, temperature: float, chunk: int | None) -> None:
    given = inputs()
    weight = torch.tensor([1, 0, 2, 1, 0.5, 1, 3], dtype=torch.float64)
    options: dict[str, Any] = {"divergence": kind, "beta": 0.3, "temperature": temperature}
    got = lamina.distill_loss(**given, **options, token_weight=weight, chunk=chunk)
    assert got.dtype is torch.float64 and got.shape == ()
    assert abs(float(got) - expected(given, kind, 0.3, temperature, weight)) <= 1e-13 * (1 + float(got))
    plain = lamina.distill_loss(**given, **options, chunk=chunk)
    assert abs(float(plain) - expected(given, kind, 0.3, temperature, torch.ones(TOKENS))) <= 1e-13 * (
        1 + plain
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_dtypes(kind: str, dtype: torch.dtype) -> None:
    """Logits of at most 16 are rounded once; the divergence has a slope of at most 2 by each logit."""
    given = inputs(dtype)
    got = lamina.distill_loss(**given, divergence=kind)
    assert got.dtype is torch.float32
    rounding = {torch.float32: 2.0**-22, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}[dtype]
    assert abs(float(got) - expected(given, kind, 0.5, 1.0, torch.ones(TOKENS))) <= 4 * 16 * rounding


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wanted", ["student_hidden", "lm_head", "bias", "all"])
def test_gradients_in_f64(kind: str, wanted: str) -> None:
    given = inputs()
    names = ["student_hidden", "lm_head", "bias"] if wanted == "all" else [wanted]
    weight = torch.tensor([1, 0, 2, 1, 0.5, 1, 3], dtype=torch.float64)

    def loss(*tensors: Tensor) -> Tensor:
        options: dict[str, Any] = {"divergence": kind, "beta": 0.3, "temperature": 1.7, "chunk": 3}
        return 2 * lamina.distill_loss(
            **(given | dict(zip(names, tensors, strict=True))), **options, token_weight=weight
        )

    tensors = tuple(given[name].clone().requires_grad_() for name in names)
    assert torch.autograd.gradcheck(loss, tensors, eps=1e-6, atol=1e-7)


def test_the_teacher_gets_no_gradient_and_may_share_the_head() -> None:
    given = inputs()
    head, bias = given["lm_head"].requires_grad_(), given["bias"]
    hidden, teacher = given["student_hidden"], given["teacher_hidden"][:, :D].clone().requires_grad_()
    shared = lamina.distill_loss(hidden, teacher, head, bias=bias)
    shared.backward()
    assert teacher.grad is None and head.grad is not None
    apart = head.detach().clone().requires_grad_()
    lamina.distill_loss(hidden, teacher, apart, head.detach(), bias=bias, teacher_bias=bias).backward()
    assert torch.equal(head.grad, apart.grad)  # type: ignore[arg-type]


def test_a_student_that_is_the_teacher_has_no_loss_and_no_gradient() -> None:
    given = inputs()
    for kind in KINDS:
        hidden = given["student_hidden"].clone().requires_grad_()
        loss = lamina.distill_loss(hidden, hidden.detach(), given["lm_head"], divergence=kind)
        loss.backward()
        assert abs(float(loss.detach())) < 1e-15 and float(hidden.grad.abs().max()) < 1e-15  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", KINDS)
def test_words_that_both_exclude_count_nothing(kind: str) -> None:
    given = inputs()
    whole = lamina.distill_loss(**given, divergence=kind)
    more = {name: torch.cat((t, t[:1])) if len(t) == V else t for name, t in given.items()}
    more["bias"][V:] = more["teacher_bias"][V:] = -torch.inf
    more["student_hidden"].requires_grad_()
    same = lamina.distill_loss(**more, divergence=kind)
    same.backward()
    assert abs(float(same - whole)) < 1e-14
    assert bool(more["student_hidden"].grad.isfinite().all())  # type: ignore[union-attr]


def test_nothing_to_compare() -> None:
    given = inputs()
    none = given | {name: given[name][:0] for name in ("student_hidden", "teacher_hidden")}
    assert float(lamina.distill_loss(**none)) == 0
    assert float(lamina.distill_loss(**given, token_weight=torch.zeros(TOKENS, dtype=torch.bool))) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_of_weight_0_may_hold_anything(kind: str) -> None:
    weight = torch.tensor([1.0, 0, 2, 1, 0.5, 0, 3])
    found = []
    for bad in (0.0, torch.nan, torch.inf):
        given = inputs()
        for name in ("student_hidden", "teacher_hidden"):
            given[name][weight == 0] = bad
        leaves = [given[name].requires_grad_() for name in ("student_hidden", "lm_head", "bias")]
        loss = lamina.distill_loss(**given, divergence=kind, token_weight=weight)
        found.append([loss, *torch.autograd.grad(loss, leaves)])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
    assert bool((found[0][1][weight == 0] == 0).all())


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_in_f16_of_many_tokens_do_not_vanish(kind: str) -> None:
    """A loss scaler multiplies what backward() gives; the gradient of a logit is below 2^-24 before that."""
    g, tokens, v, d = generator("f16"), 1024, 4000, 32
    hidden, teacher = (torch.randn(tokens, d, generator=g).half() for _ in range(2))
    head = (torch.randn(v, d, generator=g) * d**-0.5).half()
    found = []
    for dtype in (torch.float16, torch.float32):
        leaves = [t.to(dtype).requires_grad_() for t in (hidden, head)]
        loss = lamina.distill_loss(leaves[0], teacher.to(dtype), leaves[1], divergence=kind)
        found.append(torch.autograd.grad(loss * 65536, leaves))
    for narrow, exact in zip(*found, strict=True):
        assert (narrow.float() - exact).norm() <= 0.01 * exact.norm()


class Largest(TorchDispatchMode):
    """Keeps the number of elements of the largest tensor that an operation makes."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.elements = max([self.elements, *(t.numel() for t in tree_leaves(made) if isinstance(t, Tensor))])
        return made


def test_it_never_holds_the_logits() -> None:
    tokens, d, v = 96, 8, 1000
    g = generator("memory")
    hidden, teacher = (torch.randn(2, tokens // 2, d, generator=g) for _ in range(2))
    head = torch.randn(v, d, generator=g, requires_grad=True)
    with Largest() as largest:
        lamina.distill_loss(hidden.requires_grad_(), teacher, head, chunk=4).backward()
    assert largest.elements == max(v * d, 4 * v)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "hidden int": (
        {"student_hidden": torch.ones(TOKENS, D).int()},
        r"student_hidden must be \[\.\.\., d\] f64",
    ),
    "tokens": (
        {"teacher_hidden": torch.ones(3, E)},
        r"teacher_hidden must have the leading dimensions \[7\]",
    ),
    "head": ({"lm_head": torch.ones(V, E).double()}, r"lm_head must be torch.float64 \[11, 5\] on cpu"),
    "teacher head": (
        {"teacher_lm_head": torch.ones(V + 1, E).double()},
        r"teacher_lm_head must be .* \[11, 6\]",
    ),
    "bias": ({"bias": torch.ones(V)}, r"bias must be torch.float64 \[11\] on cpu, got torch.float32"),
    "teacher bias alone": (
        {"teacher_lm_head": None, "teacher_hidden": torch.ones(TOKENS, D).double()},
        "teacher_bias was given without teacher_lm_head",
    ),
    "divergence": ({"divergence": "kl"}, "divergence must be one of forward, reverse, jsd, got 'kl'"),
    "beta": ({"divergence": "jsd", "beta": 1.0}, r"beta = 1\.0; must be above 0 and below 1"),
    "temperature": ({"temperature": 0.0}, r"temperature = 0\.0; must be above 0"),
    "chunk": ({"chunk": 0}, "chunk = 0; must be an int, at least 1"),
    "chunk 1.5": ({"chunk": 1.5}, r"chunk = 1\.5; must be an int, at least 1"),
    "weight -1": (
        {"token_weight": torch.tensor([1, 1, -1, 1, 1, 0, 1])},
        r"token_weight has -1\.0; must be at least 0 and finite",
    ),
    "weight nan": (
        {"token_weight": torch.tensor([1, 1, torch.nan, 1, 1, 0, 1])},
        "token_weight has nan; must be at least 0 and finite",
    ),
    "weight inf": (
        {"token_weight": torch.tensor([1, 1, torch.inf, 1, 1, 0, 1])},
        "token_weight has inf; must be at least 0 and finite",
    ),
    "weight": ({"token_weight": torch.ones(3)}, r"token_weight must be \[7\], as student_hidden without"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str) -> None:
    changed, message = BAD[case]
    with pytest.raises(ValueError, match=f"distill_loss: {message}"):
        lamina.distill_loss(**(inputs() | changed))
