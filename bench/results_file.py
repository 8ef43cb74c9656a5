"""Reading result files: what report.py and plot.py share."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]
ROW_KEYS = (
    *("op", "impl", "device", "case", "median_us", "iqr_us"),
    *("gb_per_s", "ops_per_s", "roofline_fraction", "error_over_bound"),
)
SHAPE_KEYS = ("m", "n", "k", "dtype", "group")


@dataclass(frozen=True)
class Result:
    path: Path
    machine: dict[str, Any]
    rows: list[Row]

    def conditions(self) -> str:
        """One line: the machine and how it was measured."""
        level = (self.machine.get("isa_mask") or {}).get("level")
        weights = (
            "hot" if self.machine["hot"] else f"{self.machine['rotation_target_bytes'] >> 20} MiB rotating"
        )
        versions = self.machine["versions"]
        parts = [
            self.machine["cpu"],
            f"{self.machine['threads']} threads",
            f"instruction sets above {level} hidden" if level else "",
            weights,
            f"torch {versions['torch']}",
            f"onnxruntime {versions['onnxruntime']}" if versions.get("onnxruntime") else "",
            self.machine["date"][:10],
        ]
        return ", ".join(part for part in parts if part)

    def read_gb_per_s(self) -> float:
        return max(float(read["gb_per_s"]) for read in self.machine["ceilings"]["read"])


def load(path: Path) -> Result:
    content = json.loads(path.read_text())
    rows = content["rows"]
    for row in rows:
        missing = [key for key in ROW_KEYS if key not in row]
        if missing:
            raise ValueError(f"{path}: a row lacks {', '.join(missing)}")
    return Result(path, content["machine"], rows)


def shape(row: Row) -> tuple[tuple[str, Any], ...]:
    """What rows of one table share."""
    return tuple((key, row["case"][key]) for key in SHAPE_KEYS if key in row["case"])


def label(row: Row) -> str:
    isa = row["case"].get("isa")
    return f"{row['impl']} ({isa})" if isa else str(row["impl"])


def unique(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))
