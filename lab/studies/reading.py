"""Comparing runs of unequal length and unequal cost: read them all at the same tokens, and at the same FLOPs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..training.metrics import Line
from ..training.result import RunResult

Axis = Literal["tokens", "flops"]


@dataclass(frozen=True)
class Reading:
    """Held-out bits per byte of every run at one budget."""

    axis: Axis
    budget: float
    """Tokens or training FLOPs."""
    values: dict[str, float]
    """By variant; runs without an evaluation are not in it."""


def read_equal(runs: Mapping[str, RunResult], axis: Axis) -> Reading | None:
    """All runs at the largest budget that every run reached, interpolated linearly between evaluations.

    Runs that diverged are left out; None when no run is left.
    """
    curves = {name: held_out(run, axis) for name, run in runs.items() if run.summary.status != "diverged"}
    if not curves:
        return None
    budget = min(x[-1] for x, _ in curves.values())
    return Reading(axis, budget, {name: float(np.interp(budget, x, y)) for name, (x, y) in curves.items()})


def held_out(run: RunResult, axis: Axis) -> tuple[list[float], list[float]]:
    """Budget spent and held-out bits per byte at every evaluation."""
    return _curve(run, axis, "eval")


def training(run: RunResult, axis: Axis, *, window: float = 0.05) -> tuple[list[float], list[float]]:
    """Budget spent and training bits per byte, smoothed by an exponential average over `window` of the run."""
    x, y = _curve(run, axis, "train")
    keep = 1 - 1 / max(1.0, window * len(y))
    smooth, weight, total = [], 0.0, 0.0
    for value in y:
        total, weight = keep * total + value, keep * weight + 1
        smooth.append(total / weight)
    return x, smooth


def _curve(run: RunResult, axis: Axis, kind: str) -> tuple[list[float], list[float]]:
    lines: list[Line] = [line for line in run.lines() if line.kind == kind]
    return [float(getattr(line, axis)) for line in lines], [line.bits_per_byte for line in lines]
