"""The figures of docs/compounding.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.study.decode import WIDTHS, Cell, own_kv
from bench.study.formats import IN_FILE
from bench.study.results import Decoding
from bench.study.step_time import Linear

NAMES = {"smollm2": "SmolLM2-135M, all layers", "llama3-8b": "Llama-3-8B, one layer"}
BATCHES = (1, 4, 8)


def draw_rows(pyplot: Any, tables: Mapping[str, Any]) -> Any:
    """T(m) / T(1) of the linear layers of each format."""
    figure, panels = pyplot.subplots(1, len(NAMES), figsize=(9, 3.6), sharey=True, layout="constrained")
    for axes, (shape, title) in zip(panels, NAMES.items(), strict=True):
        linear = Linear(tables[f"linear {shape}"])
        for color, (name, of) in enumerate(linear.by_format.items()):
            is_sparse = name.startswith("sparse24")
            style = {"linestyle": "--", "linewidth": 1} if is_sparse else {"linewidth": 1.6}
            ratios = [seconds / of[1] for seconds in of.values()]
            axes.plot(list(of), ratios, color=f"C{color}", label=name, **style)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        ticks = [1, 2, 4, 8, 16, 32, 64, 128, 256]
        axes.set_xticks(ticks, ticks)
        axes.set_yticks(ticks[:-2], ticks[:-2])
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("m (rows of a step)")
        axes.grid(visible=True, alpha=0.3)
    panels[0].set_ylabel("T(m) / T(1)")
    panels[1].legend(fontsize=7)
    return figure


def draw_gains(pyplot: Any, decoding: Decoding) -> Any:
    """The gain of prompt lookup against batch and width, for each format, with the contour of no gain."""
    names = list(IN_FILE)
    figure, panels = pyplot.subplots(1, len(names), figsize=(11, 2.6), sharey=True, layout="constrained")
    image = None
    for axes, name in zip(panels, names, strict=True):
        grid = [
            [decoding.gain(Cell(name, own_kv(name), "copy", batch, "lookup", k)) for k in WIDTHS]
            for batch in BATCHES
        ]
        image = axes.imshow(grid, vmin=0.5, vmax=2.5, cmap="RdYlGn", aspect="auto", origin="lower")
        for y, of in enumerate(grid):
            for x, gain in enumerate(of):
                axes.text(x, y, f"{gain:.1f}", ha="center", va="center", fontsize=7)
        if min(map(min, grid)) < 1 < max(map(max, grid)):
            axes.contour(grid, levels=[1.0], colors="black", linewidths=1)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("drafts of a step")
        axes.set_xticks(range(len(WIDTHS)), WIDTHS)
        axes.set_yticks(range(len(BATCHES)), BATCHES)
    panels[0].set_ylabel("batch")
    figure.colorbar(image, ax=panels, label="gain")
    return figure
