"""The divergence of two language models over the vocabulary, in chunks of tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

# The bytes of one buffer of logits of a chunk, where distill_loss chooses the chunk.
CHUNK_BYTES = 32 << 20
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def distill_loss(
    student_hidden: Tensor,
    teacher_hidden: Tensor,
    lm_head: Tensor,
    teacher_lm_head: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    divergence: str = "forward",
    beta: float = 0.5,
    temperature: float = 1.0,
    token_weight: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Mean divergence of the student's next-token distribution from the teacher's; never holds all logits.

    student_hidden   [..., d]  f64 | f32 | f16 | bf16: the inputs of the student's last layer
    teacher_hidden   [..., e]  a float dtype of its own, the same leading dimensions
    lm_head          [V, d]  dtype of student_hidden: the weight of that layer
    teacher_lm_head  [V, e]  dtype of teacher_hidden; None: lm_head and bias are the teacher's too
    bias, teacher_bias   [V]  dtypes of the two hidden states, or None; teacher_bias with teacher_lm_head
    divergence   "forward": KL(p || q), p of the teacher, q of the student. "reverse": KL(q || p). "jsd":
                 beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q (arXiv:2306.13649)
    beta         "jsd": between 0 and 1
    temperature  > 0: divides all logits; the loss is multiplied by its square, so that gradients keep
                 their size (Hinton et al., arXiv:1503.02531)
    token_weight [...]  the dimensions before the last, floats or bool, >= 0 and finite. A token of weight 0
                 is left out, whatever its hidden states hold
    chunk        tokens at a time; None: as many as make 32 MiB of logits
    returns      0-D f32 (f64 of f64): the sum of token_weight * divergence over the sum of token_weight, 0
                 where that is 0. Logits are made in the dtype of the hidden states, as the layers make
                 them; all that follows is f32 (f64)
    Gradients    of student_hidden, lm_head and bias, once; the teacher gets none. They are made with the
                 loss, chunk by chunk: backward() only scales them
                 The gradients of a chunk's logits are scaled by a power of 2 before they are rounded to f16,
                 so that a loss scaler is not needed for them; sums are f32 (f64)
    Memory       about 5 chunk * V * 4 bytes ("jsd": 8), and the gradients that are asked for in f32 (f64),
                 that of lm_head twice
    Raises       ValueError naming argument, value and allowed values
    """
    rows = _checked(student_hidden, teacher_hidden, lm_head, teacher_lm_head, bias, teacher_bias)
    rule = _rule(divergence, beta)
    if teacher_bias is not None and teacher_lm_head is None:
        raise ValueError(
            "distill_loss: teacher_bias was given without teacher_lm_head; the teacher's bias is bias"
        )
    if not 0 < temperature < math.inf:
        raise ValueError(f"distill_loss: temperature = {temperature}; must be above 0 and finite")
    if chunk is not None and (not isinstance(chunk, int) or chunk < 1):
        raise ValueError(f"distill_loss: chunk = {chunk!r}; must be an int, at least 1")
    width = 8 if student_hidden.dtype is torch.float64 else 4
    wide = torch.float64 if width == 8 else torch.float32
    kept: Tensor | None = None  # the tokens of weight above 0
    if token_weight is None:
        weight = student_hidden.new_ones(rows, dtype=wide)
    elif token_weight.shape != student_hidden.shape[:-1]:
        raise ValueError(
            f"distill_loss: token_weight must be {list(student_hidden.shape[:-1])}, as student_hidden "
            f"without its last dimension, got {list(token_weight.shape)}"
        )
    else:
        weight = token_weight.detach().reshape(rows).to(wide)
        kept = weight.nonzero().flatten()
        weight = weight[kept]
        if not bool(((weight > 0) & weight.isfinite()).all()):
            bad = weight[~((weight > 0) & weight.isfinite())][0]
            raise ValueError(f"distill_loss: token_weight has {float(bad)}; must be at least 0 and finite")
    teacher, of_teacher = (lm_head, bias) if teacher_lm_head is None else (teacher_lm_head, teacher_bias)
    total = weight.sum()
    options = _Options(
        rule,
        temperature,
        chunk or max(1, CHUNK_BYTES // (width * max(len(lm_head), 1))),
        torch.where(total > 0, weight / total, torch.zeros_like(weight)),
        _rows_of(teacher_hidden.detach(), kept),
        teacher.detach(),
        None if of_teacher is None else of_teacher.detach(),
        tuple(
            torch.is_grad_enabled() and tensor is not None and tensor.requires_grad
            for tensor in (student_hidden, lm_head, bias)
        ),
    )
    loss: Tensor = _Divergence.apply(  # type: ignore[no-untyped-call]
        _rows_of(student_hidden, kept), lm_head, bias, options
    )
    return loss


def _rows_of(hidden: Tensor, kept: Tensor | None) -> Tensor:
    """The tokens [kept, d], or all of them."""
    rows = hidden.reshape(-1, hidden.shape[-1])
    return rows if kept is None else rows[kept]


# log p, log q -> the divergence [tokens], and its gradient by the student's logits [tokens, V]. Both
# arguments may be overwritten.
Rule = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class _Options(NamedTuple):
    rule: Rule
    temperature: float
    chunk: int
    weight: Tensor  # [tokens], sums up to 1
    teacher_hidden: Tensor
    teacher_head: Tensor
    teacher_bias: Tensor | None
    wanted: tuple[bool, ...]  # gradients of hidden, head, bias


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, bias: Tensor | None, options: _Options) -> Tensor:
        wide = options.weight.dtype
        made = [
            torch.zeros_like(tensor, dtype=wide) if wanted and tensor is not None else None
            for tensor, wanted in zip((hidden, head, bias), options.wanted, strict=True)
        ]
        of_hidden, of_head, of_bias = made
        total = options.weight.new_zeros(())
        for begin in range(0, len(hidden), options.chunk):
            rows = slice(begin, begin + options.chunk)
            log_p = _log_probabilities(
                options.teacher_hidden[rows], options.teacher_head, options.teacher_bias, options
            )
            log_q = _log_probabilities(hidden[rows], head, bias, options)
            loss, gradient = options.rule(log_p, log_q)
            del log_p, log_q
            total += (loss * options.weight[rows]).sum()
            if not any(options.wanted):
                continue
            gradient *= (options.weight[rows] * options.temperature)[:, None]
            if of_bias is not None:
                of_bias += gradient.sum(0)
            scale = _scale_for(gradient, hidden.dtype)
            narrow = gradient.mul_(scale).to(hidden.dtype)
            del gradient
            if of_hidden is not None:
                of_hidden[rows] = (narrow @ head).to(wide) / scale
            if of_head is not None:
                of_head += (narrow.T @ hidden[rows]).to(wide).div_(scale)
        ctx.save_for_backward(*made)
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (hidden, head, bias)]
        return total * options.temperature**2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [
            None if saved is None else (saved * gradient).to(dtype)
            for saved, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return (*scaled, None)


def _scale_for(gradient: Tensor, dtype: torch.dtype) -> Tensor:
    """A power of 2 that makes the largest gradient 1/2 to 1 where `dtype` is f16; else 1."""
    one = gradient.new_ones(())
    if dtype is not torch.float16 or not gradient.numel():
        return one
    largest = gradient.abs().amax()
    exponent = torch.frexp(largest).exponent.clamp(-126, 126)
    return torch.where((largest > 0) & largest.isfinite(), torch.ldexp(one, -exponent), one)


def _log_probabilities(hidden: Tensor, head: Tensor, bias: Tensor | None, options: _Options) -> Tensor:
    logits = functional.linear(hidden, head, bias).to(options.weight.dtype)
    return logits.div_(options.temperature).log_softmax(-1)


def _forward_kl(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    p = log_p.exp()
    loss = _expectation(p, log_p.sub_(log_q))
    return loss, log_q.exp_().sub_(p)


def _reverse_kl(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    q = log_q.exp()
    ratio = torch.sub(log_q, log_p, out=log_p)
    loss = _expectation(q, ratio)
    return loss, _through_softmax(q, ratio, loss)


def _jsd(beta: float) -> Rule:
    def rule(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        p, q = log_p.exp(), log_q.exp()
        log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
        of_teacher = _expectation(p, log_p.sub_(log_m))
        ratio = log_q.sub_(log_m)
        of_student = _expectation(q, ratio)
        loss = beta * of_teacher + (1 - beta) * of_student
        return loss, (1 - beta) * _through_softmax(q, ratio, of_student)

    return rule


def _expectation(p: Tensor, values: Tensor) -> Tensor:
    """sum(p * values) of each row; where p is 0 an infinite value counts nothing."""
    return (p * values).masked_fill_(p == 0, 0).sum(-1)


def _through_softmax(q: Tensor, by_q: Tensor, mean: Tensor) -> Tensor:
    """The gradient by logits from the gradient by the probabilities q, whose mean under q is known."""
    return (by_q - mean[:, None]).mul_(q).masked_fill_(q == 0, 0)


def _rule(divergence: str, beta: float) -> Rule:
    rules: dict[str, Rule] = {"forward": _forward_kl, "reverse": _reverse_kl}
    if divergence == "jsd":
        if not 0 < beta < 1:
            raise ValueError(f"distill_loss: beta = {beta}; must be above 0 and below 1")
        return _jsd(beta)
    if divergence not in rules:
        allowed = ", ".join((*rules, "jsd"))
        raise ValueError(f"distill_loss: divergence must be one of {allowed}, got {divergence!r}")
    return rules[divergence]


def _checked(
    hidden: Tensor,
    teacher_hidden: Tensor,
    head: Tensor,
    teacher_head: Tensor | None,
    bias: Tensor | None,
    teacher_bias: Tensor | None,
) -> int:
    """The number of tokens."""
    for name, tensor in (("student_hidden", hidden), ("teacher_hidden", teacher_hidden)):
        if tensor.dim() < 1 or tensor.dtype not in FLOATS:
            raise ValueError(
                f"distill_loss: {name} must be [..., d] f64, f32, f16 or bf16, got {tensor.dtype} "
                f"{list(tensor.shape)}"
            )
    if hidden.shape[:-1] != teacher_hidden.shape[:-1]:
        raise ValueError(
            f"distill_loss: teacher_hidden must have the leading dimensions {list(hidden.shape[:-1])} of "
            f"student_hidden, got {list(teacher_hidden.shape)}"
        )
    vocabulary = head.shape[0] if head.dim() == 2 else -1
    weights = (
        ("lm_head", head, hidden, (vocabulary, hidden.shape[-1])),
        ("teacher_lm_head", head if teacher_head is None else teacher_head, teacher_hidden,
         (vocabulary, teacher_hidden.shape[-1])),
        ("bias", bias, hidden, (vocabulary,)),
        ("teacher_bias", teacher_bias, teacher_hidden, (vocabulary,)),
    )  # fmt: skip
    for name, given, like, shape in weights:
        if given is None:
            continue
        if given.shape != shape or given.dtype is not like.dtype or given.device != like.device:
            raise ValueError(
                f"distill_loss: {name} must be {like.dtype} {list(shape)} on {like.device}, got "
                f"{given.dtype} {list(given.shape)} on {given.device}"
            )
    return hidden.shape[:-1].numel()
