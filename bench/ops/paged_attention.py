"""paged_attention beside torch, onnxruntime and vLLM: decode, verification, prefill and mixed batches.

The caches rotate through copies, as weights of products do. lamina's is a lamina.kv.PagedCache, which asks
for huge pages and whose pages are in random order; peers read ordinary tensors, as a user allocates them.
Results are compared with float64 before they are timed (bench/attention/exact.py). Floors are counted from
the instructions of the kernels (bench/attention/floor.py).
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.attention.cases import AttentionCase, Options, make_cases
from bench.attention.exact import Exact, make_exact
from bench.attention.floor import kernel_of, work_of
from bench.attention.inputs import DTYPES, Inputs, make_inputs, paged, tree_words
from bench.attention.peers import PEERS
from bench.cases import Candidate, Context, check_device_and_dtype
from bench.peers import PeerUnavailable


def _lamina(inputs: Inputs, exact: Exact, context: Context, isa: str) -> Candidate:
    case = inputs.case
    ring = context.rotation.ring(("lamina",), paged(inputs).nbytes, lambda: paged(inputs))
    tree: dict[str, Tensor] = {}
    if inputs.tree is not None:
        count = len(inputs.requests)
        tree = {
            "tree_mask": tree_words(inputs.tree).repeat(count, 1),
            "tree_len": torch.full((count,), case.tokens, dtype=torch.int32),
        }

    def call() -> Tensor:
        held = next(ring)
        out = held.cache.attend(0, inputs.q, held.batch, **tree)
        assert isinstance(out, Tensor)
        return out

    def select() -> None:
        torch.ops.lamina.set_cpu_isa(isa)

    select()
    kernel = kernel_of(isa, torch.ops.lamina.cpu_isas().split(","))
    dot = kernel.dot(case)
    return Candidate(
        "lamina",
        f"{case.kv_dtype} cache, products in {dot}",
        call,
        lambda: exact.accuracy(call(), dot, DTYPES[case.dtype]),
        work_of(case, kernel),
        ring,
        isa,
        select,
    )


class AttentionBench:
    name = "paged_attention"
    devices = ("cpu",)
    dtypes = ("f32", "bf16", "f16")

    def peers_on(self, device: str) -> tuple[str, ...]:
        return tuple(PEERS)

    def cases(self, device: str, dtype: str | None, given: Options) -> list[AttentionCase]:
        check_device_and_dtype(self, device, dtype)
        return make_cases(self.name, device, dtype or self.dtypes[0], given)

    def candidates(self, case: AttentionCase, context: Context) -> list[Candidate]:
        context.rotation.clear()  # the caches of the case before
        inputs = make_inputs(case)
        exact = make_exact(inputs)
        found = [_lamina(inputs, exact, context, isa) for isa in context.isas]
        for impl, build in PEERS.items():
            if not context.wants(impl):
                continue
            try:
                found.append(build(inputs, exact, context))
            except PeerUnavailable as error:
                context.skipped[impl] = str(error)
        return found


BENCH = AttentionBench()
