"""What lamina.compress did, layer by layer."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class CompressionRow:
    """One nn.Linear: weight [n, k], and why it was left if it was. Bytes are of weight, scales and bias."""

    name: str
    n: int
    k: int
    action: Literal["compress", "skip"]
    reason: str
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True)
class CompressionReport:
    """Result of lamina.compress; print it, or give it to rich."""

    scheme: str
    dry_run: bool
    rows: tuple[CompressionRow, ...]
    model_bytes_before: int  # parameters and buffers of the whole model, shared ones once

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
        """Bytes of all rows before."""
        return sum(row.bytes_before for row in self.rows)

    @property
    def bytes_after(self) -> int:
        """Bytes of all rows after."""
        return sum(row.bytes_after for row in self.rows)

    @property
    def model_bytes_after(self) -> int:
        """Bytes of the whole model after."""
        return self.model_bytes_before - self.bytes_before + self.bytes_after

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        totals = ("bytes_before", "bytes_after", "model_bytes_before", "model_bytes_after")
        return {
            "scheme": self.scheme,
            "dry_run": self.dry_run,
            "rows": [asdict(row) for row in self.rows],
            **{name: getattr(self, name) for name in totals},
        }

    def summary(self) -> str:
        """One line."""
        if not self.rows:
            return f"{self.scheme}: the model has no nn.Linear layers"
        verb = "would compress" if self.dry_run else "compressed"
        return (
            f"{self.scheme}: {verb} {len(self.compressed)} of {len(self.rows)} linear layers; "
            f"layers {_sizes(self.bytes_before, self.bytes_after)}, "
            f"model {_sizes(self.model_bytes_before, self.model_bytes_after)}"
        )

    def __str__(self) -> str:
        lines = self._lines()
        widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADER))] if lines else []
        text = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        ]
        return "\n".join([*text, self.summary()])

    def __rich__(self) -> Table:
        from rich.table import Table

        table = Table(caption=self.summary(), caption_justify="left")
        numbers = ("count", "n", "k", "before", "after")
        for name in _HEADER:
            table.add_column(name, justify="right" if name in numbers else "left", overflow="fold")
        for line in self._lines()[1:]:
            table.add_row(*line, style="dim" if line[4] == "skip" else None)
        return table

    def _lines(self) -> list[tuple[str, ...]]:
        """Header and one line per kind of layer: `layer.0.mlp` and `layer.1.mlp` are two of `layer.*.mlp`."""
        groups: dict[tuple[str, ...], list[CompressionRow]] = {}
        for row in self.rows:
            name = re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", row.name)
            reason = re.sub(r"\.\d+(?=\.)", ".*", row.reason)
            groups.setdefault((name, str(row.n), str(row.k), row.action, reason), []).append(row)
        lines: list[tuple[str, ...]] = [_HEADER] if groups else []
        for (name, n, k, action, reason), rows in groups.items():
            shown = name if len(rows) > 1 else rows[0].name
            before, after = (sum(getattr(r, at) for r in rows) for at in ("bytes_before", "bytes_after"))
            lines.append((shown, str(len(rows)), n, k, action, size_text(before), size_text(after), reason))
        return lines


_HEADER = ("layer", "count", "n", "k", "action", "before", "after", "reason")


def size_text(count: int) -> str:
    """Bytes for people, in decimal units."""
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.2f} kB"


def _sizes(before: int, after: int) -> str:
    ratio = f" ({before / after:.2f}x)" if after else ""
    return f"{size_text(before)} -> {size_text(after)}{ratio}"
