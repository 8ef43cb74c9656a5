"""The rows of result files, made and read: what run.py, gpu_check.py, report.py and plot.py share."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.cases import Accuracy, AnyCase, finite
from bench.roofline import Ceilings, Work, floor_seconds
from bench.timing import Timing

Row = dict[str, Any]
Identity = tuple[tuple[str, Any], ...]  # of a measurement: the names of its facts, and their values
ROW_KEYS = (
    *("op", "impl", "device", "case", "median_us", "iqr_us"),
    *("gb_per_s", "ops_per_s", "roofline_fraction", "error_over_bound"),
)
# `protocol` is in rows of a GPU: do_bench or graph (bench/gpu/timing.py). Rows of a CPU have one protocol.
SHAPE_KEYS = ("m", "n", "k", "dtype", "group", "protocol")
ATTENTION_KEYS = (
    *("scenario", "tree", "tokens", "batch", "context", "heads", "head_dim"),
    *("kv_dtype", "page", "layout"),
)


@dataclass(frozen=True)
class Measured:
    """One row before the ceilings are final. No timing: a wrong result has no speed, or `facts` say why."""

    case: AnyCase
    impl: str
    isa: str | None
    work: Work | None
    accuracy: Accuracy | None  # None: there was no result
    timing: Timing | None
    facts: Mapping[str, object]  # of the row's case, beside the shape; None is left out

    @property
    def run_bytes(self) -> int:
        return self.work.run_bytes if self.work else 0

    @property
    def is_wrong(self) -> bool:
        """lamina's result is outside its bound; peers may compute what they like."""
        return self.impl == "lamina" and self.accuracy is not None and not self.accuracy.over_bound <= 1

    def to_json(self, ceilings: Ceilings, read_bytes_per_s: float) -> Row:
        work, timing, accuracy = self.work, self.timing, self.accuracy
        facts = {
            **self.facts,
            "isa": self.isa,
            "bytes": work.bytes if work else None,
            "ops": work.ops if work else None,
            "issue": dict(work.issue) if work and work.issue else None,
            "max_error": finite(accuracy.max_error) if accuracy else None,
            "calls_per_sample": timing.calls if timing else None,
            "samples": timing.samples if timing else None,
        }
        known = {name: fact for name, fact in facts.items() if fact is not None}
        row: Row = {"op": self.case.op, "impl": self.impl, "device": self.case.device}
        row["case"] = {**self.case.to_json(), **known}
        row.update(median_us=None, iqr_us=None, gb_per_s=None, ops_per_s=None, roofline_fraction=None)
        if timing and work:
            seconds = timing.median_us * 1e-6
            isa = work.isa or self.isa
            floor = floor_seconds(work, read_bytes_per_s, ceilings.peak(work.arithmetic, isa))
            floor = max(floor, work.issue_seconds(ceilings, isa))
            row.update(
                median_us=timing.median_us,
                iqr_us=timing.iqr_us,
                gb_per_s=work.bytes / seconds / 1e9,
                ops_per_s=work.ops / seconds,
                roofline_fraction=floor / seconds,
            )
        row["error_over_bound"] = finite(accuracy.over_bound) if accuracy else None
        return row


@dataclass(frozen=True)
class Result:
    path: Path
    machine: dict[str, Any]
    rows: list[Row]

    def conditions(self) -> str:
        """One line: the machine and how it was measured."""
        gpu = self.machine.get("gpu")
        level = (self.machine.get("isa_mask") or {}).get("level")
        weights = (
            "hot" if self.machine["hot"] else f"{self.machine['rotation_target_bytes'] >> 20} MiB rotating"
        )
        versions = self.machine["versions"]
        where = [self.machine["cpu"], f"{self.machine['threads']} threads"]
        if gpu:
            limit = gpu.get("power_limit_w")
            where = [gpu["name"], f"driver {gpu.get('driver')}", f"limit {limit:.0f} W" if limit else ""]
        parts = [
            *where,
            f"instruction sets above {level} hidden" if level else "",
            weights,
            f"torch {versions['torch']}",
            f"onnxruntime {versions['onnxruntime']}" if versions.get("onnxruntime") and not gpu else "",
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


def save(path: Path, content: Mapping[str, object]) -> None:
    """In one step: a run that is stopped leaves the file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    fresh.replace(path)


def shape(row: Row) -> tuple[tuple[str, Any], ...]:
    """The part of a case that the rows of one table share."""
    return tuple((key, row["case"][key]) for key in (*SHAPE_KEYS, *ATTENTION_KEYS) if key in row["case"])


def shape_but_m(row: Row) -> tuple[tuple[str, Any], ...]:
    return tuple((key, value) for key, value in shape(row) if key != "m")


def identity(row: Row, but: str = "") -> Identity:
    """The facts that two measurements of the same thing share, but one of them."""
    case = row["case"]
    facts = {"op": row["op"], "impl": row["impl"], "device": row["device"], **dict(shape(row))}
    facts.update({key: case[key] for key in ("values", "weight_dtype", "isa", "way") if case.get(key)})
    return tuple((key, value) for key, value in facts.items() if key != but)


def describe(facts: Identity) -> str:
    """The op, and what else an identity says beside impl and device, on one line."""
    named = dict(facts)
    shown = [f"{key}={value}" for key, value in facts if key not in ("op", "impl", "device")]
    return " ".join([named["op"], *shown])


def is_wrong(row: Row) -> bool:
    """A lamina row whose error is above its bound."""
    error = row["error_over_bound"]
    return row["impl"] == "lamina" and error is not None and not error <= 1


def label(row: Row) -> str:
    isa = row["case"].get("isa")
    return f"{row['impl']} ({isa})" if isa else str(row["impl"])


def unique(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))
