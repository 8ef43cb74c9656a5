"""The figures of the documents: `python bench/figures.py` writes docs/figures from committed results."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file: make `bench` importable, from the checkout
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench.plot import plot_times
from bench.results_file import load
from bench.study import plots, results

ROOT = Path(__file__).resolve().parent.parent
RESULTS = "bench/results"
PANELS = {  # by op: the scheme, and the peer with the same formats of weights and activations
    "gemm_int8": ("W8A8", "onnxruntime"),
    "gemm_int4_int8": ("W4A8, group 128", "onnxruntime_level4"),
    "gemm_int4": ("W4A16, group 128", "onnxruntime_level0"),
}
LINES = {  # by machine and instruction set: the file of each op
    "Xeon, AMX": {
        "gemm_int8": "xeon-amx-2core/gemm_int8_amx.json",
        "gemm_int4_int8": "xeon-amx-2core/gemm_int4_int8_amx_g128.json",
        "gemm_int4": "xeon-amx-2core/gemm_int4_amx_g128.json",
    },
    "Xeon held to AVX-512 VNNI": {"gemm_int8": "xeon-amx-2core/gemm_int8_avx512_vnni.json"},
    "Zen 4, AVX-512 VNNI": {
        "gemm_int4_int8": "epyc-zen4-2core/gemm_int4_int8_avx512_g128.json",
        "gemm_int4": "epyc-zen4-2core/gemm_int4_avx512_g128.json",
    },
    "Xeon held to AVX2": {
        "gemm_int8": "xeon-amx-2core/gemm_int8_avx2.json",
        "gemm_int4_int8": "xeon-amx-2core/gemm_int4_int8_avx2_g128.json",
        "gemm_int4": "xeon-amx-2core/gemm_int4_avx2_g128.json",
    },
}


def speedups(file: str, op: str, peer: str) -> dict[int, float]:
    """The peer's time over lamina's, by m."""
    rows = [row for row in load(ROOT / RESULTS / file).rows if row["op"] == op]
    times = {(row["impl"], row["case"]["m"]): row["median_us"] for row in rows}
    return {m: times[peer, m] / us for (impl, m), us in times.items() if impl == "lamina"}


def draw_speedups(pyplot: Any) -> Any:
    """onnxruntime's time over lamina's against m: a panel a scheme, a line an instruction set."""
    figure, panels = pyplot.subplots(1, len(PANELS), figsize=(9, 3.2), sharey=True, layout="constrained")
    for axes, (op, (scheme, peer)) in zip(panels, PANELS.items(), strict=True):
        for line, (name, files) in enumerate(LINES.items()):
            if op not in files:
                continue
            ratios = speedups(files[op], op, peer)
            axes.plot(list(ratios), list(ratios.values()), marker="o", color=f"C{line}", label=name)
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_xscale("log", base=2)
        axes.set_xticks([1, 4, 16, 64, 256], [1, 4, 16, 64, 256])
        axes.set_title(scheme, fontsize=10)
        axes.set_xlabel("m (tokens)")
        axes.grid(visible=True, alpha=0.3)
    panels[0].set_ylabel("onnxruntime time / lamina time")
    panels[0].set_ylim(bottom=0)
    handles = {
        text: line for axes in panels for line, text in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=8)
    return figure


def draw_times(pyplot: Any) -> Any:
    """Time against m beside peers, and the floor."""
    result = load(ROOT / RESULTS / LINES["Xeon, AMX"]["gemm_int8"])
    return plot_times(pyplot, result, result.rows)


def draw_study_rows(pyplot: Any) -> Any:
    """The time of a step against its rows, for each format."""
    return plots.draw_rows(pyplot, results.read(results.KERNELS)["tables"])


def draw_study_gains(pyplot: Any) -> Any:
    """The gain of drafts against batch and width, for each format."""
    return plots.draw_gains(pyplot, results.Decoding(results.read(results.DECODE)["rows"]))


@dataclass(frozen=True)
class Figure:
    draw: Callable[[Any], Any]
    sources: tuple[str, ...]  # in bench/results

    def fingerprint(self) -> str:
        """A hash of the sources, which the drawn file carries: a test compares them."""
        contents = b"".join((ROOT / RESULTS / source).read_bytes() for source in self.sources)
        return hashlib.sha256(contents).hexdigest()


def source(path: Path) -> str:
    """The name of a result file below RESULTS."""
    return str(path.relative_to(ROOT / RESULTS))


FIGURES = {
    "speedup": Figure(draw_speedups, tuple(file for files in LINES.values() for file in files.values())),
    "compounding_rows": Figure(draw_study_rows, (source(results.KERNELS),)),
    "compounding_gains": Figure(draw_study_gains, (source(results.DECODE),)),
    "gemm_int8_amx": Figure(draw_times, (LINES["Xeon, AMX"]["gemm_int8"],)),
}


def main() -> None:
    """Draws all of them."""
    import matplotlib

    matplotlib.use("Agg")
    # Text stays text, and the same figure has the same bytes.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "lamina"})
    from matplotlib import pyplot

    for name, figure in FIGURES.items():
        metadata = {"Date": None, "Description": figure.fingerprint()}
        drawn = figure.draw(pyplot)
        drawn.savefig(ROOT / "docs/figures" / f"{name}.svg", metadata=metadata, facecolor="white")
        pyplot.close(drawn)


if __name__ == "__main__":
    main()
