"""A recipe: data, budget, optimizer, schedule, log. Nothing of it enters the model's digest."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from ..core.component import Options
from ..core.manifest import Manifest
from ..registry.catalog import resolve as resolve_manifest
from .amount import Amount, steps_of
from .data.options import DataOptions
from .training.options import AdamWOptions, ScheduleOptions, TrainOptions


class LogOptions(Options):
    every: int = Field(default=1, gt=0)
    """Steps between lines of metrics."""
    eval_every: Amount = 0.1
    """Steps between evaluations, the first before training; the last step is always evaluated, and alone when 0."""


class Recipe(Options):
    """One training run, checked; paths are absolute."""

    model: str
    """The manifest: a catalog name, a path, or a Hub id."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Changes of the manifest."""
    data: DataOptions = DataOptions()
    """What is read."""
    train: TrainOptions
    """How much, and from which start."""
    optimizer: AdamWOptions = AdamWOptions()
    """How a step is taken."""
    schedule: ScheduleOptions = ScheduleOptions()
    """The learning rate over the run."""
    log: LogOptions = LogOptions()
    """What is written down, and when."""
    out: str = ""
    """Folder for the results; `runs/<recipe's file name>` in the working directory when empty."""

    @model_validator(mode="after")
    def _phases_fit(self) -> Recipe:
        phases = self.schedule
        used = sum(steps_of(amount, self.steps) for amount in (phases.warmup, phases.decay, phases.tail))
        if used > self.steps:
            raise ValueError(f"schedule: warmup, decay and tail take {used} steps, and the run has {self.steps}. Shorten one of them")
        return self

    @property
    def tokens_per_step(self) -> int:
        return self.train.batch_size * self.data.sequence_length

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.train.steps or -(-(self.train.tokens or 0) // self.tokens_per_step)

    def manifest(self) -> Manifest:
        """The model to train, resolved.

        Raises:
            BestiaryError: with everything that is wrong with it.
        """
        return resolve_manifest(self.model, set=self.set)
