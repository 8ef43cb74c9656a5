"""The report of lamina.compress: one row per layer, and the tensors that stay float."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from lamina.compression.candidates import Candidate
from lamina.compression.memory import ByteSet
from lamina.compression.schemes import Int4Scheme, Scheme
from lamina.nn.packed_linear import PackedLinear

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class CompressionRow:
    """One linear layer with weight [n, k] and the bytes of its tensors; shared bytes count in one row only.

    reason   why the layer was left; for a packed layer notes, such as the layer with which it shares its
             weight, and attributes that were copied to the packed layer
    """

    name: str
    n: int
    k: int
    action: Literal["compress", "skip"]
    reason: str
    bytes_before: int
    bytes_after: int
    scheme: str = ""  # of a packed layer


@dataclass(frozen=True)
class KeptTensor:
    """A floating-point parameter or buffer of a module that is no linear layer; compress leaves it."""

    name: str
    module: str  # class of the module that holds the tensor
    dtype: str
    shape: tuple[int, ...]
    bytes: int  # without those that rows or earlier kept tensors count


@dataclass(frozen=True)
class CompressionReport:
    """Result of lamina.compress; print it, or give it to rich."""

    scheme: str
    dry_run: bool
    rows: tuple[CompressionRow, ...]
    model_bytes_before: int  # parameters and buffers of the whole model; shared bytes count once
    kept: tuple[KeptTensor, ...] = ()  # also the small ones, which the printed report leaves out
    advice: tuple[str, ...] = ()  # sentences on what to change

    @property
    def compressed(self) -> tuple[CompressionRow, ...]:
        """The layers that were packed."""
        return tuple(row for row in self.rows if row.action == "compress")

    @property
    def skipped(self) -> tuple[CompressionRow, ...]:
        """The layers that were left."""
        return tuple(row for row in self.rows if row.action == "skip")

    @property
    def bytes_before(self) -> int:
        """Bytes of all rows before compression."""
        return sum(row.bytes_before for row in self.rows)

    @property
    def bytes_after(self) -> int:
        """Bytes of all rows after compression."""
        return sum(row.bytes_after for row in self.rows)

    @property
    def model_bytes_after(self) -> int:
        """Bytes of the whole model after compression."""
        return self.model_bytes_before - self.bytes_before + self.bytes_after

    def as_dict(self) -> dict[str, Any]:
        """The report as a dict for JSON."""
        totals = ("bytes_before", "bytes_after", "model_bytes_before", "model_bytes_after")
        return {
            "scheme": self.scheme,
            "dry_run": self.dry_run,
            "rows": [asdict(row) for row in self.rows],
            "kept": [asdict(tensor) for tensor in self.kept],
            "advice": list(self.advice),
            **{name: getattr(self, name) for name in totals},
        }

    def summary(self) -> str:
        """The report in one line; the ratio is that of the whole model."""
        if not self.rows:
            return f"{self.scheme}: the model, {size_text(self.model_bytes_before)}, has no linear layers"
        verb = "would compress" if self.dry_run else "compressed"
        before, after = self.model_bytes_before, self.model_bytes_after
        ratio = f" ({before / after:.2f}x)" if after else ""
        return (
            f"{self.scheme}: model {size_text(before)} -> {size_text(after)}{ratio}; {verb} "
            f"{len(self.compressed)} of {len(self.rows)} linear layers, "
            f"{size_text(self.bytes_before)} -> {size_text(self.bytes_after)}"
        )

    def __str__(self) -> str:
        lines = self._lines()
        widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADER))] if lines else []
        text = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        ]
        return "\n".join([*text, self.summary(), *self.advice])

    def __rich__(self) -> Table:
        from rich.table import Table

        table = Table(caption="\n".join([self.summary(), *self.advice]), caption_justify="left")
        numbers = ("count", "n", "k", "before", "after")
        for name in _HEADER:
            table.add_column(name, justify="right" if name in numbers else "left", overflow="fold")
        for line in self._lines()[1:]:
            table.add_row(*line, style=None if line[4].startswith("compress") else "dim")
        return table

    def _lines(self) -> list[tuple[str, ...]]:
        """The header, one line per kind of layer, and one line per kind of large tensor that stays float.

        Names that differ only in their numbers are one kind: `layer.*.mlp` covers `layer.0.mlp` and the like.
        """
        layers: dict[tuple[str, ...], list[CompressionRow]] = {}
        is_mixed = len({row.scheme for row in self.compressed}) > 1
        for row in self.rows:
            reason = re.sub(r"\.\d+(?=\.)", ".*", row.reason)
            action = f"{row.action} {row.scheme}".rstrip() if is_mixed else row.action
            key = (_kind(row.name), str(row.n), str(row.k), action, reason)
            layers.setdefault(key, []).append(row)
        lines: list[tuple[str, ...]] = []
        for (name, n, k, action, reason), rows in layers.items():
            shown = name if len(rows) > 1 else rows[0].name
            before, after = (sum(getattr(r, at) for r in rows) for at in ("bytes_before", "bytes_after"))
            lines.append((shown, str(len(rows)), n, k, action, size_text(before), size_text(after), reason))
        lines += self._kept_lines()
        return [_HEADER, *lines] if lines else []

    def _kept_lines(self) -> list[tuple[str, ...]]:
        kinds: dict[tuple[str, ...], list[KeptTensor]] = {}
        for tensor in self.kept:
            what = f"{tensor.dtype} {list(tensor.shape)} of {tensor.module}, which is no linear layer"
            kinds.setdefault((_kind(tensor.name), what), []).append(tensor)
        lines: list[tuple[str, ...]] = []
        for (name, what), tensors in kinds.items():
            count = sum(tensor.bytes for tensor in tensors)
            if count >= LARGE * self.model_bytes_after:
                shown, size = name if len(tensors) > 1 else tensors[0].name, size_text(count)
                lines.append((shown, str(len(tensors)), "", "", "keep", size, size, what))
        return lines


# A model with fewer weights than this gets an advice; the limit is a judgement, not a measurement.
SMALL, ADVISED_GROUP = 1_000_000_000, 32
# Tensors that stay float are printed if they have at least this share of the model's bytes.
LARGE = 0.01
_HEADER = ("layer", "count", "n", "k", "action", "before", "after", "reason")


def size_text(count: int) -> str:
    """A number of bytes as text, in decimal units."""
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.2f} kB"


def _kind(name: str) -> str:
    """The name with a star in place of each number."""
    return re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", name)


def make_report(
    model: nn.Module,
    candidates: list[Candidate],
    scheme: str,
    *,
    schemes: Mapping[str, Scheme],
    reasons: Mapping[str, str],
    notes: Mapping[str, str],
    is_calibrated: bool,
    dry_run: bool,
) -> CompressionReport:
    """The report for a plan that leaves the candidates with a reason and packs the others.

    scheme   the text for the head of the report
    schemes  of each layer
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
            after = _packed_bytes(candidate, schemes[name], candidate.bias_owner in biases)
            own = schemes[name].name
            rows.append(CompressionRow(*extents, "compress", notes.get(name, ""), before[name], after, own))
            biases.add(candidate.bias_owner)
    total = ByteSet([*model.parameters(), *model.buffers()]).total
    packed = [candidate for candidate in candidates if candidate.name not in reasons]
    advice = () if is_calibrated else _advice(packed, schemes)
    return CompressionReport(scheme, dry_run, tuple(rows), total, kept, advice)


def _advice(packed: list[Candidate], schemes: Mapping[str, Scheme]) -> tuple[str, ...]:
    """Smaller groups, for a small model whose int4 weights are rounded to nearest."""
    weights = sum(candidate.linear.weight.numel() for candidate in packed)
    groups = {
        one.group
        for one in (schemes[candidate.name] for candidate in packed)
        if isinstance(one, Int4Scheme) and not 0 < one.group <= ADVISED_GROUP
    }
    if not groups or weights >= SMALL:
        return ()
    text = " and ".join("all of k" if group == -1 else str(group) for group in sorted(groups))
    return (
        f"advice: int4 groups of {text} cost a model with {weights:,} weights in these layers much of its "
        f"quality; group={ADVISED_GROUP} costs less, and calibration= less still",
    )


def _packed_bytes(candidate: Candidate, scheme: Scheme, has_bias_already: bool) -> int:
    """The bytes of the packed layer, without those that it shares with earlier packed layers."""
    layer = scheme.blank(candidate.linear)
    shared = set(layer.weight_buffers) if candidate.weight_owner != candidate.name else set()
    if has_bias_already:
        shared.add("bias")
    return sum(buffer.nbytes for name, buffer in layer.named_buffers() if name not in shared)


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
