"""Pictures of evaluations: loss by position as SVG, needles as heat maps in PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from ..style import COLOURS, STYLE
from .needle import Retrieval
from .positions import PositionLoss


def position_curves(losses: Mapping[str, PositionLoss], marks: Mapping[str, int]) -> str:
    """An `<svg>` of bits per byte against tokens read before, one line for each model, with vertical lines at `marks`."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.0), layout="constrained")
        axes = figure.add_subplot()
        for index, (name, loss) in enumerate(losses.items()):
            middle = [(max(low, 1) * high) ** 0.5 for low, high in zip(loss.edges, loss.edges[1:], strict=False)]
            axes.plot(middle, loss.bits_per_byte, color=COLOURS[index % len(COLOURS)], marker="o", markersize=4, linewidth=1.6, label=name)
        for name, place in marks.items():
            axes.axvline(place, color="#999999", linewidth=0.9, linestyle="--")
            axes.annotate(name, (place, 1.0), xycoords=("data", "axes fraction"), xytext=(-3, -2), textcoords="offset points", **_MARK)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.set_xlabel("tokens of the document read before (log scale)")
        axes.set_ylabel("bits per byte, held out")
        axes.legend(frameon=False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


_MARK: Any = {"ha": "right", "va": "top", "rotation": 90, "fontsize": 8, "color": "#666666"}


def heat_maps(retrievals: Mapping[str, Retrieval]) -> bytes:
    """A PNG with one map for each model: share of the value's tokens that were right, by length and depth."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(3.1 * len(retrievals) + 1.0, 3.4), layout="constrained", dpi=150)
        panels = figure.subplots(1, len(retrievals), squeeze=False, sharey=True)[0]
        for axes, (name, one) in zip(panels, retrievals.items(), strict=True):
            image = axes.imshow(list(zip(*one.share, strict=True)), vmin=0, vmax=1, cmap="viridis", aspect="auto")
            axes.set_title(name, fontsize=10)
            axes.set_xticks(range(len(one.lengths)), [f"{length:,}" for length in one.lengths], fontsize=8)
            axes.set_yticks(range(len(one.depths)), [f"{depth:.0%}" for depth in one.depths])
            axes.set_xlabel("tokens of the prompt")
            for column, row in enumerate(one.share):
                for line, value in enumerate(row):
                    axes.text(column, line, f"{value:.2f}", ha="center", va="center", fontsize=8, color="white" if value < 0.6 else "black")
        panels[0].set_ylabel("depth of the needle")
        figure.colorbar(image, ax=list(panels), label="value tokens right", shrink=0.9)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
