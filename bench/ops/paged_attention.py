"""paged_attention beside its peers: decode, verification, prefill and mixed batches.

On a CPU the peers are torch, onnxruntime and vLLM, on a GPU torch's SDPA and varlen_attn, FlashInfer and
FlashAttention-3. The caches rotate through copies, as weights of products do. lamina's is a
lamina.kv.PagedCache, which asks for huge pages on a CPU and whose pages are in random order; peers read
ordinary tensors, as a user allocates them. Results are compared with float64 before they are timed
(bench/attention/exact.py). Floors are counted from the instructions of the CPU kernels, and on a GPU from
bytes and products alone (bench/attention/floor.py).
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.attention.cases import AttentionCase, Options, make_cases
from bench.attention.exact import Arithmetic, Exact, make_exact
from bench.attention.floor import gpu_work, kernel_of, work_of
from bench.attention.gpu_peers import GPU_PEERS
from bench.attention.inputs import DTYPES, Inputs, make_inputs, paged, tree_words
from bench.attention.peers import PEERS
from bench.cases import Accuracy, BenchError, Candidate, Context, check_device_and_dtype
from bench.peers import PeerUnavailable
from bench.roofline import Work


def _call(inputs: Inputs, context: Context) -> Candidate:
    """lamina's call, not yet checked: the arithmetic and the work depend on the device."""
    case = inputs.case
    ring = context.rotation.ring(("lamina",), paged(inputs).nbytes, lambda: paged(inputs))
    tree: dict[str, Tensor] = {}
    if inputs.tree is not None:
        count = len(inputs.requests)
        tree = {
            "tree_mask": tree_words(inputs.tree).repeat(count, 1).to(case.device),
            "tree_len": torch.full((count,), case.tokens, dtype=torch.int32, device=case.device),
        }

    def call() -> Tensor:
        held = next(ring)
        out = held.cache.attend(0, inputs.q, held.batch, **tree)
        assert isinstance(out, Tensor)
        return out

    return Candidate("lamina", "", call, lambda: Accuracy(0, 0), Work(0, 0, "none"), ring)


def _checked(found: Candidate, inputs: Inputs, exact: Exact, dot: Arithmetic) -> Candidate:
    case = inputs.case

    def check_output(out: object) -> Accuracy:
        assert isinstance(out, Tensor)
        return exact.accuracy(out, dot, DTYPES[case.dtype])

    found.computes = f"{case.kv_dtype} cache, products in {dot}"
    found.check_output = check_output
    found.check = lambda: check_output(found.call())
    return found


def _lamina(inputs: Inputs, exact: Exact, context: Context, isa: str) -> Candidate:
    case, found = inputs.case, _call(inputs, context)
    found.isa = isa
    found.select = lambda: torch.ops.lamina.set_cpu_isa(isa)
    found.select()
    kernel = kernel_of(isa, torch.ops.lamina.cpu_isas().split(","))
    found.work = work_of(case, kernel)
    return _checked(found, inputs, exact, kernel.dot(case))


def _lamina_on_gpu(inputs: Inputs, exact: Exact, context: Context) -> Candidate:
    case, found = inputs.case, _call(inputs, context)
    found.work = gpu_work(case)
    return _checked(found, inputs, exact, "tensor_f16" if case.kv_dtype == "f16" else "tensor_bf16")


class AttentionBench:
    name = "paged_attention"
    devices = ("cpu", "cuda")
    dtypes = ("f32", "bf16", "f16")

    def peers_on(self, device: str) -> tuple[str, ...]:
        return tuple(PEERS if device == "cpu" else GPU_PEERS)

    def cases(self, device: str, dtype: str | None, given: Options) -> list[AttentionCase]:
        check_device_and_dtype(self, device, dtype)
        if device == "cuda" and dtype == "f32":
            raise BenchError("--dtype f32: paged_attention on cuda allows bf16, f16")
        return make_cases(self.name, device, dtype or ("bf16" if device == "cuda" else "f32"), given)

    def candidates(self, case: AttentionCase, context: Context) -> list[Candidate]:
        """A context without instruction sets is that of a GPU, or of its rehearsal."""
        context.rotation.clear()  # the caches of the case before
        inputs = make_inputs(case)
        exact = make_exact(inputs)
        if context.isas:
            found = [_lamina(inputs, exact, context, isa) for isa in context.isas]
        else:
            found = [_lamina_on_gpu(inputs, exact, context)]
        for impl, build in (PEERS if context.isas else GPU_PEERS).items():
            if not context.wants(impl):
                continue
            try:
                found.append(build(inputs, exact, context))
            except PeerUnavailable as error:
                context.skipped[impl] = str(error)
        return found


BENCH = AttentionBench()
