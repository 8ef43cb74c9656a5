"""paged_attention beside torch, onnxruntime and vLLM: decode, verification, prefill and mixed batches.

The caches rotate through copies, as weights of products do, and pages are in random order. They are ordinary
tensors, as a user allocates them: nobody asks the system for huge pages, which pack_int8 does for weights.
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
    import lamina

    case, requests = inputs.case, inputs.requests
    one = paged(inputs)
    nbytes = sum(t.nbytes for t in (one.k, one.v, one.k_scale, one.v_scale) if t is not None)
    ring = context.rotation.ring(("lamina",), nbytes, lambda: paged(inputs))
    seq_lens = torch.tensor([request.seq_len for request in requests], dtype=torch.int32)
    starts = torch.tensor(inputs.starts(), dtype=torch.int32)
    longest = max(request.q_len for request in requests)
    mask = nodes = None
    if inputs.tree is not None:
        mask = tree_words(inputs.tree).repeat(len(requests), 1)
        nodes = torch.full_like(seq_lens, case.tokens)

    def call() -> Tensor:
        cache = next(ring)
        out = lamina.paged_attention(
            inputs.q, cache.k, cache.v, cache.block_table, seq_lens, starts, max_seqlen_q=longest,
            tree_mask=mask, tree_len=nodes, k_scale=cache.k_scale, v_scale=cache.v_scale,
        )  # fmt: skip
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
