"""Published training runs as data (`runs/*.toml`): what each phase read, and how many GPU hours it is said to have taken."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path

from pydantic import Field

from ...core.component import Options


class PartOptions(Options):
    """Tokens of one sequence length."""

    tokens: float = Field(gt=0)
    """Read in training."""
    sequence_length: int = Field(gt=0)
    """Tokens per sequence."""


class PhaseOptions(Options):
    """A phase of training for which hours were published."""

    name: str
    """What it is called."""
    hours: float | None = Field(default=None, gt=0)
    """GPU hours as published; None for a phase that is only planned."""
    source: str = ""
    """Where the figures are from."""
    parts: tuple[PartOptions, ...] = ()
    """What it read; empty where that is not published."""

    @property
    def tokens(self) -> float:
        return sum(part.tokens for part in self.parts)


class RunOptions(Options):
    """A whole training run."""

    model: str
    """Catalog name of the model."""
    gpu: str
    """Accelerator, as in `gpus.toml`."""
    gpus: int = Field(gt=0)
    """How many of them."""
    price: float = Field(gt=0)
    """Of a GPU hour, in dollars."""
    source: str
    """Where hours and price are from."""
    phases: tuple[PhaseOptions, ...]
    """In the order of training."""

    @property
    def hours(self) -> float:
        return sum(phase.hours or 0.0 for phase in self.phases)


@cache
def published_runs() -> dict[str, RunOptions]:
    """Every published run, by the name of its model."""
    found = [tomllib.loads(path.read_text(encoding="utf-8")) for path in sorted((Path(__file__).parent / "runs").glob("*.toml"))]
    runs = [RunOptions.model_validate(data) for data in found]
    return {run.model: run for run in runs}
