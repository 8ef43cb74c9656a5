"""The rows of the report, made from the plan: bytes before and after, each byte counted once."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from lamina.compression.candidates import Candidate
from lamina.compression.memory import ByteSet
from lamina.compression.report import CompressionReport, CompressionRow, KeptTensor
from lamina.compression.schemes import Scheme
from lamina.nn.packed_linear import PackedLinear


def make_report(
    model: nn.Module,
    candidates: list[Candidate],
    scheme: Scheme,
    *,
    reasons: Mapping[str, str],
    notes: Mapping[str, str],
    dry_run: bool,
) -> CompressionReport:
    """The report for a plan that leaves the candidates with a reason and packs the others.

    Call it while all float tensors are alive, because addresses of freed tensors are reused. Packing a layer
    does not free bytes that a layer left float or another module also holds: its row does not count them.
    """
    counted = ByteSet()
    before: dict[str, int] = {}
    for candidate in candidates:
        if candidate.name in reasons:
            before[candidate.name] = sum(map(counted.add, candidate.tensors))
    kept = _kept_tensors(model, candidates, counted)
    for candidate in candidates:
        if candidate.name not in reasons:
            before[candidate.name] = sum(map(counted.add, candidate.tensors))
    rows: list[CompressionRow] = []
    biases: set[str] = set()
    for candidate in candidates:
        name, linear = candidate.name, candidate.linear
        extents = (name, linear.out_features, linear.in_features)
        if name in reasons:
            rows.append(CompressionRow(*extents, "skip", reasons[name], before[name], before[name]))
        else:
            after = _packed_bytes(candidate, scheme, candidate.bias_owner in biases)
            rows.append(CompressionRow(*extents, "compress", notes.get(name, ""), before[name], after))
            biases.add(candidate.bias_owner)
    total = ByteSet([*model.parameters(), *model.buffers()]).total
    return CompressionReport(scheme.name, dry_run, tuple(rows), total, kept)


def _packed_bytes(candidate: Candidate, scheme: Scheme, has_bias_already: bool) -> int:
    """The bytes of the packed layer, without those that it shares with earlier packed layers."""
    shared = set(scheme.weight_buffers) if candidate.weight_owner != candidate.name else set()
    if has_bias_already:
        shared.add("bias")
    buffers = scheme.blank(candidate.linear).named_buffers()
    return sum(buffer.nbytes for name, buffer in buffers if name not in shared)


def _kept_tensors(model: nn.Module, candidates: list[Candidate], counted: ByteSet) -> tuple[KeptTensor, ...]:
    """The floating-point tensors of modules that are neither candidates nor packed layers."""
    seen = {module for candidate in candidates for module in candidate.module.modules()}
    kept: list[KeptTensor] = []
    for name, module in model.named_modules():
        if module in seen or isinstance(module, PackedLinear):
            continue
        for at, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is None:
                continue
            count = counted.add(tensor)
            if tensor.is_floating_point() and count:
                full, dtype = f"{name}.{at}" if name else at, str(tensor.dtype).removeprefix("torch.")
                kept.append(KeptTensor(full, type(module).__name__, dtype, tuple(tensor.shape), count))
    return tuple(kept)
