"""A simulated schedule as a picture: one line for each rank, time to the right."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from ...core.errors import BestiaryError
from .schedules.actions import Action, Kind
from .schedules.check import parts
from .schedules.simulate import Simulation

COLOURS = {Kind.FORWARD: "#56b4e9", Kind.BACKWARD: "#e69f00", Kind.INPUT: "#f0e442", Kind.WEIGHT: "#009e73"}
"""Okabe and Ito's palette, which every kind of colour vision tells apart."""
IDLE, LATER = "#e3e3e3", "#333333"
NAMES = {Kind.FORWARD: "forward", Kind.BACKWARD: "backward", Kind.INPUT: "input gradients", Kind.WEIGHT: "weight gradients"}
FORMATS = (".svg", ".png")
WIDTH, WIDEST, LINE, MARGIN = 13.0, 20.0, 0.42, 0.9
"""Inches: of the picture, at least and at most; of one rank; of what stands beside the bars."""
BAR, STRIP = 0.9, 0.09
"""Heights of a bar, and of the line under a later stage's, where ranks are 1 apart."""
SHORTEST = 0.1
"""Inches that the shortest bar should have."""
LARGEST, SMALLEST = 7.5, 4.0
"""Points of numbers."""
STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "bestiary", "font.family": "DejaVu Sans", "font.size": 9}


@dataclass(frozen=True)
class Bar:
    """One pass as a rectangle; half as high in a pair."""

    action: Action
    left: float
    right: float
    top: float
    bottom: float
    later: bool
    """Whether it is of another than the rank's first stage."""

    def corners(self, height: float | None = None) -> list[tuple[float, float]]:
        """Of the whole rectangle, or of so much at its bottom."""
        top = self.top if height is None else self.bottom - height
        return [(self.left, top), (self.right, top), (self.right, self.bottom), (self.left, self.bottom)]


def draw(simulation: Simulation, path: Path, *, unit: str = "") -> None:
    """Writes a Gantt chart as SVG or PNG, as the name says.

    Args:
        simulation: what is shown.
        path: of the picture.
        unit: of time, such as `ms`.

    Raises:
        BestiaryError: another kind of picture.
    """
    check_format(path)
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    bars = list(_bars(simulation))
    shortest = min((bar.right - bar.left for bar in bars if bar.right > bar.left), default=1.0)
    width = min(max(WIDTH, SHORTEST * simulation.makespan / shortest + MARGIN), WIDEST)
    with rc_context(STYLE):
        figure = Figure(figsize=(width, LINE * len(simulation.rows) + 1.3), layout="constrained", dpi=130)
        axes = figure.add_subplot()
        _fill(axes, bars, simulation)
        _number(axes, bars, (width - MARGIN) / simulation.makespan)
        _frame(axes, simulation, unit)
        handles, how = _legend(bars)
        figure.legend(handles=handles, handler_map=how, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8.5)
        if path.suffix == ".png":
            figure.savefig(path)
            return
        text = StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    path.write_text(_lean(text.getvalue()), encoding="utf-8")


def check_format(path: Path) -> None:
    """Whether pictures of this name can be drawn.

    Raises:
        BestiaryError: no.
    """
    if path.suffix not in FORMATS:
        raise BestiaryError(f"{path}: pictures are {' or '.join(FORMATS)}. Name it so.")


def _bars(simulation: Simulation) -> Iterator[Bar]:
    for rank, row in enumerate(simulation.rows):
        first = simulation.schedule.stages_of(rank)[0]
        for span in row:
            halves = parts(span.item)
            for place, action in enumerate(halves):
                top, height = rank - BAR / 2 + place * BAR / len(halves), BAR / len(halves)
                yield Bar(action, span.start, span.end, top, top + height, action.stage != first)


def _fill(axes: Any, bars: list[Bar], simulation: Simulation) -> None:
    """All bars of a colour are one path, so that pictures stay small."""
    whole = [
        [(0, r - BAR / 2), (simulation.makespan, r - BAR / 2), (simulation.makespan, r + BAR / 2), (0, r + BAR / 2)]
        for r in _ranks(simulation)
    ]
    _path(axes, whole, IDLE, 0.0)
    found: dict[Kind, list[Any]] = defaultdict(list)
    for bar in bars:
        found[bar.action.kind].append(bar.corners())
    for kind, corners in found.items():
        _path(axes, corners, COLOURS[kind], 0.6)
    _path(axes, [bar.corners(STRIP) for bar in bars if bar.later], LATER, 0.6)


def _path(axes: Any, corners: list[Any], colour: str, edge: float) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Outline

    if corners:
        vertices = [point for four in corners for point in (*four, four[0])]
        codes = [Outline.MOVETO, Outline.LINETO, Outline.LINETO, Outline.LINETO, Outline.CLOSEPOLY] * len(corners)
        axes.add_patch(PathPatch(Outline(vertices, codes), facecolor=colour, edgecolor="white", linewidth=edge))


def _number(axes: Any, bars: list[Bar], inches: float) -> None:
    """Micro-batches, where the longest of their numbers can be read; `inches` has a unit of time."""
    digits = max(len(str(bar.action.microbatch)) for bar in bars)
    for bar in bars:
        room, half = (bar.right - bar.left) * inches * 72, bar.bottom - bar.top < BAR * 0.75
        size = min(LARGEST - 1 if half else LARGEST, room / (0.66 * digits + 0.3))
        if size >= SMALLEST:
            place = (bar.left + bar.right) / 2, (bar.top + bar.bottom - STRIP * bar.later) / 2
            label = axes.text(*place, str(bar.action.microbatch), ha="center", va="center_baseline", fontsize=round(size, 1))
            label.set_in_layout(False)


def _frame(axes: Any, simulation: Simulation, unit: str) -> None:
    axes.set_ylim(len(simulation.rows) - 0.5, -0.5)
    axes.set_xlim(0, simulation.makespan)
    axes.set_yticks(_ranks(simulation), [f"rank {rank}" for rank in _ranks(simulation)])
    axes.set_xlabel(f"time{f', {unit}' if unit else ''}")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, axis="y")
    schedule, many = simulation.schedule, f"{simulation.makespan:,.1f}{f' {unit}' if unit else ''}"
    overlapped = f", {simulation.overlapped:.0%} of forward passes overlapped" if simulation.overlapped else ""
    title = (
        f"{schedule.name}: {schedule.ranks} ranks, {schedule.microbatches} micro-batches, makespan {many}, bubble {simulation.bubble:.1%}"
    )
    axes.set_title(title + overlapped, loc="left", fontsize=10)


def _legend(bars: list[Bar]) -> tuple[list[Any], dict[Any, Any]]:
    """What there is, with how a pair and a later stage are drawn."""
    from matplotlib.legend_handler import HandlerPatch
    from matplotlib.patches import Patch, Rectangle

    class Stacked(HandlerPatch):
        """Two colours, one over the other, in the heights that a handle names."""

        def create_artists(
            self, legend: Any, orig_handle: Any, xdescent: float, ydescent: float, width: float, height: float, *rest: Any
        ) -> Any:
            upper, lower, part = shown[orig_handle]
            low = Rectangle((-xdescent, -ydescent), width, height * part, color=lower, linewidth=0, transform=rest[1])
            high = Rectangle(
                (-xdescent, -ydescent + height * part), width, height * (1 - part), color=upper, linewidth=0, transform=rest[1]
            )
            return [low, high]

    kinds = {bar.action.kind for bar in bars}
    shown: dict[Any, tuple[str, str, float]] = {}
    handles = [Patch(color=COLOURS[kind], label=NAMES[kind]) for kind in Kind if kind in kinds]
    if any(bar.bottom - bar.top < BAR * 0.75 for bar in bars):
        handles.append(Patch(label="a pair, overlapped"))
        shown[handles[-1]] = COLOURS[Kind.FORWARD], COLOURS[Kind.BACKWARD], 0.5
    if any(bar.later for bar in bars):
        handles.append(Patch(label="a later stage of the rank"))
        shown[handles[-1]] = COLOURS[Kind.FORWARD], LATER, 0.2
    handles.append(Patch(color=IDLE, label="idle"))
    return handles, dict.fromkeys(shown, Stacked())


def _ranks(simulation: Simulation) -> range:
    return range(len(simulation.rows))


def _lean(svg: str) -> str:
    """Without what no viewer needs: comments, groups of one text each, and coordinates to a millionth of a point."""
    svg = re.sub(r"\s*<!--.*?-->", "", svg)
    svg = re.sub(r'<g id="text_\d+">\s*(<text.*?</text>)\s*</g>', r"\1", svg, flags=re.DOTALL)
    svg = re.sub(r"(\d+\.\d{2})\d+", r"\1", svg)
    return re.sub(r"\n\s+", "\n", svg)
