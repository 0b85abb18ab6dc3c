"""What the runs of a study say together: figures by seed, curves with a band over seeds, and all runs read at one budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

import numpy as np

from ..training.metrics import Line
from ..training.result import RunResult, Summary

Axis = Literal["tokens", "flops"]
Seeds = Mapping[int, RunResult]
Runs = Mapping[str, Seeds]
"""By variant, the baseline first, and seed."""
Value = Callable[[Line], float | None]
KEEP = 0.9
"""Of an average of training losses, as DeepSeek-V3's comparison of FP8 and bf16 has it (technical report, appendix B.1)."""
POINTS = 120
"""Of a curve, at most."""


@dataclass(frozen=True)
class Band:
    """A figure over training: mean and range over seeds."""

    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]


@dataclass(frozen=True)
class Reading:
    """Held-out bits per byte of every run at one budget."""

    axis: Axis
    budget: float
    """Tokens or training FLOPs."""
    values: dict[str, dict[int, float]]
    """By variant and seed; runs that diverged are not in it."""


def ended(runs: Seeds) -> dict[int, RunResult]:
    """Those that did not diverge."""
    return {seed: run for seed, run in runs.items() if run.summary.status != "diverged"}


def figures(runs: Seeds, of: Callable[[Summary], float | None]) -> dict[int, float]:
    """A figure of each run's summary by seed, of runs that did not diverge and have it."""
    return {seed: value for seed, run in ended(runs).items() if (value := of(run.summary)) is not None}


def mean(values: Mapping[int, float]) -> float | None:
    """Over seeds; None when there is none."""
    return fmean(values.values()) if values else None


def read_equal(runs: Runs, axis: Axis) -> Reading | None:
    """All runs at the largest budget that every run reached, interpolated linearly between evaluations.

    Runs that diverged are left out; None when no run is left.
    """
    curves = {name: {seed: held_out(run, axis) for seed, run in ended(own).items()} for name, own in runs.items()}
    reached = [x[-1] for own in curves.values() for x, _ in own.values()]
    if not reached:
        return None
    budget = min(reached)
    values = {name: {seed: float(np.interp(budget, x, y)) for seed, (x, y) in own.items()} for name, own in curves.items()}
    return Reading(axis, budget, values)


def held_out(run: RunResult, axis: Axis) -> tuple[list[float], list[float]]:
    """Budget spent and held-out bits per byte at every evaluation."""
    return curve(run, "eval", lambda line: line.bits_per_byte, axis)


def curve(run: RunResult, kind: str, value: Value, axis: Axis = "tokens") -> tuple[list[float], list[float]]:
    """Budget spent and a figure, of every line that has it."""
    found = [(float(getattr(line, axis)), number) for line in run.lines() if line.kind == kind and (number := value(line)) is not None]
    return [x for x, _ in found], [y for _, y in found]


def band(runs: Seeds, kind: str, value: Value, axis: Axis = "tokens", *, window: float = 0.0) -> Band | None:
    """A figure of the runs that did not diverge, over training; None when they have none.

    Args:
        runs: of one variant.
        kind: of lines.
        value: the figure of a line, None where it has none.
        axis: what runs along.
        window: part of the run over which an exponential average smooths it.
    """
    curves = [curve(run, kind, value, axis) for run in ended(runs).values()]
    curves = [(x, y) for x, y in curves if x]
    if not curves:
        return None
    x = np.array(curves[0][0])
    x = x[np.unique(np.linspace(0, len(x) - 1, min(POINTS, len(x))).round().astype(int))]
    rows = np.array([np.interp(x, own, smooth(y, window)) for own, y in curves])
    return Band(x.tolist(), rows.mean(0).tolist(), rows.min(0).tolist(), rows.max(0).tolist())


def smooth(values: list[float], window: float) -> list[float]:
    """An exponential average over `window` of the values' number, that of the first being itself."""
    return averaged(values, 1 - 1 / max(1.0, window * len(values)))


def averaged(values: list[float], keep: float) -> list[float]:
    """An exponential average that keeps so much of itself at each value; weights of the values so far sum to 1."""
    done, weight, total = [], 0.0, 0.0
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        done.append(total / weight)
    return done


def apart(variant: Seeds, baseline: Seeds) -> Band | None:
    """Averaged training losses in percent above the baseline's of the same seed, over training; None where no seed ended in both."""
    rows, x = [], np.array([])
    for seed, run in ended(variant).items():
        if seed not in ended(baseline):
            continue
        (own_x, own), (base_x, base) = (curve(one, "train", lambda line: line.bits_per_byte) for one in (run, baseline[seed]))
        if not own or not base:
            continue
        x = np.array(own_x if not len(x) else x)
        ours, theirs = (np.interp(x, at, averaged(y, KEEP)) for at, y in ((own_x, own), (base_x, base)))
        rows.append(100 * (ours / theirs - 1))
    if not rows:
        return None
    found = np.array(rows)
    return Band(x.tolist(), found.mean(0).tolist(), found.min(0).tolist(), found.max(0).tolist())


def trained(runs: Seeds) -> dict[int, float]:
    """The loss at the end of training by seed: bits per byte of the batches, each logged one weighing `KEEP` of the next."""
    found = {seed: curve(run, "train", lambda line: line.bits_per_byte)[1] for seed, run in ended(runs).items()}
    return {seed: averaged(losses, KEEP)[-1] for seed, losses in found.items() if losses}


def violation(line: Line) -> float | None:
    """MaxVio, mean over layers."""
    return fmean(line.max_vio.values()) if line.max_vio else None


def last_with(run: RunResult, name: str) -> Line | None:
    """The last evaluation that has a figure."""
    return next((line for line in reversed(run.lines()) if line.kind == "eval" and getattr(line, name)), None)
