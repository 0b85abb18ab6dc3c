"""Loss curves as SVG."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from ..training.result import RunResult
from .reading import Axis, held_out, training

COLOURS = ("#1f5fa8", "#c8502d", "#2e8b57", "#8a4fa3", "#b8860b", "#4a4a4a", "#00838f", "#ad1457")
"""Of the variants in their order; dark enough on white for points and text."""
LABELS = {"tokens": "training tokens", "flops": "training FLOPs"}
STYLE: Any = {
    "svg.hashsalt": "bestiary",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.labelcolor": "#222222",
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#e2e2e2",
    "axes.axisbelow": True,
}


def curves(runs: Mapping[str, RunResult], axis: Axis) -> str:
    """An `<svg>` of bits per byte against tokens or FLOPs: held-out evaluations as points, smoothed training loss faintly."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    with rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.0), layout="constrained")
        axes = figure.add_subplot()
        for index, (name, run) in enumerate(runs.items()):
            colour = COLOURS[index % len(COLOURS)]
            axes.plot(*training(run, axis), color=colour, linewidth=0.9, alpha=0.35)
            axes.plot(*held_out(run, axis), color=colour, linewidth=1.6, marker="o", markersize=5, label=name)
        axes.set_xlabel(LABELS[axis])
        axes.set_ylabel("bits per byte")
        axes.set_xlim(left=0)
        axes.set_ylim(*_limits(runs))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.legend(title="points: held out   faint: training, smoothed", frameon=False, alignment="left")
        return _svg(figure)


def _limits(runs: Mapping[str, RunResult]) -> tuple[float, float]:
    """Room for all evaluations but the one before training, whose height would flatten the rest, and for the lowest loss."""
    values = [value for run in runs.values() for value in held_out(run, "tokens")[1][1:]]
    lows = [min(curve) for run in runs.values() if (curve := training(run, "tokens")[1])]
    low, high = (min([*values, *lows]), max(values)) if values else (0.0, 8.0)
    margin = max(0.05, 0.08 * (high - low))
    return low - margin, high + margin


def _svg(figure: Any) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
