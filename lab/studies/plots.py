"""The pictures of a report, as SVG."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..style import COLOURS, STYLE
from .reading import Axis, Band, Runs, apart, band, last_with, violation
from .statistics import Paired

LABELS = {"tokens": "training tokens", "flops": "training FLOPs"}
MARKERS = "osD^vPX*"
"""Of variants in their order, beside their colours."""


def held_out_curves(runs: Runs, axis: Axis) -> str:
    """Held-out bits per byte against tokens or FLOPs: mean over seeds, and their range.

    Where a run diverged there is a cross at the top.
    """

    def draw(axes: Any) -> None:
        bands = {name: found for name, own in runs.items() if (found := band(own, "eval", lambda line: line.bits_per_byte, axis))}
        for index, name in enumerate(runs):
            if name in bands:
                _band(axes, bands[name], index, name)
            lost = [getattr(run.summary, axis) for run in runs[name].values() if run.summary.status == "diverged"]
            if lost:
                style = {"linestyle": "", "marker": "x", "markersize": 9, "markeredgewidth": 2, "color": COLOURS[index % len(COLOURS)]}
                axes.plot(lost, [0.97] * len(lost), transform=axes.get_xaxis_transform(), label=f"{name}: diverged here", **style)
        axes.set_ylabel("bits per byte, held out")
        axes.set_ylim(*_limits(bands))
        _budget(axes, axis)

    return _figure(draw)


def differences(compared: Mapping[str, Paired], order: Sequence[str]) -> str:
    """Each variant's difference to the baseline, the first in `order`: the mean with its interval, and every seed as a circle."""

    def draw(axes: Any) -> None:
        axes.axvline(0, color="#555555", linewidth=1)
        for row, (name, paired) in enumerate(compared.items()):
            colour = COLOURS[order.index(name) % len(COLOURS)]
            if paired.low is not None and paired.high is not None:
                axes.plot([paired.low, paired.high], [row, row], color=colour, linewidth=3, solid_capstyle="butt", alpha=0.6)
            axes.plot(list(paired.differences.values()), [row] * paired.seeds, "o", color=colour, markersize=5, markerfacecolor="none")
            axes.plot(paired.mean, row, "|", color=colour, markersize=16, markeredgewidth=2.5)
        axes.set_yticks(range(len(compared)), list(compared))
        axes.set_ylim(len(compared) - 0.5, -0.5)
        axes.grid(True, axis="x")
        axes.grid(False, axis="y")
        axes.set_xlabel(f"bits per byte more than {order[0]}; left is better")

    return _figure(draw, height=1.1 + 0.45 * len(compared))


def training_differences(runs: Runs, baseline: str) -> str | None:
    """How far training losses are from the baseline's, in percent: mean over seeds, and their range; None where no seed ended in both."""
    found = {name: gap for name, own in runs.items() if name != baseline and (gap := apart(own, runs[baseline]))}

    def draw(axes: Any) -> None:
        axes.axhline(0, color="#555555", linewidth=1)
        for name, gap in found.items():
            colour = COLOURS[list(runs).index(name) % len(COLOURS)]
            axes.plot(gap.x, gap.mean, color=colour, linewidth=1.4, label=name)
            axes.fill_between(gap.x, gap.low, gap.high, color=colour, alpha=0.1, linewidth=0)
        axes.set_ylabel(f"% above {baseline}")
        _budget(axes, "tokens")

    return _figure(draw) if found else None


def balance(runs: Runs) -> str | None:
    """MaxVio, mean over layers: of all steps between two evaluations as points, of single steps faintly; None without experts."""
    from matplotlib.ticker import LogFormatter

    def draw(axes: Any) -> None:
        for index, name in enumerate(runs):
            steps, spans = band(runs[name], "train", violation, window=0.03), band(runs[name], "eval", violation)
            colour = COLOURS[index % len(COLOURS)]
            if steps is not None:
                axes.plot(steps.x, steps.mean, color=colour, linewidth=0.9, alpha=0.45)
            if spans is not None:
                _band(axes, spans, index, name)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.4)))
        axes.set_ylabel("MaxVio, mean over layers")
        _budget(axes, "tokens")

    return _figure(draw) if any(band(own, "eval", violation) for own in runs.values()) else None


def agreement(runs: Runs) -> str | None:
    """How often each depth of multi-token prediction agrees with the main model; None where nothing predicts ahead."""
    found = [(name, key) for name, own in runs.items() for key in agreements(own)]

    def draw(axes: Any) -> None:
        order = list(runs)
        for name, key in found:
            curve = band(runs[name], "eval", lambda line, key=key: line.agreement.get(key))
            if curve is not None:
                _band(axes, curve, order.index(name), f"{name}, {key}", dashed=key != agreements(runs[name])[0])
        axes.set_ylabel("agreement with the main model")
        axes.set_ylim(0, 1)
        _budget(axes, "tokens")

    return _figure(draw) if found else None


def agreements(runs: Mapping[int, Any]) -> list[str]:
    """Names of the depths that a variant reports agreement of."""
    return sorted({key for run in runs.values() if (line := last_with(run, "agreement")) for key in line.agreement})


def expert_load(runs: Runs) -> str | None:
    """The held-out load of every expert in every layer at the end of each variant's first seed; 1 is even; None without experts."""
    from matplotlib.colors import TwoSlopeNorm

    loads = {name: line.expert_load for name, own in runs.items() if (line := last_with(next(iter(own.values())), "expert_load"))}
    if not loads:
        return None
    rows = {name: [[share * len(load) for share in load] for load in own.values()] for name, own in loads.items()}
    most = max(2.0, max(value for own in rows.values() for row in own for value in row))
    norm = TwoSlopeNorm(1.0, 0.0, most)

    def draw(figure: Any) -> None:
        columns = min(2, len(rows))
        panels = figure.subplots(-(-len(rows) // columns), columns, squeeze=False).flatten()
        image = None
        for panel, (name, own) in zip(panels, rows.items(), strict=False):
            width = max(len(row) for row in own)
            image = panel.imshow([row + [float("nan")] * (width - len(row)) for row in own], aspect="auto", cmap="PuOr_r", norm=norm)
            panel.set_yticks(range(len(own)), list(loads[name]))
            ended = next(iter(runs[name].values())).summary.status
            panel.set_title(name if ended == "finished" else f"{name} ({ended})", fontsize=10, loc="left")
            panel.set(xlabel="expert", ylabel="layer")
            panel.grid(False)
        for panel in panels[len(rows) :]:
            panel.set_axis_off()
        figure.colorbar(image, ax=list(panels), label="load, 1 is even", shrink=0.8)

    return _drawn(draw, height=0.6 + sum(_height(own) for own in list(rows.values())[::2]))


def _height(rows: list[list[float]]) -> float:
    return min(4.0, 1.2 + 0.16 * len(rows))


def _band(axes: Any, found: Band, index: int, label: str, *, dashed: bool = False) -> None:
    colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
    axes.fill_between(found.x, found.low, found.high, color=colour, alpha=0.18, linewidth=0)
    axes.plot(
        found.x, found.mean, color=colour, linewidth=1.6, linestyle="--" if dashed else "-", marker=marker, markersize=4.5, label=label
    )


def _budget(axes: Any, axis: Axis) -> None:
    from matplotlib.ticker import EngFormatter

    axes.set_xlabel(LABELS[axis])
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9)


def _limits(bands: Mapping[str, Band]) -> tuple[float, float]:
    """Room for all evaluations but those of the first fifth of training, whose height would flatten the rest."""
    late = []
    for found in bands.values():
        start = found.x[-1] / 5
        late += [(low, high) for x, low, high in zip(found.x, found.low, found.high, strict=True) if x > start]
    if not late:
        return 0.0, 8.0
    low, high = min(low for low, _ in late), max(high for _, high in late)
    margin = max(0.01, 0.08 * (high - low))
    return low - margin, high + margin


def _figure(draw: Callable[[Any], None], *, height: float = 3.9) -> str:
    """One pair of axes as SVG."""
    return _drawn(lambda figure: draw(figure.add_subplot()), height=height)


def _drawn(draw: Callable[[Any], None], *, height: float) -> str:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(7.6, height), layout="constrained")
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
