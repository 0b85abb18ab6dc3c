"""A simulated schedule as a picture: one line for each rank, time to the right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...core.errors import BestiaryError
from .schedules.actions import Action, Kind, Pair
from .schedules.simulate import Simulation

COLOURS = {Kind.FORWARD: "#56b4e9", Kind.BACKWARD: "#e69f00", Kind.INPUT: "#f0e442", Kind.WEIGHT: "#009e73"}
"""Okabe and Ito's palette, which every kind of colour vision tells apart."""
NAMES = {Kind.FORWARD: "forward", Kind.BACKWARD: "backward", Kind.INPUT: "input gradients", Kind.WEIGHT: "weight gradients"}
SECOND = "////"
"""Hatch of a rank's second stage."""
FORMATS = (".svg", ".png")
WIDTH, LINE = 13.0, 0.42
"""Inches of the picture, and of one rank."""
STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "bestiary", "font.family": "DejaVu Sans", "font.size": 9, "hatch.linewidth": 0.4}


def draw(simulation: Simulation, path: Path, *, unit: str = "") -> None:
    """Writes a Gantt chart as SVG or PNG, as the name says.

    Args:
        simulation: what is shown.
        path: of the picture.
        unit: of time, such as `ms`.

    Raises:
        BestiaryError: another kind of picture.
    """
    if path.suffix not in FORMATS:
        raise BestiaryError(f"{path}: pictures are {' or '.join(FORMATS)}. Name it so.")
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    ranks = len(simulation.rows)
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, LINE * ranks + 1.4), layout="constrained", dpi=130)
        axes = figure.add_subplot()
        label = _fits(simulation)
        for rank, row in enumerate(simulation.rows):
            axes.barh(rank, simulation.makespan, height=0.92, color="#eeeeee", linewidth=0)
            for span in row:
                _bar(axes, span.item, rank, span.start, span.end - span.start, simulation, label)
        axes.set_ylim(ranks - 0.45, -0.55)
        axes.set_xlim(0, simulation.makespan)
        axes.set_yticks(range(ranks), [f"rank {rank}" for rank in range(ranks)])
        axes.set_xlabel(f"time{f', {unit}' if unit else ''}")
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0, axis="y")
        axes.set_title(_title(simulation, unit), loc="left", fontsize=10)
        used = {part.kind for row in simulation.rows for span in row for part in _parts(span.item)}
        handles = [Patch(color=COLOURS[kind], label=NAMES[kind]) for kind in Kind if kind in used]
        if any(len(simulation.schedule.stages_of(rank)) > 1 for rank in range(ranks)):
            handles.append(Patch(facecolor="white", edgecolor="#555555", hatch=SECOND, label="a later stage of the rank"))
        handles.append(Patch(color="#eeeeee", label="idle"))
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8.5)
        figure.savefig(path, metadata={"Date": None, "Creator": None} if path.suffix == ".svg" else None)


def _bar(axes: Any, item: Action | Pair, rank: int, start: float, length: float, simulation: Simulation, label: bool) -> None:
    """A bar; a pair is two of half the height."""
    parts, near = _parts(item), simulation.schedule.stages_of(rank)[0]
    height = 0.92 / len(parts)
    for place, part in enumerate(parts):
        middle = rank + (place - (len(parts) - 1) / 2) * height
        hatch = SECOND if part.stage != near else None
        axes.barh(middle, length, left=start, height=height, color=COLOURS[part.kind], edgecolor="white", linewidth=0.5)
        if hatch:
            axes.barh(middle, length, left=start, height=height, color="none", edgecolor="#0000003a", linewidth=0, hatch=hatch)
        if label:
            size = 7 if len(parts) == 1 else 5.5
            axes.text(start + length / 2, middle, str(part.microbatch), ha="center", va="center", fontsize=size, color="#111111")


def _parts(item: Action | Pair) -> tuple[Action, ...]:
    return (item.forward, item.backward) if isinstance(item, Pair) else (item,)


def _fits(simulation: Simulation) -> bool:
    """Whether numbers of micro-batches can be read in the shortest bar."""
    shortest = min(span.end - span.start for row in simulation.rows for span in row)
    return shortest / simulation.makespan * WIDTH > 0.11


def _title(simulation: Simulation, unit: str) -> str:
    schedule = simulation.schedule
    makespan = f"{simulation.makespan:,.1f}{f' {unit}' if unit else ''}"
    return (
        f"{schedule.name}: {schedule.ranks} ranks, {schedule.microbatches} micro-batches, makespan {makespan}, "
        f"bubble {simulation.bubble:.1%}, {simulation.overlapped:.0%} of forward passes overlapped"
    )
