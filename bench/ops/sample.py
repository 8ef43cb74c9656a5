"""sample_tokens: m rows of n logits, top_k = k and top_p = 0.9, beside torch ops in sequence.

With k >= n there is a temperature alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from bench.cases import Accuracy, Candidate, Case, Context, Ring
from bench.roofline import Work

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
TEMPERATURE, TOP_P = 0.8, 0.9


def _eager(logits: Tensor, k: int) -> Tensor:
    """As generate() of transformers samples, with a sort of the k candidates alone."""
    scaled = logits.float() / TEMPERATURE
    if k >= logits.shape[1]:
        return torch.multinomial(scaled.softmax(-1), 1)[:, 0]
    values, ids = scaled.topk(k)
    p = values.softmax(-1)
    p = p.masked_fill(p.cumsum(-1) - p >= TOP_P, 0.0)
    return ids.gather(1, torch.multinomial(p, 1))[:, 0]


def _candidate(
    impl: str, case: Case, logits: Tensor, context: Context, isa: str | None, computes: str
) -> Candidate:
    """`isa` None: a peer, or lamina on a GPU."""
    import lamina

    key = ("logits", case.m, case.n, case.dtype)
    ring: Ring[Tensor] = context.rotation.ring(key, logits.nbytes, logits.clone)
    seed = torch.arange(case.m, device=case.device)
    given = {"temperature": torch.full((1,), TEMPERATURE, device=case.device)}
    if case.k < case.n:
        given["top_k"] = torch.tensor([case.k], dtype=torch.int32, device=case.device)
        given["top_p"] = torch.full((1,), TOP_P, device=case.device)

    def call() -> Tensor:
        if impl != "lamina":
            return _eager(next(ring), case.k)
        return lamina.sample_tokens(next(ring), **given, seed=seed, offset=seed).tokens

    def check_output(out: object) -> Accuracy:
        """Infinite if a token is not one of the k largest."""
        assert isinstance(out, Tensor)
        least = logits.float().topk(min(case.k, case.n)).values[:, -1]
        is_right = bool((logits.float().gather(1, out.long()[:, None])[:, 0] >= least).all())
        return Accuracy(0.0, 0.0) if is_right else Accuracy(math.inf, math.inf)

    work = Work(logits.nbytes + 8 * case.m, case.m * case.n, "none")
    found = Candidate(impl, computes, call, lambda: check_output(call()), work, ring, isa)
    found.check_output = check_output
    return found


class SampleBench:
    name = "sample"
    devices = ("cpu", "cuda")
    dtypes = tuple(DTYPES)
    groups: tuple[int, ...] = ()

    def peers_on(self, device: str) -> tuple[str, ...]:
        return ("torch_eager",)

    def candidates(self, case: Case, context: Context) -> list[Candidate]:
        g, found = torch.Generator().manual_seed(case.m * 1_000_003 + case.n), []
        logits = (torch.randn(case.m, case.n, generator=g) * 3).to(DTYPES[case.dtype]).to(case.device)
        isas: Sequence[str | None] = context.isas if case.device == "cpu" else (None,)
        for isa in isas:
            ours = _candidate("lamina", case, logits, context, isa, "draws with all parameters")
            found.append(ours)
            if isa is None:
                continue
            ours.select = partial(torch.ops.lamina.set_cpu_isa, isa)
            ours.select()
            ours.plan = torch.ops.lamina.explain_sample(case.m, case.n)
        if context.wants("torch_eager"):
            found.append(_candidate("torch_eager", case, logits, context, None, "topk, softmax, multinomial"))
        return found


BENCH = SampleBench()
